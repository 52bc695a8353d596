package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/mem"
	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// errNoMajority is what a node's log says when it is cut off, or an answer is lost.
var errNoMajority = errors.New("no majority in time")

// hub is a log in memory that several nodes apply, and the blocks that they share.
type hub struct {
	t      testing.TB
	blocks counted
	nodes  []*member
	gc     round
	ahead  atomic.Int64 // of the clock of all nodes

	mu   sync.Mutex
	more *sync.Cond
	log  []*namespace.Command
	over bool
}

// counted counts what is read from it and written to it.
type counted struct {
	mem.Store
	gets, puts atomic.Int64
	stall      atomic.Pointer[chan struct{}] // until it is closed nothing is stored
}

func (s *counted) Put(ctx context.Context, blocks ...cas.Block) error {
	if stall := s.stall.Load(); stall != nil {
		<-*stall
	}
	s.puts.Add(int64(len(blocks)))
	return s.Store.Put(ctx, blocks...)
}

func (s *counted) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	s.gets.Add(1)
	return s.Store.Get(ctx, c, buf)
}

// member is a node: a volume over its own namespace.
type member struct {
	*rig
	hub     *hub
	peer    p2p.PeerID
	db      *index.DB
	session atomic.Uint64

	refusals atomic.Int64 // of changes of content, because others came first

	proposing func(*namespace.Command)                // is called first
	observing atomic.Pointer[func(*namespace.Change)] // is told before the volume
	unseen    atomic.Bool                             // nobody is told

	// Guarded by hub.mu.
	applied    int
	answers    map[int]namespace.Result // of commands that somebody here waits for
	waiting    map[int]bool
	cut        bool // reaches nobody, and is not reached
	deaf       bool // its proposals count, but it does not learn it in time
	hasty      bool // it does not even wait for it
	seq        uint64
	unanswered map[uint64]bool // proposals without an answer
	recovery   sync.Map        // name to *bytes.Buffer
}

func newHub(t testing.TB, n int) *hub {
	h := &hub{t: t}
	h.more = sync.NewCond(&h.mu)
	h.blocks.Touched = h.gc.recorder().Promised
	for i := range n {
		h.nodes = append(h.nodes, h.newMember(i))
	}
	h.append(&namespace.FoundCluster{ID: fmt.Sprintf("%032x", 7), First: h.member(0)})
	h.append(&namespace.AddInvite{ID: namespace.InviteID{1}, Expires: 1 << 62, Uses: n, Role: p2p.RoleStorage})
	for i := range n - 1 {
		h.append(&namespace.Redeem{Invite: namespace.InviteID{1}, Member: h.member(i + 1)})
	}
	for _, m := range h.nodes {
		m.newSession()
		m.Share(m)
		m.must(m.Start(t.Context()))
	}
	t.Cleanup(h.close)
	return h
}

func (h *hub) member(i int) p2p.Member {
	return p2p.Member{ID: p2p.PeerID(fmt.Sprint("node", i)), Name: fmt.Sprint("node", i), Role: p2p.RoleStorage, State: p2p.Active, Capacity: 1}
}

func (h *hub) newMember(i int) *member {
	t := h.t
	m := &member{rig: &rig{t: t}, hub: h, peer: h.member(i).ID,
		answers: make(map[int]namespace.Result), waiting: make(map[int]bool), unanswered: make(map[uint64]bool)}
	fs, quiet := vfs.NewMem(), slog.New(slog.DiscardHandler)
	var err error
	m.db, err = index.Open(index.Options{FS: fs, Dir: "index", Logger: quiet})
	m.must(err)
	m.journal, err = journal.Open(journal.Options{FS: fs, Dir: "journal", Logger: quiet})
	m.must(err)
	m.must(m.journal.Replay(0, 0, func(journal.Record) error { return nil }))
	m.state, err = namespace.Open(m.db.Pebble(), namespace.Options{})
	m.must(err)
	m.Volume = New(Options{
		Store: &h.blocks, Format: testFormat(t), State: m.state, Log: m, Journal: m.journal,
		Usage:        func() (Usage, error) { return Usage{Total: 1 << 40, Free: 1 << 39, Avail: 1 << 39}, nil },
		Now:          func() time.Time { return time.Now().Add(time.Duration(h.ahead.Load())) },
		SyncInterval: time.Hour, shareMin: 8 << 10, patchFold: 6, Logger: quiet,
		Recover: func(name string) (io.WriteCloser, error) {
			b := &recovered{}
			m.recovery.Store(name, b)
			return b, nil
		},
	})
	m.state.Observe(func(c *namespace.Change) {
		if fn := m.observing.Load(); fn != nil {
			(*fn)(c)
		}
	})
	m.state.Observe(func(c *namespace.Change) {
		if !m.unseen.Load() {
			m.Observe(c)
		}
	})
	go m.apply()
	return m
}

type recovered struct{ bytes.Buffer }

func (*recovered) Close() error { return nil }

func (h *hub) close() {
	for _, m := range h.nodes {
		h.mu.Lock()
		m.cut, m.deaf = false, false
		h.more.Broadcast()
		h.mu.Unlock()
	}
	for _, m := range h.nodes {
		if err := m.Volume.Close(context.Background()); err != nil {
			h.t.Error(err)
		}
	}
	h.mu.Lock()
	h.over = true
	h.more.Broadcast()
	for _, m := range h.nodes {
		for m.applied >= 0 {
			h.more.Wait()
		}
	}
	h.mu.Unlock()
	for _, m := range h.nodes {
		if err := errors.Join(m.journal.Close(), m.db.Close()); err != nil {
			h.t.Error(err)
		}
	}
}

// patches counts the patches and folds in the log.
func (h *hub) patches() (patches, folds int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.log {
		for _, op := range c.Ops {
			switch op.(type) {
			case *namespace.PatchContent:
				patches++
			case *namespace.FoldContent:
				folds++
			}
		}
	}
	return patches, folds
}

// append puts a command into the log.
func (h *hub) append(ops ...namespace.Op) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = append(h.log, &namespace.Command{Ops: ops})
	h.more.Broadcast()
	return len(h.log)
}

// apply carries out what is in the log.
func (m *member) apply() {
	h := m.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		for !h.over && (m.cut || m.applied == len(h.log)) {
			h.more.Wait()
		}
		if h.over {
			m.applied = -1
			h.more.Broadcast()
			return
		}
		i := m.applied + 1
		c := h.log[i-1]
		h.mu.Unlock()
		res, err := m.state.Apply(uint64(i), c)
		h.mu.Lock()
		if err != nil {
			h.t.Error(err)
		}
		if m.applied = i; m.waiting[i] {
			m.answers[i] = res
		}
		h.more.Broadcast()
	}
}

// Propose is that of the node's log.
func (m *member) Propose(_ context.Context, c *namespace.Command) (namespace.Result, error) {
	h := m.hub
	if m.proposing != nil {
		m.proposing(c)
	}
	session := namespace.SessionID(m.session.Load())
	if session == 0 {
		return namespace.Result{}, namespace.ErrSession
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.cut {
		return namespace.Result{}, errNoMajority
	}
	c.Session, c.Seq = session, m.seq
	m.seq++
	m.unanswered[c.Seq] = true
	c.Acked = c.Seq
	for seq := range m.unanswered {
		c.Acked = min(c.Acked, seq)
	}
	h.log = append(h.log, c)
	h.more.Broadcast()
	i := len(h.log)
	defer delete(m.unanswered, c.Seq)
	m.waiting[i] = true
	for m.applied < i && !m.cut && !m.hasty {
		h.more.Wait()
	}
	res, ok := m.answers[i]
	delete(m.answers, i)
	delete(m.waiting, i)
	if errors.Is(res.Err, namespace.ErrConflict) || errors.Is(res.Err, namespace.ErrTurn) {
		// Whoever folds patches too late has nothing left to do.
		if _, fold := c.Ops[0].(*namespace.FoldContent); !fold {
			m.refusals.Add(1)
		}
	}
	if m.deaf || !ok {
		return namespace.Result{}, errNoMajority
	}
	return res, nil
}

func (m *member) Sync(context.Context) error { return nil }

func (m *member) Session() namespace.SessionID { return namespace.SessionID(m.session.Load()) }

func (m *member) Barrier(context.Context) error {
	h := m.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	for to := len(h.log); m.applied < to; h.more.Wait() {
		if m.cut {
			return errNoMajority
		}
	}
	if m.cut {
		return errNoMajority
	}
	return nil
}

// newSession opens a session, as a node does before it uses the volume.
func (m *member) newSession() {
	i := m.hub.append(&namespace.OpenSession{Peer: m.peer})
	m.must(m.Barrier(context.Background()))
	m.hub.mu.Lock()
	m.seq, m.unanswered = 0, make(map[uint64]bool)
	m.hub.mu.Unlock()
	m.session.Store(uint64(i))
}

// loseSession is what a node does whose session the others have ended.
func (m *member) loseSession() {
	m.hub.append(&namespace.EndSession{Session: m.Session()})
	m.session.Store(0)
	m.SessionEnded()
}

func (m *member) setCut(cut bool) {
	m.hub.mu.Lock()
	defer m.hub.mu.Unlock()
	m.cut = cut
	m.hub.more.Broadcast()
}

func (m *member) setDeaf(deaf bool) {
	m.hub.mu.Lock()
	defer m.hub.mu.Unlock()
	m.deaf = deaf
}

func (m *member) find(name string) namespace.Ino {
	m.t.Helper()
	a, err := m.Lookup(context.Background(), namespace.RootIno, name)
	if err != nil {
		m.t.Fatalf("%s: look up %q: %v", m.peer, name, err)
	}
	return a.Ino
}

// openFile opens a file by name, as a program does.
func (m *member) openFile(name string, flags uint32) *Handle {
	m.t.Helper()
	h, err := m.Open(context.Background(), m.find(name), flags)
	m.must(err)
	h.Answered()
	return h
}

// create makes a file with the given content and closes it.
func (m *member) createFile(name string, content []byte) {
	m.t.Helper()
	_, h, err := m.Create(context.Background(), namespace.RootIno, name, 0o644, syscall.O_RDWR, Caller{})
	m.must(err)
	h.Answered()
	m.put(h, content, 0)
	m.closeFile(h)
}

func (m *member) put(h *Handle, p []byte, off int64) {
	m.t.Helper()
	if n, err := h.Write(context.Background(), p, off); err != nil || n != len(p) {
		m.t.Fatalf("%s: write %d bytes at %d: %d, %v", m.peer, len(p), off, n, err)
	}
}

func (m *member) closeFile(h *Handle) {
	m.t.Helper()
	m.must(h.Flush(context.Background()))
	h.Release()
}

func (m *member) content(h *Handle) []byte {
	m.t.Helper()
	a, err := m.GetAttr(context.Background(), h.Ino())
	m.must(err)
	p := make([]byte, a.Size+10)
	n, err := h.Read(context.Background(), p, 0)
	m.must(err)
	return p[:n]
}

// shows fails the test unless opening the file shows the content.
func (m *member) shows(name string, want []byte) {
	m.t.Helper()
	h := m.openFile(name, syscall.O_RDONLY)
	defer h.Release()
	if got := m.content(h); !bytes.Equal(got, want) {
		m.t.Fatalf("%s: %q holds %s, want %s", m.peer, name, brief(got), brief(want))
	}
}

func brief(p []byte) string {
	if len(p) <= 200 {
		return fmt.Sprintf("%d bytes %q", len(p), p)
	}
	return fmt.Sprintf("%d bytes %q...", len(p), p[:200])
}

// eventually waits for something that happens on another goroutine.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in time", what)
		}
	}
}
