package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/tree"
	"github.com/cairnfs/cairn/chunker"
	"github.com/cairnfs/cairn/node/control"
)

// paths are what the program does with bytes and names.
//
// Every byte that comes in or goes out is hashed, so BLAKE3 is a limit of all of
// them but for what the kernel has cached.
func paths() []measurement {
	return []measurement{
		{name: "chunk", limits: []string{limitBLAKE3}, repeats: 3, run: chunk},
		{name: "add-new", limits: []string{limitBLAKE3, limitDiskWrite}, repeats: 2, run: addNew},
		{name: "add-duplicate", limits: []string{limitBLAKE3}, repeats: 3, run: addDuplicate},
		{name: "get", limits: []string{limitBLAKE3}, repeats: 3, run: get},
		{name: "mount-write", limits: []string{limitBLAKE3, limitDiskWrite, limitFUSEWrite}, repeats: 2, run: mountWrite},
		{name: "mount-read-cold", limits: []string{limitBLAKE3, limitFUSERead}, repeats: 3, run: mountReadCold},
		{name: "mount-read-warm", limits: []string{limitMemcpy}, repeats: 3, run: mountReadWarm},
		{name: "mount-random-read", repeats: 3, run: mountReadRandom},
		{name: "mount-create", limits: []string{limitFUSECreate}, repeats: 3, run: mountCreate},
		{name: "mount-stat", repeats: 3, run: mountStat},
	}
}

// newSource writes a file to be added, which is new to the store. It is in the
// kernel's cache and on the disk, so that adding it neither waits for the disk
// nor competes with it.
func (r *rig) newSource() (string, error) {
	name := filepath.Join(r.dir, "source")
	f, err := os.Create(name)
	if err != nil {
		return "", err
	}
	err = newContent(r.newSeed()).writeTo(f, r.o.Size)
	return name, errors.Join(err, f.Sync(), f.Close())
}

// source returns the file that was added last.
func (r *rig) source(ctx context.Context) (string, error) {
	if !r.added.Defined() {
		if _, err := addNew(ctx, r); err != nil {
			return "", err
		}
	}
	return filepath.Join(r.dir, "source"), nil
}

// chunk reads a file, cuts it and hashes the chunks: what adding cannot do
// without.
func chunk(ctx context.Context, r *rig) (sample, error) {
	name, err := r.source(ctx)
	if err != nil {
		return sample{}, err
	}
	c, err := chunker.New(chunker.DefaultParams())
	if err != nil {
		return sample{}, err
	}
	s, err := measure(func() error {
		f, err := openRaw(name, unix.O_RDONLY)
		if err != nil {
			return err
		}
		return errors.Join(cutAll(f, c), f.Close(), ctx.Err())
	})
	s.bytes = r.o.Size
	return s, err
}

// cutAll cuts and hashes what it reads. The buffer is small enough to stay in the
// processor's cache.
func cutAll(f io.Reader, c *chunker.Chunker) error {
	buf := make([]byte, 1<<20)
	data := buf[:0]
	for eof := false; ; {
		if !eof && len(data) < c.Params().Max {
			n := copy(buf, data)
			m, err := io.ReadFull(f, buf[n:])
			switch err {
			case nil:
			case io.EOF, io.ErrUnexpectedEOF:
				eof = true
			default:
				return err
			}
			data = buf[:n+m]
		}
		if len(data) == 0 {
			return nil
		}
		n := c.Cut(data)
		if _, err := cas.NewBlock(cas.Raw, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
}

// add does what the command add does: store, and pin, which makes it durable.
func add(ctx context.Context, r *rig, name string) (sample, error) {
	n, err := r.openNode(ctx)
	if err != nil {
		return sample{}, err
	}
	s, err := measure(func() error {
		e, err := tree.Add(ctx, n, n.Format(), name, tree.AddOptions{})
		if err != nil {
			return err
		}
		r.added = e.CID
		return n.Pin(ctx, control.Pin{CID: e.CID, Name: e.Name})
	})
	s.bytes = r.o.Size
	return s, err
}

func addNew(ctx context.Context, r *rig) (sample, error) {
	name, err := r.newSource()
	if err != nil {
		return sample{}, err
	}
	return add(ctx, r, name)
}

func addDuplicate(ctx context.Context, r *rig) (sample, error) {
	name, err := r.source(ctx)
	if err != nil {
		return sample{}, err
	}
	return add(ctx, r, name)
}

// get does what the command get does, into a file.
func get(ctx context.Context, r *rig) (sample, error) {
	if _, err := r.source(ctx); err != nil {
		return sample{}, err
	}
	out := filepath.Join(r.dir, "got")
	s, err := measure(func() error { return tree.Get(ctx, r.node, r.added, out, tree.GetOptions{}) })
	s.bytes = r.o.Size
	if err != nil {
		return sample{}, err
	}
	info, err := os.Stat(out)
	if err == nil && info.Size() != r.o.Size {
		err = fmt.Errorf("got %d bytes instead of %d", info.Size(), r.o.Size)
	}
	return s, errors.Join(err, os.Remove(out))
}

// mountedFile returns the path of a file in the mount that has been written.
func (r *rig) mountedFile(ctx context.Context) (string, error) {
	if !r.written {
		if _, err := mountWrite(ctx, r); err != nil {
			return "", err
		}
	}
	p, err := r.place(ctx, placeMount)
	if err != nil {
		return "", err
	}
	return filepath.Join(p.dir, dataName), nil
}

func mountWrite(ctx context.Context, r *rig) (sample, error) {
	p, err := r.place(ctx, placeMount)
	if err != nil {
		return sample{}, err
	}
	s, err := r.measureClient(ctx, request{Op: opWrite, Path: filepath.Join(p.dir, dataName), Size: r.o.Size, Seed: r.newSeed()})
	r.written = err == nil
	return s, err
}

func mountReadCold(ctx context.Context, r *rig) (sample, error) {
	return r.readMounted(ctx, request{Op: opDrop}, request{Op: opRead, Size: r.o.Size})
}

func mountReadWarm(ctx context.Context, r *rig) (sample, error) {
	read := request{Op: opRead, Size: r.o.Size}
	return r.readMounted(ctx, read, read)
}

func mountReadRandom(ctx context.Context, r *rig) (sample, error) {
	return r.readMounted(ctx, request{Op: opDrop},
		request{Op: opReadRandom, Size: r.o.Size, Count: r.count(), Seed: r.newSeed()})
}

// readMounted has the client do the requests on a mounted file.
func (r *rig) readMounted(ctx context.Context, reqs ...request) (sample, error) {
	path, err := r.mountedFile(ctx)
	if err != nil {
		return sample{}, err
	}
	for i := range reqs {
		reqs[i].Path = path
	}
	return r.measureClient(ctx, reqs...)
}

func mountCreate(ctx context.Context, r *rig) (sample, error) {
	p, err := r.place(ctx, placeMount)
	if err != nil {
		return sample{}, err
	}
	return r.measureClient(ctx, request{Op: opCreate, Path: p.dir, Count: r.count(), Seed: r.newSeed()})
}

// mountStat asks for attributes that the kernel has cached. A kernel's answer is
// so fast that it takes many to measure it.
func mountStat(ctx context.Context, r *rig) (sample, error) {
	p, err := r.place(ctx, placeMount)
	if err != nil {
		return sample{}, err
	}
	seed, files := r.newSeed(), min(r.count(), 1000)
	return r.measureClient(ctx,
		request{Op: opCreate, Path: p.dir, Count: files, Seed: seed},
		request{Op: opStat, Path: p.dir, Count: files, Files: files, Seed: seed},
		request{Op: opStat, Path: p.dir, Count: 16 * r.count(), Files: files, Seed: seed})
}
