package raft

import "go.etcd.io/raft/v3/tracker"

// What the leader does now and then.

// caughtUp is how many entries a member may lack and still be made a voter.
const caughtUp = 256

// changeAgain is how many ticks the leader waits for a change of the group that it
// proposed before it proposes one again.
const changeAgain = 10

// tend is called by the run loop for each tick.
func (l *Log) tend(tick int) {
	if tick%5 != 0 {
		return
	}
	l.forgetSnapshots()
	l.confirmTime()
	if !l.leader {
		return
	}
	l.expire()
	l.group()
}

// confirmTime has log time go on when another node has said that it is much later and
// the clock of this one says so, too. Where one node alone changes names, nobody else
// would say anything.
func (l *Log) confirmTime() {
	own := l.session.live()
	if own == 0 || !l.o.State.Confirms(own, l.o.Now().UnixNano()) {
		return
	}
	if now := l.o.Clock(); l.confirmed == 0 || now-l.confirmed > l.o.Timeout {
		l.confirmed = now
		l.background()
	}
}

func (l *Log) becameLeader(leads bool) {
	clear(l.deadlines)
	if leads {
		now := l.o.Clock()
		for id := range l.o.State.Sessions() {
			l.deadlines[id] = now + l.o.TTL
		}
	}
	l.tried = 0
}

// group proposes the next step towards the voters that there should be.
func (l *Log) group() {
	view := l.o.State.View()
	if now := l.o.Clock(); view == nil || l.tried != 0 && now-l.tried < changeAgain*l.o.Tick {
		return
	}
	change, heir := plan(view, l.store.conf, l.o.ID, l.progress())
	if change == nil && heir == 0 {
		return
	}
	l.tried = l.o.Clock()
	if heir != 0 {
		l.o.Logger.Info("another member is to lead", "id", heir)
		l.core.rn.TransferLeader(heir)
		return
	}
	if err := l.core.change(change); err != nil {
		l.o.Logger.Debug("group is not changed yet", "err", err)
		return
	}
	l.o.Logger.Info("the group that orders changes is changed", "change", change.String())
}

// progress returns what is known of the members of the group, nil unless this one leads.
func (l *Log) progress() map[uint64]peerProgress {
	s := l.core.rn.Status()
	if s.Progress == nil {
		return nil
	}
	progress := make(map[uint64]peerProgress)
	last, _ := l.store.LastIndex()
	for id, p := range s.Progress {
		// A short log says nothing of the namespace before it, which may be large.
		progress[id] = peerProgress{active: p.RecentActive, caught: p.State == tracker.StateReplicate && p.Match+caughtUp >= last, match: p.Match}
	}
	return progress
}
