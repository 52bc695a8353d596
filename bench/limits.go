package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/cas"
)

// The names of the limits.
const (
	limitMemcpy     = "limit.memcpy"
	limitBLAKE3     = "limit.blake3"
	limitDiskWrite  = "limit.disk-write"
	limitFUSEWrite  = "limit.fuse-write"
	limitFUSERead   = "limit.fuse-read"
	limitFUSECreate = "limit.fuse-create"
)

func limits() []measurement {
	return []measurement{
		{name: limitMemcpy, repeats: 3, run: memcpy},
		{name: limitBLAKE3, repeats: 3, run: hash},
		{name: limitDiskWrite, repeats: 3, run: diskWrite},
		{name: limitFUSEWrite, repeats: 3, run: fuseWrite},
		{name: limitFUSERead, repeats: 3, run: fuseRead},
		{name: limitFUSECreate, repeats: 3, run: fuseCreate},
	}
}

func memcpy(ctx context.Context, r *rig) (sample, error) {
	from, to := make([]byte, 16<<20), make([]byte, 16<<20)
	for i := 0; i < len(from); i += unix.Getpagesize() {
		from[i], to[i] = 1, 1 // so that the pages are there
	}
	s, err := measure(func() error {
		for done := int64(0); done < r.o.Size; done += int64(len(from)) {
			copy(to, from[:min(int64(len(from)), r.o.Size-done)])
		}
		return ctx.Err()
	})
	s.bytes = r.o.Size
	return s, err
}

func hash(ctx context.Context, r *rig) (sample, error) {
	const block = 64 << 10
	data := newContent(0).at(0)
	s, err := measure(func() error {
		for done := int64(0); done < r.o.Size; done += block {
			off := done % pieceSize
			if _, err := cas.NewBlock(cas.Raw, data[off:off+min(block, r.o.Size-done)]); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
	s.bytes = r.o.Size
	return s, err
}

func diskWrite(_ context.Context, r *rig) (sample, error) {
	name := filepath.Join(r.dir, "plain")
	c := newContent(r.newSeed())
	s, err := measure(func() error {
		f, err := openRaw(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY)
		if err != nil {
			return err
		}
		err = c.writeTo(f, r.o.Size)
		if err == nil {
			err = f.fail("fdatasync", datasync(f.fd))
		}
		return errors.Join(err, f.Close())
	})
	s.bytes = r.o.Size
	return s, errors.Join(err, os.Remove(name))
}

func fuseWrite(ctx context.Context, r *rig) (sample, error) {
	p, err := r.place(ctx, placeFloor)
	if err != nil {
		return sample{}, err
	}
	return r.measureClient(ctx, request{Op: opWrite, Path: filepath.Join(p.dir, dataName), Size: r.o.Size, Seed: r.newSeed()})
}

func fuseRead(ctx context.Context, r *rig) (sample, error) {
	p, err := r.place(ctx, placeFloor)
	if err != nil {
		return sample{}, err
	}
	path := filepath.Join(p.dir, dataName)
	return r.measureClient(ctx,
		request{Op: opWrite, Path: path, Size: r.o.Size},
		request{Op: opDrop, Path: path},
		request{Op: opRead, Path: path, Size: r.o.Size})
}

func fuseCreate(ctx context.Context, r *rig) (sample, error) {
	p, err := r.place(ctx, placeFloor)
	if err != nil {
		return sample{}, err
	}
	return r.measureClient(ctx, request{Op: opCreate, Path: p.dir, Count: r.count(), Seed: r.newSeed()})
}
