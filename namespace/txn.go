package namespace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// A txn works out one command. It loads what the ops touch, changes the loaded
// copies, and at the end writes what differs into a batch and then into the
// cache. Nothing outside it changes before that, so a command that is refused
// half-way leaves no trace, and later ops see what earlier ones did.
//
// There is one txn per State, used again and again so that a command allocates
// little. It may read State.meta and State.snapshots without a lock, because only
// the holder of State.order changes them.
type txn struct {
	s       *State
	index   uint64
	now     int64 // the command's Time, for inodes
	logTime int64 // for history
	claim   timeClaim
	place   Position // of the command in the group's log; zero in a group of one
	meta    meta
	created Ino // what Created stands for
	result  Result
	failure error // local, ends the State

	inodes    []*stagedInode
	nInodes   int
	entries   []*stagedEntry
	nEntries  int
	values    stagedValues
	snapshots []uint64 // as of the command; shared with the State until changed
	collect   Collection
	trim      trim
	cluster   clusterTxn
	keyBuf    []byte
	histBuf   []byte
}

// stagedInode is an inode that the command has looked at.
type stagedInode struct {
	record         // as of now
	old     record // as stored
	stored  bool   // old exists
	alive   bool   // record exists
	dirty   bool   // differs from old
	touched bool   // it is decided whether old is kept in history
	history bool   // it is
	named   bool   // the command names content
	patch   []byte // that the command makes
	dropped uint64 // stored patches up to this one are above the content no longer
}

// stagedEntry is a name that the command has looked at.
type stagedEntry struct {
	key    nameKey
	name   string
	old    dentry // as stored; ino 0: no entry
	dentry        // as of now
}

func (e *stagedEntry) exists() bool { return e.ino != 0 }

func (t *txn) init(s *State) { t.s = s }

func (t *txn) begin(index uint64, cmd *Command) {
	t.meta, t.snapshots, t.collect = t.s.meta, t.s.snapshots, t.s.collect
	t.index, t.now, t.place = index, cmd.Time, Position{}
	t.logTime, t.claim = t.nextLogTime(cmd)
	t.result = Result{Index: index}
	t.failure = nil
	t.drop()
}

// drop forgets all that was staged.
func (t *txn) drop() {
	t.created = 0
	t.nInodes, t.nEntries = 0, 0
	t.values.drop()
	t.trim = trim{}
	t.cluster = clusterTxn{}
}

// run carries out the ops. A refused command is reduced to its index.
func (t *txn) run(cmd *Command) {
	refuse := func(op int, err error) {
		t.drop()
		t.meta, t.snapshots, t.collect = t.s.meta, t.s.snapshots, t.s.collect
		t.meta.applied = t.index
		t.result = Result{Index: t.index, Err: err, FailedOp: op}
	}
	if cmd.Session != 0 {
		if done := t.enterSession(cmd); done {
			t.meta.applied = t.index
			return
		}
		defer t.leaveSession(cmd)
	}
	if len(cmd.Ops) > MaxOps {
		refuse(0, fmt.Errorf("%w: %d ops in a command", ErrInvalid, len(cmd.Ops)))
		return
	}
	if cmd.RefersToBlocks() && !t.collect.Honours(cmd.Promised) {
		refuse(0, ErrPromise)
		return
	}
	t.result.Inodes = make([]Inode, len(cmd.Ops))
	for i, op := range cmd.Ops {
		n, err := t.do(op)
		if t.failure != nil {
			return
		}
		if err != nil {
			refuse(i, err)
			return
		}
		if n != nil {
			t.result.Inodes[i] = n.inode(n.tail)
		}
	}
	t.meta.applied, t.meta.logTime = t.index, t.logTime
	t.meta.timeClaim, t.meta.timeClaimed = t.claim.session, t.claim.time
	for _, n := range t.inodes[:t.nInodes] {
		if n.stored && n.dirty {
			t.meta.stats.add(n.old.counts(), -1)
		}
		if n.alive && n.dirty {
			t.meta.stats.add(n.counts(), 1)
		}
	}
}

// do carries out one op. It returns the inode concerned, if any.
func (t *txn) do(op Op) (*stagedInode, error) {
	if err := t.gate(op); err != nil {
		return nil, err
	}
	switch op := op.(type) {
	case *Create:
		return t.create(op)
	case *Link:
		return t.link(op)
	case *Unlink:
		return t.unlink(op)
	case *Rmdir:
		return t.rmdir(op)
	case *Rename:
		return t.rename(op)
	case *SetAttr:
		return t.setAttr(op)
	case *Truncate:
		return t.truncate(op)
	case *SetContent:
		return t.setContent(op)
	case *PatchContent:
		return t.patchContent(op)
	case *FoldContent:
		return t.foldContent(op)
	case *SetXattr:
		return t.setXattr(op)
	case *RemoveXattr:
		return t.removeXattr(op)
	case *Reap:
		return t.reap(op)
	case *Pin:
		return nil, t.pin(op)
	case *Unpin:
		return nil, t.unpin(op)
	case *Snapshot:
		return nil, t.snapshot(op)
	case *DropSnapshot:
		return nil, t.dropSnapshot(op)
	case *TrimHistory:
		return nil, t.trimHistory(op)
	case *NextStep:
		return nil, t.nextStep(op)
	default:
		return nil, t.doCluster(op)
	}
}

// fail notes a local failure. The error it returns only ends the op.
func (t *txn) fail(err error) error {
	t.failure = err
	return err
}

// newStagedInode returns an empty staged inode.
func (t *txn) newStagedInode() *stagedInode {
	if t.nInodes == len(t.inodes) {
		t.inodes = append(t.inodes, new(stagedInode))
	}
	n := t.inodes[t.nInodes]
	t.nInodes++
	*n = stagedInode{}
	return n
}

// inode loads an inode that an op names, ErrNotFound if it does not exist.
func (t *txn) inode(ino Ino) (*stagedInode, error) {
	if ino == Created {
		if t.created == 0 {
			return nil, fmt.Errorf("%w: nothing created before", ErrInvalid)
		}
		ino = t.created
	}
	for _, n := range t.inodes[:t.nInodes] {
		if n.ino == ino {
			if !n.alive {
				return nil, ErrNotFound
			}
			return n, nil
		}
	}
	n := t.newStagedInode()
	ok, err := t.load(ino, &n.record)
	if !ok || err != nil {
		t.nInodes--
		if err != nil {
			return nil, t.fail(err)
		}
		return nil, ErrNotFound
	}
	n.old, n.stored, n.alive = n.record, true, true
	return n, nil
}

// load reads an inode as it was before the command.
func (t *txn) load(ino Ino, r *record) (bool, error) {
	t.s.mu.RLock()
	if e, tail, ok := t.s.cache.inode(ino); ok {
		r.attrs, r.tail = e.attrs, tail
		t.s.mu.RUnlock()
		return true, nil
	}
	t.s.mu.RUnlock()
	var ok bool
	var err error
	*r, ok, err = loadInode(t.s.db, ino)
	return ok, err
}

func loadInode(db pebble.Reader, ino Ino) (record, bool, error) {
	value, closer, err := db.Get(inodeKey(nil, ino))
	if errors.Is(err, pebble.ErrNotFound) {
		return record{}, false, nil
	}
	if err != nil {
		return record{}, false, err
	}
	r, err := decodeInode(ino, value)
	err = errors.Join(err, closer.Close())
	return r, err == nil, err
}

// dir loads a directory in which names may be changed.
func (t *txn) dir(ino Ino) (*stagedInode, error) {
	n, err := t.inode(ino)
	switch {
	case err != nil:
		return nil, err
	case !n.isDir():
		return nil, ErrNotDir
	case n.nlink == 0: // removed, but still open somewhere
		return nil, ErrNotFound
	}
	return n, nil
}

// entry loads a name, which need not exist.
func (t *txn) entry(parent *stagedInode, name string) (*stagedEntry, error) {
	k := nameKey{parent: parent.ino}
	k.hash, k.check = t.s.hashName(name)
	for _, e := range t.entries[:t.nEntries] {
		if e.key == k {
			return e, nil
		}
	}
	d, err := t.loadEntry(k, name, !parent.stored)
	if err != nil {
		return nil, t.fail(err)
	}
	if t.nEntries == len(t.entries) {
		t.entries = append(t.entries, new(stagedEntry))
	}
	e := t.entries[t.nEntries]
	t.nEntries++
	*e = stagedEntry{key: k, name: name, old: d, dentry: d}
	return e, nil
}

// loadEntry reads an entry as it was before the command; its inode number is 0
// if there is none.
func (t *txn) loadEntry(k nameKey, name string, newDir bool) (dentry, error) {
	if newDir {
		return dentry{}, nil
	}
	t.s.mu.RLock()
	d, known := t.s.cache.entry(k)
	t.s.mu.RUnlock()
	if known {
		return d, nil
	}
	t.keyBuf = dentryKey(t.keyBuf[:0], k.parent, k.hash, name)
	return loadEntry(t.s.db, t.keyBuf)
}

func loadEntry(db pebble.Reader, key []byte) (dentry, error) {
	value, closer, err := db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return dentry{}, nil
	}
	if err != nil {
		return dentry{}, err
	}
	d, err := decodeDentry(value)
	return d, errors.Join(err, closer.Close())
}

// touch prepares an inode for a change: it decides whether the present value
// moves to history. One that began less than a minute of log time ago, and that
// no snapshot shows, is overwritten in place: what replaces it takes over its
// beginning, so that history holds at most one version of an inode a minute.
func (t *txn) touch(n *stagedInode) {
	if n.touched {
		return
	}
	n.dirty, n.touched = true, true
	if !n.stored {
		return
	}
	if t.logTime-n.beganTime >= coalesce || t.pinned(n.began) || t.collect.shows(n.began) {
		n.history = true
		n.began, n.beganTime = t.index, t.logTime
	}
}

// change is touch for a change that shows in ctime.
func (t *txn) change(n *stagedInode) {
	t.touch(n)
	n.ctime = t.now
}

// changeEntries is change for a directory whose entries change by delta.
func (t *txn) changeEntries(dir *stagedInode, delta int64) {
	t.change(dir)
	dir.size += delta
	dir.mtime, dir.mtimeAt = t.now, 0
	dir.version = t.index
}

// write puts all that changed into the batch.
func (t *txn) write(b *pebble.Batch) error {
	for _, n := range t.inodes[:t.nInodes] {
		if err := t.writeInode(b, n); err != nil {
			return err
		}
	}
	for _, e := range t.entries[:t.nEntries] {
		if err := t.writeEntry(b, e); err != nil {
			return err
		}
	}
	for _, v := range t.values.all {
		if err := t.writeValue(b, v); err != nil {
			return err
		}
	}
	if err := t.trim.write(b); err != nil {
		return err
	}
	if err := errors.Join(t.writeTime(b), t.writeOutcome(b)); err != nil {
		return err
	}
	if t.place != (Position{}) {
		t.meta.position = t.place
	}
	t.keyBuf = tagKey(t.keyBuf[:0], tagMeta)
	return b.Set(t.keyBuf, t.s.enc.encodeMeta(&t.meta), nil)
}

func (t *txn) writeInode(b *pebble.Batch, n *stagedInode) error {
	if !n.dirty || !n.stored && !n.alive {
		return nil
	}
	enc := &t.s.enc
	t.keyBuf = inodeKey(t.keyBuf[:0], n.ino)
	if n.stored && (n.history || !n.alive) {
		if err := t.writeHistory(b, t.keyBuf, enc.encodeInode(&n.old)); err != nil {
			return err
		}
	}
	if !n.alive && n.old.xattrNames > 0 {
		if err := t.writeReapedXattrs(b, n); err != nil {
			return err
		}
		t.keyBuf = inodeKey(t.keyBuf[:0], n.ino)
	}
	if err := t.writePatches(b, n); err != nil {
		return err
	}
	wasOrphan, isOrphan := n.stored && n.old.nlink == 0, n.alive && n.nlink == 0
	if wasOrphan != isOrphan {
		key := numberKey(nil, tagOrphan, uint64(n.ino))
		if err := setOrDelete(b, key, isOrphan, nil); err != nil {
			return err
		}
	}
	if n.alive {
		return b.Set(t.keyBuf, enc.encodeInode(&n.record), nil)
	}
	return b.Delete(t.keyBuf, nil)
}

func (t *txn) writeEntry(b *pebble.Batch, e *stagedEntry) error {
	if e.dentry == e.old {
		return nil
	}
	enc := &t.s.enc
	t.keyBuf = dentryKey(t.keyBuf[:0], e.key.parent, e.key.hash, e.name)
	if e.old.ino != 0 {
		if err := t.writeHistory(b, t.keyBuf, enc.encodeDentry(e.old)); err != nil {
			return err
		}
	}
	if e.exists() {
		return b.Set(t.keyBuf, enc.encodeDentry(e.dentry), nil)
	}
	return b.Delete(t.keyBuf, nil)
}

func (t *txn) writeValue(b *pebble.Batch, v *stagedValue) error {
	if bytes.Equal(v.old, v.value) {
		return nil
	}
	if v.old != nil && v.key[1] == tagXattr {
		if err := t.writeHistory(b, v.key, v.old); err != nil {
			return err
		}
	}
	return setOrDelete(b, v.key, v.value != nil, v.value)
}

// writeTime adds to the time index, at most once a minute of log time. Log time is
// that of meta: a repetition of an earlier command does not move it.
func (t *txn) writeTime(b *pebble.Batch) error {
	now := t.meta.logTime
	if t.result.Err != nil || t.meta.indexedTime/timeStep == now/timeStep && t.meta.indexedTime > 0 {
		return nil
	}
	t.meta.indexedTime = now
	key := numberKey(nil, tagTime, uint64(now))
	return b.Set(key, binary.BigEndian.AppendUint64([]byte{formatVersion}, t.index), nil)
}

func setOrDelete(b *pebble.Batch, key []byte, set bool, value []byte) error {
	if set {
		return b.Set(key, value, nil)
	}
	return b.Delete(key, nil)
}

// publish brings the State and its cache up to what was committed. The caller
// holds State.mu.
func (t *txn) publish() error {
	s, c := t.s, &t.s.cache
	s.meta, s.snapshots, s.collect = t.meta, t.snapshots, t.collect
	for _, n := range t.inodes[:t.nInodes] {
		if n.dirty {
			c.changed(n.ino, t.index)
		}
		if !n.alive {
			c.removeInode(n.ino)
			continue
		}
		e := c.putInode(&n.record)
		if !n.stored && n.isDir() {
			e.known = allKnown
		}
	}
	for _, e := range t.entries[:t.nEntries] {
		if e.exists() {
			*c.dentries.put(e.key) = e.dentry
		} else {
			c.dentries.remove(e.key)
		}
	}
	return t.publishCluster()
}
