package bench

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/mount"
)

// The names of places.
const (
	placeNative   = "native"   // a directory of the disk
	placeLoopback = "loopback" // a mount that shows one
	placeFloor    = "floor"    // a mount that keeps no bytes
	placeMount    = "mount"    // our mount
)

// dataName is the file of Options.Size bytes in the places that have one.
const dataName = "data"

// place is a directory in which clients work.
type place struct {
	dir  string
	disk string // the directory of the disk that keeps the bytes; empty if none does
	// mount mounts dir. It is nil if dir is a directory of the disk.
	mount   func(context.Context) (unmount func() error, err error)
	unmount func() error // nil while it is not mounted

	// What has been made in it and is still there.
	trees []string // extracted source trees
	file  string   // a file of fileSize bytes; empty if there is none
}

// place returns the place of that name, mounted.
func (r *rig) place(ctx context.Context, name string) (*place, error) {
	p := r.places[name]
	if p == nil {
		var err error
		if p, err = r.newPlace(ctx, name); err != nil {
			return nil, err
		}
		for _, dir := range []string{p.dir, p.disk} {
			if dir != "" {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return nil, err
				}
			}
		}
		r.places[name] = p
		r.atEnd(p.down)
	}
	return p, p.up(ctx)
}

func (r *rig) newPlace(ctx context.Context, name string) (*place, error) {
	p := &place{dir: filepath.Join(r.dir, name)}
	switch name {
	case placeNative:
		p.disk = p.dir
	case placeLoopback:
		p.disk = p.dir + "-files"
		p.mount = func(context.Context) (func() error, error) { return mountLoopback(p.disk, p.dir) }
	case placeFloor:
		floor := newFloor()
		p.mount = func(context.Context) (func() error, error) { return floor.mount(p.dir) }
	case placeMount:
		n, err := r.openNode(ctx)
		if err != nil {
			return nil, err
		}
		p.disk = r.storeDir()
		p.mount = func(ctx context.Context) (func() error, error) {
			srv, err := mount.Mount(ctx, n.Volume(), mount.Options{Mountpoint: p.dir, Logger: r.o.Logger})
			if err != nil {
				return nil, err
			}
			return srv.Unmount, nil
		}
	}
	return p, nil
}

// up mounts the place if it is not.
func (p *place) up(ctx context.Context) (err error) {
	if p.mount != nil && p.unmount == nil {
		p.unmount, err = p.mount(ctx)
	}
	return err
}

// down unmounts the place if it is mounted.
func (p *place) down() error {
	if p.unmount == nil {
		return nil
	}
	err := p.unmount()
	if err == nil {
		p.unmount = nil
	}
	return err
}

// remount makes the kernel forget what it has cached of a mount.
func (p *place) remount(ctx context.Context) error {
	if err := p.down(); err != nil {
		return err
	}
	return p.up(ctx)
}

// cool is remount, and the pages of the files that keep the place's bytes are
// dropped. The names and attributes of those files stay cached.
func (p *place) cool(ctx context.Context) error {
	if err := p.remount(ctx); err != nil || p.disk == "" {
		return err
	}
	return dropCaches(p.disk)
}

// dropCaches drops the pages of all files below a directory that are not dirty.
func dropCaches(dir string) error {
	return filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // a store removes files as it works
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := openRaw(name, unix.O_RDONLY)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		return errors.Join(f.fail("drop cache", dropCache(f.fd)), f.Close())
	})
}
