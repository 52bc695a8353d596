//go:build linux

// Package fsx tests what a file system does with the bytes of a file. It performs
// random system calls on a file and the same changes on a model in memory, and
// compares: reads and writes of every kind, mappings, truncation, holes,
// allocation, copies, at offsets that like to lie near the boundaries of pages.
// A second file takes part as the other end of copies.
//
// What is done follows from the seed alone, as long as the file system answers
// right: a failure is replayed by running the same seed. The idea is that of the
// program of this name, with which file systems have been tested since 1991.
//
// A process that serves a mount must not run this on it: a page fault in the
// mapping would wait for the process that it stopped. Let a child do it.
package fsx

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
)

// Options say what to test, and for how long. Dir and Ops are required.
type Options struct {
	// Dir is a directory of the file system to test. The files made in it are
	// removed at the end, unless the test fails.
	Dir string
	// Seed determines what is done.
	Seed uint64
	// Ops is how many operations to perform.
	Ops int
	// Refused names operations that the file system need not support: that it
	// answers EOPNOTSUPP is then no failure. Names are those of the log.
	Refused []string
	// Remount is called now and then while no file is open; it may unmount and
	// mount. May be nil.
	Remount func() error `json:"-"`
	// Replay is the command that performs the same again, to be told with a
	// failure.
	Replay string
	// Log gets progress and, at the end, how often each operation was
	// performed. Default: none.
	Log *slog.Logger `json:"-"`
}

const (
	keptLog    = 30     // operations that a failure tells of
	comparedAt = 100    // operations between comparisons of all bytes
	reportAt   = 250000 // operations between lines of progress
	eraOps     = 400    // operations between changes of the files' sizes
)

// Run performs o.Ops operations. It fails at the first that has another outcome
// than it must, with the number of the operation, the seed, the first byte that
// differs and the operations before. It uses a few MiB of memory and of disk,
// however long it runs.
func Run(ctx context.Context, o Options) error { return newTester(o).run(ctx) }

// tester is the state of a run.
type tester struct {
	o      Options
	rnd    *rand.Rand
	files  [2]*file
	op     int      // the number of the current operation
	recent []string // what the last operations were
	done   map[string]int
	far    bool  // this era reaches beyond a GiB
	limit  int64 // this era's offsets otherwise lie below
	buf    []byte
	every  int // operations between comparisons of all bytes

	// disturb is called after each operation, for tests of the tester.
	disturb func(operation string, f *file)
}

func newTester(o Options) *tester {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &tester{o: o, rnd: rand.New(rand.NewPCG(o.Seed, 0)), done: make(map[string]int), limit: 256 << 10, every: comparedAt}
}

func (t *tester) run(ctx context.Context) (err error) {
	// Access to a mapping beyond the file's end becomes a panic, and that an error.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault, ok := recover().(error); ok {
			err = t.failure(fault)
		}
		for _, f := range t.files {
			if f != nil {
				err = errors.Join(err, f.close())
			}
		}
	}()
	for i, name := range []string{"fsx-a", "fsx-b"} {
		if t.files[i], err = createFile(t, t.o.Dir, name); err != nil {
			return err
		}
	}
	for t.op = range t.o.Ops {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stopped before operation %d of %d: %w", t.op, t.o.Ops, err)
		}
		if err := t.step(); err != nil {
			return t.failure(err)
		}
		if (t.op+1)%reportAt == 0 {
			t.o.Log.Info("so far so good", "dir", t.o.Dir, "seed", t.o.Seed, "operations", t.op+1)
		}
	}
	if err := t.compareAll(); err != nil {
		return t.failure(err)
	}
	t.o.Log.Info("done", "dir", t.o.Dir, "seed", t.o.Seed, "operations", t.done)
	for _, f := range t.files {
		if err := f.remove(); err != nil {
			return err
		}
	}
	return nil
}

// failure says what went wrong and how to see it again.
func (t *tester) failure(err error) error {
	return fmt.Errorf("operation %d of seed %d in %s: %w\nthe last operations:\n%s\nreplay with: %s",
		t.op, t.o.Seed, t.o.Dir, err, strings.Join(t.recent, "\n"), t.o.Replay)
}

// note remembers what the current operation is about to do.
func (t *tester) note(f *file, format string, args ...any) {
	if len(t.recent) == keptLog {
		t.recent = slices.Delete(t.recent, 0, 1)
	}
	t.recent = append(t.recent, fmt.Sprintf("%8d %s, of %#x bytes: ", t.op, f.name, f.model.size)+fmt.Sprintf(format, args...))
}

// step performs one operation and compares what it may have changed.
func (t *tester) step() error {
	if t.op%eraOps == eraOps-1 {
		return t.newEra()
	}
	f := t.files[0]
	if t.rnd.IntN(5) == 0 {
		f = t.files[1]
	}
	op := t.draw()
	if err := t.outcome(op.name, op.do(t, f)); err != nil {
		return err
	}
	if t.disturb != nil {
		t.disturb(op.name, f)
	}
	if err := f.compareSize(t.op%16 == 0); err != nil {
		return err
	}
	if t.op%t.every == 0 {
		return t.compareAll()
	}
	return nil
}

// outcome counts the operation, and returns err unless it may be refused.
func (t *tester) outcome(operation string, err error) error {
	switch {
	case err == nil:
		t.done[operation]++
	case errors.Is(err, syscall.EOPNOTSUPP) && slices.Contains(t.o.Refused, operation):
		t.done[operation+" refused"]++
	default:
		return fmt.Errorf("%s: %w", operation, err)
	}
	return nil
}

func (t *tester) compareAll() error {
	for _, f := range t.files {
		if err := f.compareAll(); err != nil {
			return err
		}
	}
	return nil
}

// newEra changes how large the files may become. What is larger is cut off, so
// that memory and disk are bounded.
func (t *tester) newEra() error {
	t.far, t.limit = false, 256<<10
	switch t.rnd.IntN(10) {
	case 0:
		t.far = true
	case 1, 2:
		t.limit = windowSize
	case 3:
		t.limit = 16 << 10
	}
	for _, f := range t.files {
		if f.model.size > t.limit {
			if err := f.truncate(t.rnd.Int64N(t.limit)); err != nil {
				return err
			}
		}
	}
	return nil
}
