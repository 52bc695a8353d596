package node

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/chunker"
	"github.com/cairnfs/cairn/p2p"
)

// A store that its cluster refuses still has blocks, which prove themselves. To rejoin
// is to join with a new key, as a new member, and to keep them; index and journal go,
// and with them the names, and the locations of the blocks, which a scan of the
// segments finds again.
//
// Until the cluster has admitted the new member nothing of the old one is touched. That
// it has is the file member.next; from then on whoever opens the store finishes what
// was begun.

// nextSuffix is that of files that are to take the place of others.
const nextSuffix = ".next"

// ErrNotMember says that the store is not that of a member.
var ErrNotMember = errors.New("this is not the data directory of a former member")

// ErrFounder says that the store founded its cluster, which may have no other member: then
// its names are the only ones.
var ErrFounder = errors.New("this node founded its cluster and was not refused by it, so its names may be the only copy")

// checkRejoin fails if the data directory is not that of a former member.
func (n *Node) checkRejoin() error {
	if _, err := readConfig(n.o.FS, n.o.Dir); errors.Is(err, ErrNoStore) {
		return ErrNotMember
	} else if err != nil {
		return err
	}
	m, ok, err := readMember(n.o.FS, n.o.Dir)
	if err != nil {
		return err
	}
	switch {
	case !ok || m.Raft == 0:
		return ErrNotMember
	case !m.Joined && m.Refused == nil:
		return ErrFounder
	}
	if _, err := n.o.FS.Stat(n.path(memberName + nextSuffix)); err == nil {
		return fmt.Errorf("%w: it has rejoined", ErrJoined)
	}
	n.memberFile = m
	return nil
}

// becomeAgain makes the data directory that of the new member, and returns who it was
// before, if that is still one.
func (n *Node) becomeAgain(a *joinAnswer, listen, name string) (former p2p.PeerID, err error) {
	if err := checkAnswer(a); err != nil {
		return "", err
	}
	c, err := readConfig(n.o.FS, n.o.Dir)
	if err != nil {
		return "", err
	}
	if chunker.Params(c.Chunker) != chunker.Params(a.Chunker) {
		return "", fmt.Errorf("%w: its files are cut differently from those of the cluster", ErrHasStore)
	}
	if name == "" {
		name = n.memberFile.Name
	}
	_, was, err := makeKey(n.o.FS, n.o.Dir, n.o.Random)
	if err != nil {
		return "", err
	}
	if slices.ContainsFunc(a.Peers, func(p peerAddr) bool { return p.ID == was }) {
		former = was
	}
	if err := writeMemberAs(n.o.FS, n.o.Dir, memberName+nextSuffix, memberOf(a, listen, name)); err != nil {
		return "", err
	}
	return former, finishRejoin(n.o.FS, n.o.Dir)
}

// finishRejoin does what is left to do once a new member was admitted.
func finishRejoin(fsys vfs.FS, dir string) error {
	member := fsys.PathJoin(dir, memberName)
	if _, err := fsys.Stat(member + nextSuffix); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, name := range []string{indexDir, journalDir} {
		if err := fsys.RemoveAll(fsys.PathJoin(dir, name)); err != nil {
			return err
		}
	}
	if err := fsys.MkdirAll(fsys.PathJoin(dir, journalDir), 0o700); err != nil {
		return err
	}
	key := fsys.PathJoin(dir, keyName)
	if err := fsys.Rename(key+nextSuffix, key); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The names of the files above are durable before the last of them.
	if err := syncDir(fsys, dir); err != nil {
		return err
	}
	if err := fsys.Rename(member+nextSuffix, member); err != nil {
		return err
	}
	return syncDir(fsys, dir)
}
