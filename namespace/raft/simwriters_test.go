package raft

import (
	"github.com/cairnfs/cairn/namespace"
)

// writing returns what a node does that writes a file, or locks it, like others.
func (w *world) writing(n *simNode, session namespace.SessionID) namespace.Op {
	file, err := n.state.Lookup(namespace.RootIno, "written")
	if err != nil {
		return &namespace.Create{Parent: namespace.RootIno, Name: "written", Mode: namespace.TypeRegular}
	}
	switch w.rng.IntN(4) {
	case 0:
		turn := &namespace.TakeTurn{Session: session, Ino: file.Ino}
		if queue, err := n.state.Turns(file.Ino); err == nil && len(queue) > 0 && w.chance(300) {
			turn.Session, turn.Leave = queue[0].Session, queue[0].Ticket
		}
		return turn
	case 1, 2:
		data := []byte{byte(w.rng.IntN(256))}
		return &namespace.SetContent{Ino: file.Ino, Base: file.Version, Content: namespace.Content{Inline: data, Length: 1}, Size: 1}
	}
	spot := func() namespace.LockedRange {
		return namespace.LockedRange{Ino: file.Ino, Start: w.rng.Uint64N(4), End: 4, Write: w.chance(500)}
	}
	wait := &namespace.AwaitLock{Session: session, ID: w.rng.Uint64N(3)}
	if w.chance(700) {
		wait.Wait = &namespace.Wait{Owner: w.rng.Uint64N(2), Wants: spot(), Has: []namespace.LockedRange{spot()}, Ahead: w.chance(300)}
	}
	return wait
}
