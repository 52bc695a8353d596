package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
)

// work is something that is done in several places in turn.
type work struct {
	name  string
	floor bool // whether the place that keeps no bytes takes part
	run   func(context.Context, *rig, *place) (sample, error)
}

// works are in an order that lets each use what an earlier one has left, and
// leaves to the last what a mount is still busy with afterwards.
func works() []work {
	return []work{
		{name: "untar", floor: true, run: compareUntar},
		{name: "create", floor: true, run: compareCreate},
		{name: "find-cold", run: compareFindCold},
		{name: "find-warm", run: compareFindWarm},
		{name: "read-tree", run: compareReadTree},
		{name: "rm", run: compareRemove},
		{name: "append-fsync", run: compareAppendSync},
		{name: "create-fsync", run: compareCreateSync},
		{name: "seq-write", run: compareWrite},
		{name: "seq-read", run: compareRead},
		{name: "rand-read", run: compareReadRandom},
		{name: "rand-write", run: compareWriteRandom},
	}
}

// comparisons are the works in each place, ours last.
func comparisons() []measurement {
	var ms []measurement
	for _, w := range works() {
		places := []string{placeNative, placeLoopback}
		if w.floor {
			places = append(places, placeFloor)
		}
		var others []string
		for _, name := range append(places, placeMount) {
			m := measurement{name: name + "." + w.name, turns: w.name, repeats: 3, run: w.in(name)}
			if name == placeMount {
				m.peers = others
			}
			others = append(others, m.name)
			ms = append(ms, m)
		}
	}
	return ms
}

// in returns what does w in the place of that name.
func (w *work) in(name string) func(context.Context, *rig) (sample, error) {
	return func(ctx context.Context, r *rig) (sample, error) {
		p, err := r.place(ctx, name)
		if err != nil {
			return sample{}, err
		}
		return w.run(ctx, r, p)
	}
}

// newPath returns a path in p that has not been used.
func (r *rig) newPath(p *place, name string) string {
	return filepath.Join(p.dir, name+"-"+strconv.FormatUint(r.newSeed(), 10))
}

// measureIn is measureClient after all that was written before is on the disk,
// so that nothing pays for what another has left.
func (r *rig) measureIn(ctx context.Context, p *place, reqs ...request) (sample, error) {
	if err := r.settle(ctx, p); err != nil {
		return sample{}, err
	}
	return r.measureClient(ctx, reqs...)
}

// measureAfter is measureIn with the kernel's caches as forget leaves them.
func (r *rig) measureAfter(ctx context.Context, p *place, forget func(context.Context) error, req request) (sample, error) {
	if err := r.settle(ctx, p); err != nil {
		return sample{}, err
	}
	if err := forget(ctx); err != nil {
		return sample{}, err
	}
	return r.measureClient(ctx, req)
}

// settle brings what was written in p to the disk, and what else the disk's file
// system has not written yet.
func (r *rig) settle(ctx context.Context, p *place) error {
	c, err := r.client(ctx)
	if err != nil {
		return err
	}
	if _, err := c.do(request{Op: opSync, Path: p.dir}); err != nil {
		return err
	}
	return syncDisk(r.dir)
}

// sourceTree writes a tar file of a source tree whose content is new. It is in
// the kernel's cache and on the disk.
func (r *rig) sourceTree() (name string, entries int64, err error) {
	name = filepath.Join(r.dir, "tree.tar")
	f, err := os.Create(name)
	if err != nil {
		return "", 0, err
	}
	tree := newTree(int(r.entries()))
	err = writeTree(f, tree, r.newSeed())
	return name, int64(len(tree)), errors.Join(err, f.Sync(), f.Close())
}

func compareUntar(ctx context.Context, r *rig, p *place) (sample, error) {
	from, entries, err := r.sourceTree()
	if err != nil {
		return sample{}, err
	}
	tree := r.newPath(p, "tree")
	s, err := r.measureIn(ctx, p, request{Op: opUntar, Path: tree, From: from, Count: entries})
	if err == nil {
		p.trees = append(p.trees, tree)
	}
	return s, err
}

// tree returns a tree that has been extracted in p.
func (r *rig) tree(ctx context.Context, p *place) (string, error) {
	if len(p.trees) == 0 {
		if _, err := compareUntar(ctx, r, p); err != nil {
			return "", err
		}
	}
	return p.trees[len(p.trees)-1], nil
}

func compareFindCold(ctx context.Context, r *rig, p *place) (sample, error) {
	tree, err := r.tree(ctx, p)
	if err != nil {
		return sample{}, err
	}
	return r.measureAfter(ctx, p, p.remount, request{Op: opFind, Path: tree, Count: r.entries()})
}

func compareFindWarm(ctx context.Context, r *rig, p *place) (sample, error) {
	tree, err := r.tree(ctx, p)
	if err != nil {
		return sample{}, err
	}
	find := request{Op: opFind, Path: tree, Count: r.entries()}
	return r.measureIn(ctx, p, find, find)
}

func compareReadTree(ctx context.Context, r *rig, p *place) (sample, error) {
	tree, err := r.tree(ctx, p)
	if err != nil {
		return sample{}, err
	}
	return r.measureAfter(ctx, p, p.cool, request{Op: opReadTree, Path: tree, Count: r.entries()})
}

// compareRemove removes a tree that the kernel knows.
func compareRemove(ctx context.Context, r *rig, p *place) (sample, error) {
	tree, err := r.tree(ctx, p)
	if err != nil {
		return sample{}, err
	}
	p.trees = p.trees[:len(p.trees)-1]
	return r.measureIn(ctx, p,
		request{Op: opFind, Path: tree, Count: r.entries()},
		request{Op: opRemoveTree, Path: tree, Count: r.entries()})
}

func compareCreate(ctx context.Context, r *rig, p *place) (sample, error) {
	return r.measureIn(ctx, p, request{Op: opCreate, Path: p.dir, Count: r.entries(), Seed: r.newSeed()})
}

func compareAppendSync(ctx context.Context, r *rig, p *place) (sample, error) {
	return r.measureIn(ctx, p, request{Op: opAppendSync, Path: r.newPath(p, "log"), Count: r.syncs(), Seed: r.newSeed()})
}

func compareCreateSync(ctx context.Context, r *rig, p *place) (sample, error) {
	return r.measureIn(ctx, p, request{Op: opCreateSync, Path: p.dir, Count: r.syncs(), Seed: r.newSeed()})
}

// compareWrite writes a new file in place of the one before.
func compareWrite(ctx context.Context, r *rig, p *place) (sample, error) {
	if p.file != "" {
		c, err := r.client(ctx)
		if err != nil {
			return sample{}, err
		}
		if _, err := c.do(request{Op: opRemove, Path: p.file}); err != nil {
			return sample{}, err
		}
		p.file = ""
	}
	file := r.newPath(p, "file")
	s, err := r.measureIn(ctx, p, request{Op: opWrite, Path: file, Size: r.fileSize(), Seed: r.newSeed()})
	if err == nil {
		p.file = file
	}
	return s, err
}

// file returns a file of fileSize bytes in p.
func (r *rig) file(ctx context.Context, p *place) (string, error) {
	if p.file == "" {
		if _, err := compareWrite(ctx, r, p); err != nil {
			return "", err
		}
	}
	return p.file, nil
}

func compareRead(ctx context.Context, r *rig, p *place) (sample, error) {
	file, err := r.file(ctx, p)
	if err != nil {
		return sample{}, err
	}
	return r.measureAfter(ctx, p, p.cool, request{Op: opRead, Path: file, Size: r.fileSize()})
}

func compareReadRandom(ctx context.Context, r *rig, p *place) (sample, error) {
	file, err := r.file(ctx, p)
	if err != nil {
		return sample{}, err
	}
	return r.measureAfter(ctx, p, p.cool, request{Op: opReadRandom, Path: file, Size: r.fileSize(), Count: r.count(), Seed: r.newSeed()})
}

func compareWriteRandom(ctx context.Context, r *rig, p *place) (sample, error) {
	file, err := r.file(ctx, p)
	if err != nil {
		return sample{}, err
	}
	return r.measureIn(ctx, p, request{Op: opWriteRandom, Path: file, Size: r.fileSize(), Count: r.count(), Seed: r.newSeed()})
}
