package node

import "github.com/cockroachdb/pebble/v2/vfs"

// Data before name, on disk too. A record of the journal that refers to blocks
// carries the position in the segments up to which they must be valid, and a
// record that was synced although its blocks were not would, after a power loss,
// look like damage. Whoever syncs the journal syncs the records of others with
// it, whose blocks nobody has synced yet. So the segments are synced inside the
// journal's own sync: after it has settled which records it is about to make
// durable, before it does so. That moment is the fdatasync of its file, so the
// barrier sits in the file system that the journal is given.

// barrierFS calls before ahead of each sync of a file's content.
type barrierFS struct {
	vfs.FS
	before func() error
}

func (b *barrierFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return b.wrap(b.FS.Create(name, category))
}

func (b *barrierFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return b.wrap(b.FS.OpenReadWrite(name, category, opts...))
}

func (b *barrierFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return b.wrap(b.FS.ReuseForWrite(oldname, newname, category))
}

func (b *barrierFS) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &barrierFile{f, b.before}, nil
}

// Unwrap returns the file system below.
func (b *barrierFS) Unwrap() vfs.FS { return b.FS }

type barrierFile struct {
	vfs.File
	before func() error
}

func (f *barrierFile) Sync() error {
	if err := f.before(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *barrierFile) SyncData() error {
	if err := f.before(); err != nil {
		return err
	}
	return f.File.SyncData()
}

func (f *barrierFile) SyncTo(length int64) (fullSync bool, err error) {
	if err := f.before(); err != nil {
		return false, err
	}
	return f.File.SyncTo(length)
}
