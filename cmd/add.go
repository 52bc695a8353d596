package cmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/tree"
	"github.com/cairnfs/cairn/node/control"
)

func (a *app) addCmd() *cobra.Command {
	var f adder
	c := &cobra.Command{
		Use:     "add [-r] PATH…",
		GroupID: groupContent,
		Short:   "Store files or directories and print their CIDs",
		Long: `Add stores the content of files and prints "added CID NAME" for each. The CID
depends on the bytes only: the same bytes in the mounted filesystem have the
same one. A PATH of - is standard input.

With -r it also stores directories, with everything below: names, permission
bits, modification times, symbolic links as links. Every entry is printed, the
directory itself last. A PATH that is a symbolic link stands for what it points
to. A named pipe, socket or device below a directory is an error, since leaving
it out would make an incomplete copy.

What was added is pinned, so that it stays until "cairn pin rm". Whatever is
printed is on stable storage.`,
		Example: example(
			"cairn add report.pdf",
			"cairn add -r photos",
			"tar c src | cairn add -q -"),
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.with(c.Context(), true, func(n control.Node) error {
				f.app, f.node = a, n
				return f.run(c.Context(), args)
			})
		},
	}
	flags := c.Flags()
	flags.BoolVarP(&f.recursive, "recursive", "r", false, "store directories with everything below")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print only the CID of each PATH")
	flags.BoolVar(&f.json, "json", false, "print one JSON object a line: name, cid, size")
	return c
}

// Results are printed when they are durable. Making them so costs a few syncs of
// the disk, so it is done for all results of a while together.
const (
	maxPending  = 1000
	pendingTime = time.Second
)

// result is an entry that is stored, but not durable yet.
type result struct {
	tree.Entry
	root bool // a PATH itself, to be pinned
}

// adder is one run of add.
type adder struct {
	recursive, quiet, json bool

	app      *app
	node     control.Node
	dir      string // of the store
	store    fs.FileInfo
	skipped  atomic.Bool
	progress *progress
	pending  []result
	since    time.Time // when the first of them was stored
}

func (f *adder) run(ctx context.Context, paths []string) error {
	if err := f.findStore(); err != nil {
		return err
	}
	total, err := f.measure(ctx, paths)
	if err != nil {
		return err
	}
	if f.skipped.Load() {
		fmt.Fprintf(f.app.Err, "cairn: add: leaving out the data directory %s of the store itself\n", f.dir)
	}
	f.progress = f.app.newProgress("adding", total)
	defer f.progress.stop()
	for _, path := range paths {
		root, err := f.add(ctx, path)
		if err != nil {
			// What was added before counts: say so before failing.
			return errors.Join(f.commit(ctx), fail("add", path, err))
		}
		if err := f.stored(ctx, result{root, true}); err != nil {
			return err
		}
	}
	return f.commit(ctx)
}

// findStore remembers which directory is the store itself: adding it would make
// it grow while it is being read.
func (f *adder) findStore() (err error) {
	if f.dir, err = f.app.dir(); err != nil {
		return err
	}
	f.store, err = os.Stat(f.dir)
	return err
}

func (f *adder) isStore(info fs.FileInfo) bool {
	same := os.SameFile(info, f.store)
	if same {
		f.skipped.Store(true)
	}
	return same
}

// measure returns the bytes that paths hold, 0 if they cannot be known. What
// cannot be added is found here, before the work begins.
func (f *adder) measure(ctx context.Context, paths []string) (total int64, err error) {
	known := true
	for _, path := range paths {
		if path == "-" {
			known = false
			continue
		}
		if info, err := os.Stat(path); err == nil && os.SameFile(info, f.store) {
			return 0, fail("add", path, errors.New("it is the data directory of the store itself"))
		}
		size, err := tree.Measure(ctx, path, tree.AddOptions{Recursive: f.recursive, Skip: f.isStore})
		if errors.Is(err, tree.ErrIsDir) {
			err = &usageError{err: fail("add", path, errors.New("it is a directory; use -r to add it with everything below")), see: "cairn add"}
			return 0, err
		}
		if err != nil {
			return 0, fail("add", path, err)
		}
		total += size
	}
	if !known {
		total = 0
	}
	return total, nil
}

// add stores one path and takes what lies below it as results.
func (f *adder) add(ctx context.Context, path string) (tree.Entry, error) {
	o := tree.AddOptions{Recursive: f.recursive, Skip: f.isStore, Progress: f.progress.add}
	if path == "-" {
		return tree.AddStream(ctx, f.node, f.node.Format(), "-", newInput(ctx, f.app.In), o)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return tree.Entry{}, err
	}
	if !f.quiet {
		o.Below = func(e tree.Entry) error { return f.stored(ctx, result{e, false}) }
	}
	return tree.Add(ctx, f.node, f.node.Format(), abs, o)
}

// stored takes a result, and now and then prints those taken so far.
func (f *adder) stored(ctx context.Context, r result) error {
	if len(f.pending) == 0 {
		f.since = time.Now()
	}
	f.pending = append(f.pending, r)
	if len(f.pending) < maxPending && time.Since(f.since) < pendingTime {
		return nil
	}
	return f.commit(ctx)
}

// commit makes the pending results durable and prints them.
func (f *adder) commit(ctx context.Context) error {
	var pins []control.Pin
	for _, r := range f.pending {
		if r.root {
			pins = append(pins, control.Pin{CID: r.CID, Name: r.Name})
		}
	}
	var err error
	switch {
	case len(pins) > 0:
		err = fail("pin", pins[0].Name, f.node.Pin(ctx, pins...))
	case len(f.pending) > 0:
		err = fail("sync", f.dir, f.node.Sync(ctx))
	}
	if err != nil {
		return err
	}
	for _, r := range f.pending {
		if err := f.print(r.Entry); err != nil {
			return err
		}
	}
	f.pending = f.pending[:0]
	return nil
}

// added is an entry as --json prints it.
type added struct {
	Name string  `json:"name"`
	CID  cas.CID `json:"cid"`
	Size int64   `json:"size"`
}

func (f *adder) print(e tree.Entry) (err error) {
	f.progress.clear()
	switch {
	case f.json:
		err = json.NewEncoder(f.app.Out).Encode(added{e.Name, e.CID, e.Size})
	case f.quiet:
		_, err = fmt.Fprintln(f.app.Out, e.CID)
	default:
		_, err = fmt.Fprintln(f.app.Out, "added", e.CID, printable(e.Name))
	}
	return err
}
