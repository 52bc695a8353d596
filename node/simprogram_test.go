//go:build simulation

package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/node/control"
	"github.com/cairnfs/cairn/volume"
)

// Programs use three kinds of files, and pins.
//
// A register is a name that is made to stand for a new file by rename, as editors do
// it, or removed; what programs find there must be explained by one order of all
// these. Tokens are appended to two files that all share, to one under a lock and to
// the other with O_APPEND: each that was acknowledged is there once, each other at
// most once. Each version of a register and each token is unlike all others.

const (
	registers = 4
	tokenSize = 32
	appended  = "appended"
	locked    = "locked"
)

// history is what programs did and were told.
type history struct {
	mu       sync.Mutex
	tick     int64 // orders calls and returns
	versions uint64
	ops      []porcupine.Operation
	tokens   map[string]map[string]bool // by file; false: not acknowledged
	pins     map[cas.CID]string
	counts   map[string]int
}

func (h *history) init() {
	h.tokens = map[string]map[string]bool{appended: {}, locked: {}}
	h.pins = make(map[cas.CID]string)
	h.counts = make(map[string]int)
}

// acknowledged returns the tokens of a file that must be in it from now on.
func (h *history) acknowledged(file string) (all []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for token, is := range h.tokens[file] {
		if is {
			all = append(all, token)
		}
	}
	return all
}

func (h *history) now() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tick++
	return h.tick
}

func (h *history) version() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.versions++
	return h.versions
}

// program is a process on a node.
type program struct {
	p   *process
	w   *world
	n   *Node
	v   *volume.Volume
	i   int
	rng *rand.Rand
	own uint64 // of its locks
}

var owners atomic.Uint64 // whom locks belong to

func newProgram(p *process, n *Node, i int) *program {
	return &program{p: p, w: p.m.w, n: n, v: n.Volume(), i: i, rng: rand.New(rand.NewPCG(p.seed, 20+uint64(i))), own: owners.Add(1)}
}

func (g *program) over() bool { return g.p.ctx.Err() != nil || g.w.healed.Load() }

func (g *program) run() {
	for !g.over() {
		pause := 800 * time.Millisecond
		if g.w.quiet.Load() {
			pause = 40 * time.Second
		}
		select {
		case <-g.p.ctx.Done():
			return
		case <-time.After(time.Duration(g.rng.Int64N(int64(pause)))):
		}
		if g.over() {
			return
		}
		var what string
		var err error
		switch g.rng.IntN(12) {
		case 0, 1, 2:
			what, err = "write", g.write(g.rng.IntN(registers))
		case 3, 4, 5:
			what, err = "read", g.read(g.rng.IntN(registers))
		case 6:
			what, err = "unlink", g.unlink(g.rng.IntN(registers))
		case 7, 8:
			what, err = "append", g.append()
		case 9, 10:
			what, err = "lock", g.locked()
		case 11:
			what, err = "pin", g.pin()
		}
		g.w.count(what, err)
		if err != nil {
			g.w.note("%s: %s: %v", g.p.m.name, what, err)
		}
	}
}

func (h *history) count(what string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		what += " failed"
	}
	h.counts[what]++
}

// body is the content of a version.
func body(version uint64) []byte {
	sizes := []int{20, 500, 3000, 9000, 40_000, 120_000}
	rng := rand.New(rand.NewPCG(version, 30))
	head := fmt.Sprintf("%019d\n", version)
	return append([]byte(head), castest.Bytes(version, sizes[rng.IntN(len(sizes))])...)
}

// versionOf returns the version that a content is of, or fails.
func (g *program) versionOf(content []byte) uint64 {
	var version uint64
	_, err := fmt.Sscanf(string(content[:min(20, len(content))]), "%d\n", &version)
	if err != nil || !bytes.Equal(content, body(version)) {
		g.w.failf("%s reads %d bytes that nobody wrote, beginning with %q", g.p.m.name, len(content), content[:min(len(content), 40)])
	}
	return version
}

// operation of a register.
type operation struct {
	register int
	write    bool
	version  uint64 // written; 0 is no file
}

// record takes note of an operation that began at call. Without an answer that
// counts, a write may have happened or not, and nothing was read.
func (g *program) record(op operation, call int64, read uint64, err error) {
	w := g.w
	w.history.mu.Lock()
	defer w.history.mu.Unlock()
	w.tick++
	o := porcupine.Operation{Input: op, Output: read, Call: call, Return: w.tick}
	if counts := g.p.alive(func() {}); err != nil || !counts {
		if !op.write {
			return
		}
		o.Return = math.MaxInt64
	}
	w.ops = append(w.ops, o)
}

// create makes a file with some content that is secured as close or fsync do.
func (g *program) create(ctx context.Context, name string, content []byte) error {
	_, h, err := g.v.Create(ctx, namespace.RootIno, name, 0o644, syscall.O_WRONLY, volume.Caller{})
	if err != nil {
		return err
	}
	defer h.Release()
	for off := 0; off < len(content); {
		part := content[off:min(len(content), off+1+g.rng.IntN(60_000))]
		if _, err := h.Write(ctx, part, int64(off)); err != nil {
			return err
		}
		off += len(part)
	}
	return g.secure(ctx, h)
}

// secure closes a file, or syncs it before. On a node alone, close promises nothing.
func (g *program) secure(ctx context.Context, h *volume.Handle) error {
	if g.n.log.cluster() != nil && g.rng.IntN(2) == 0 {
		return h.Flush(ctx)
	}
	return h.Fsync(ctx, g.rng.IntN(2) == 0)
}

func register(i int) string { return fmt.Sprint("register", i) }

func (g *program) write(i int) error {
	ctx := context.Background()
	version := g.w.version()
	temp := fmt.Sprintf("%s.%d", register(i), version)
	if err := g.create(ctx, temp, body(version)); err != nil {
		return err // nothing has happened
	}
	call := g.w.now()
	err := g.v.Rename(ctx, namespace.RootIno, temp, namespace.RootIno, register(i), 0)
	if err == nil {
		err = g.v.SyncDir(ctx, namespace.RootIno)
	}
	g.record(operation{register: i, write: true, version: version}, call, 0, err)
	return err
}

func (g *program) unlink(i int) error {
	ctx := context.Background()
	call := g.w.now()
	err := g.v.Unlink(ctx, namespace.RootIno, register(i))
	none := errors.Is(err, namespace.ErrNotFound)
	if err == nil || none {
		if syncErr := g.v.SyncDir(ctx, namespace.RootIno); syncErr != nil {
			err, none = syncErr, false
		}
	}
	if none {
		g.record(operation{register: i}, call, 0, nil)
		return nil
	}
	g.record(operation{register: i, write: true}, call, 0, err)
	return err
}

// barrier waits until what was acknowledged anywhere is here.
func (g *program) barrier(ctx context.Context) error {
	if group := g.n.log.cluster(); group != nil {
		return group.Barrier(ctx)
	}
	return nil
}

func (g *program) session() namespace.SessionID {
	if group := g.n.log.cluster(); group != nil {
		return group.Session()
	}
	return 0
}

// open opens a file by its name as the kernel does, which is told when the name has
// come to stand for another file.
func (g *program) open(ctx context.Context, name string, flags uint32) (*volume.Handle, error) {
	for {
		a, err := g.v.Lookup(ctx, namespace.RootIno, name)
		if err != nil {
			return nil, err
		}
		h, err := g.v.Open(ctx, a.Ino, flags)
		if err != nil && !errors.Is(err, namespace.ErrNotFound) {
			return nil, err
		}
		again, lookupErr := g.v.Lookup(ctx, namespace.RootIno, name)
		if err == nil && lookupErr == nil && again.Ino == a.Ino {
			return h, nil
		}
		if h != nil {
			h.Release()
		}
	}
}

func readAll(ctx context.Context, h *volume.Handle) ([]byte, error) {
	var all []byte
	p := make([]byte, 50_000)
	for {
		n, err := h.Read(ctx, p, int64(len(all)))
		all = append(all, p[:n]...)
		if err != nil || n < len(p) {
			return all, err
		}
	}
}

func (g *program) read(i int) error {
	ctx := context.Background()
	call := g.w.now()
	version, err := g.readRegister(ctx, i)
	g.record(operation{register: i}, call, version, err)
	return err
}

func (g *program) readRegister(ctx context.Context, i int) (version uint64, err error) {
	if err := g.barrier(ctx); err != nil {
		return 0, err
	}
	h, err := g.open(ctx, register(i), syscall.O_RDONLY)
	if errors.Is(err, namespace.ErrNotFound) {
		return 0, g.v.SyncDir(ctx, namespace.RootIno)
	}
	if err != nil {
		return 0, err
	}
	defer h.Release()
	content, err := readAll(ctx, h)
	if err != nil {
		return 0, err
	}
	return g.versionOf(content), g.v.SyncDir(ctx, namespace.RootIno)
}

// shared opens a file that all use, or makes it.
func (g *program) shared(ctx context.Context, name string, flags uint32) (*volume.Handle, error) {
	h, err := g.open(ctx, name, flags)
	if errors.Is(err, namespace.ErrNotFound) {
		_, h, err = g.v.Create(ctx, namespace.RootIno, name, 0o644, flags, volume.Caller{})
		if errors.Is(err, namespace.ErrExist) {
			h, err = g.open(ctx, name, flags)
		}
	}
	return h, err
}

// token returns a token that is about to be written.
func (g *program) token(file string) string {
	h := &g.w.history
	token := fmt.Sprintf("%s.%d %020d", g.p.m.name, g.i, h.version())
	token = fmt.Sprintf("%-*s\n", tokenSize-1, token)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tokens[file][token] = false
	return token
}

// wrote takes note that a token was acknowledged.
func (g *program) wrote(file string, tokens ...string) {
	h := &g.w.history
	h.mu.Lock()
	defer h.mu.Unlock()
	g.p.alive(func() {
		for _, token := range tokens {
			h.tokens[file][token] = true
		}
	})
}

// finds checks what was read in a file of tokens, unless nobody has read it: what goes
// on in a process that has lost its power has no meaning.
func (g *program) finds(file string, content []byte, must []string) {
	if g.p.alive(func() {}) {
		g.w.has(g.p.m.name, file, content, must)
	}
}

// has checks that a content consists of tokens, each once, and has all of must.
func (w *world) has(who, file string, content []byte, must []string) {
	seen := make(map[string]bool)
	w.history.mu.Lock()
	defer w.history.mu.Unlock()
	for rest := content; len(rest) > 0; {
		token := string(rest[:min(tokenSize, len(rest))])
		rest = rest[len(token):]
		if _, known := w.tokens[file][token]; !known {
			w.failf("%s reads in %s at %d: %q, which nobody wrote so", who, file, len(content)-len(rest)-len(token), token)
			return
		}
		if seen[token] {
			w.failf("%s reads %q twice in %s", who, token, file)
		}
		seen[token] = true
	}
	for _, token := range must {
		if !seen[token] {
			w.failf("%s does not read %q in %s, which was acknowledged", who, token, file)
		}
	}
}

func (g *program) append() error {
	ctx := context.Background()
	must := g.w.acknowledged(appended)
	if g.rng.IntN(3) == 0 {
		if err := g.barrier(ctx); err != nil {
			return err
		}
		h, err := g.shared(ctx, appended, syscall.O_RDWR)
		if err != nil {
			return err
		}
		defer h.Release()
		content, err := readAll(ctx, h)
		if err == nil {
			g.finds(appended, content, must)
		}
		return err
	}
	h, err := g.shared(ctx, appended, syscall.O_WRONLY|syscall.O_APPEND)
	if err != nil {
		return err
	}
	defer h.Release()
	var tokens []string
	for range 1 + g.rng.IntN(3) {
		token := g.token(appended)
		if _, err := h.Write(ctx, []byte(token), 0); err != nil {
			return err
		}
		tokens = append(tokens, token)
	}
	err = g.secure(ctx, h)
	if err == nil {
		err = g.v.SyncDir(ctx, namespace.RootIno)
	}
	if err == nil {
		g.wrote(appended, tokens...)
	}
	return err
}

func (g *program) locked() error {
	ctx := context.Background()
	h, err := g.shared(ctx, locked, syscall.O_RDWR)
	if err != nil {
		return err
	}
	defer h.Release()
	cancel := make(chan struct{})
	timer := time.AfterFunc(20*time.Second, func() { close(cancel) })
	defer timer.Stop()
	if err := h.WaitLock(cancel, volume.Lock{End: volume.MaxLockEnd, Write: true, Owner: g.own}); err != nil {
		return err
	}
	defer h.DropLocks(g.own)
	must := g.w.acknowledged(locked)
	content, err := readAll(ctx, h)
	if err != nil {
		return err
	}
	g.finds(locked, content, must)
	token := g.token(locked)
	g.w.note("%s.%d has the lock, reads %d tokens, session %d, writes %q", g.p.m.name, g.i, len(content)/tokenSize, g.session(), token)
	if _, err := h.Write(ctx, []byte(token), int64(len(content))); err != nil {
		return err
	}
	if g.rng.IntN(4) == 0 {
		time.Sleep(time.Duration(g.rng.Int64N(int64(3 * time.Second))))
	}
	if err = g.secure(ctx, h); err == nil {
		err = g.v.SyncDir(ctx, namespace.RootIno)
	}
	g.w.note("%s.%d gives up the lock: %v, session %d", g.p.m.name, g.i, err, g.session())
	if err == nil {
		g.wrote(locked, token)
	}
	return err
}

func (g *program) pin() error {
	ctx := context.Background()
	b, err := cas.NewBlock(cas.Raw, castest.Bytes(g.w.version(), 1+g.rng.IntN(20_000)))
	if err == nil {
		err = g.n.Put(ctx, b)
	}
	if err != nil {
		return err
	}
	name := fmt.Sprint("pin", g.w.version())
	err = g.n.Pin(ctx, control.Pin{CID: b.CID(), Name: name})
	if err == nil {
		g.w.history.mu.Lock()
		defer g.w.history.mu.Unlock()
		g.p.alive(func() { g.w.pins[b.CID()] = name })
	}
	return err
}
