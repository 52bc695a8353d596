package tree

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/cairnfs/cairn/cas/manifest"
)

// AddOptions change what Add does.
type AddOptions struct {
	// Recursive takes directories as well. Then modes and times are kept of
	// everything below the path; of a path that is a file itself they are
	// not, so that its CID is that of its bytes.
	Recursive bool
	// Skip leaves out what it returns true for. It is asked about everything
	// below a directory.
	Skip func(fs.FileInfo) bool
	// Below is called for everything stored below a directory, children
	// before their directory, otherwise in the order of names. An error ends
	// Add.
	Below func(Entry) error
	// Progress is called with the number of bytes stored since the last call,
	// from several goroutines.
	Progress func(n int64)
}

// Limits of one Add.
const (
	addWorkers = 2  // files read at a time
	addAhead   = 32 // entries found but not stored yet, so also of files open
)

// AddStream stores what r holds as a file.
func AddStream(ctx context.Context, store manifest.Store, f manifest.Format, name string, r io.Reader, o AddOptions) (Entry, error) {
	w := manifest.NewWriter(store, f)
	if _, err := w.ReadFrom(ctx, &counter{ctx, r, o.Progress}); err != nil {
		return Entry{}, err
	}
	root, err := w.Finish(ctx)
	return Entry{Name: name, CID: root.CID, Size: root.Size}, err
}

// Add stores the file or directory at path and returns what it has become. If
// path is a link it stands for its target; links below it are stored as links.
// The blocks are not synced.
//
// Errors name the entry concerned: ErrIsDir, ErrSpecial, ErrTooDeep, ErrChanged,
// those of the store and of the operating system. On error some blocks may have
// been stored.
func Add(ctx context.Context, store manifest.Store, f manifest.Format, path string, o AddOptions) (Entry, error) {
	if o.Progress == nil {
		o.Progress = func(int64) {}
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return Entry{}, err
	case info.IsDir() && !o.Recursive:
		return Entry{}, ErrIsDir
	case info.IsDir():
		return addDir(ctx, store, f, path, info, o)
	case !info.Mode().IsRegular():
		return Entry{}, specialError(path, info.Mode())
	}
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return Entry{}, err
	}
	defer file.Close()
	root, _, err := storeFile(ctx, manifest.NewWriter(store, f), file, info, o.Progress)
	return Entry{Name: filepath.Base(path), CID: root.CID, Size: root.Size}, err
}

// storeFile stores the bytes of an open file, which must be the one that was
// seen.
func storeFile(ctx context.Context, w *manifest.Writer, file *os.File, seen fs.FileInfo, progress func(int64)) (manifest.Root, fs.FileInfo, error) {
	info, err := file.Stat()
	if err != nil {
		return manifest.Root{}, nil, err
	}
	if !os.SameFile(info, seen) || !info.Mode().IsRegular() {
		return manifest.Root{}, nil, ErrChanged
	}
	// A file that grows counts as it was when it was opened: one that grows
	// because it is being added would never end. Some files of the kernel say
	// that they are empty and are not.
	var r io.Reader = file
	if info.Size() > 0 {
		r = io.LimitReader(file, info.Size())
	}
	if err := copyData(ctx, w, file, r, info, progress); err != nil {
		return manifest.Root{}, nil, err
	}
	root, err := w.Finish(ctx)
	return root, info, err
}

// counter reports what is read through it, and stops when ctx ends.
type counter struct {
	ctx      context.Context
	r        io.Reader
	progress func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	if c.progress != nil {
		c.progress(int64(n))
	}
	return n, err
}

// addDir stores the directory at path by three parties: a walker opens what is
// there in the order of names, workers store files, and the caller makes
// directories of what has been stored, in the walker's order. So the result does
// not depend on which file is done first.
func addDir(ctx context.Context, store manifest.Store, f manifest.Format, path string, info fs.FileInfo, o AddOptions) (Entry, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return Entry{}, err
	}
	defer root.Close()
	g, ctx := errgroup.WithContext(ctx)
	a := &adder{store: store, format: f, o: o, files: make(chan *item, addAhead), found: make(chan *item, addAhead)}
	g.Go(func() error {
		defer close(a.files)
		defer close(a.found)
		return a.walk(ctx, root, info, filepath.Base(path), 0)
	})
	for range addWorkers {
		g.Go(func() error { return a.work(ctx) })
	}
	var result Entry
	g.Go(func() (err error) {
		result, err = a.assemble(ctx)
		return err
	})
	err = g.Wait()
	for it := range a.files {
		err = errors.Join(err, it.file.Close())
	}
	return result, err
}

// item is what the walker found. Of a directory there are two, one before and
// one after what is in it.
type item struct {
	name string // last element of path
	path string // as in Entry.Name
	info fs.FileInfo
	file *os.File // of a regular file
	link string   // target of a link
	open bool     // the first of a directory

	done  chan struct{} // of a regular file: closed when it is stored
	entry manifest.Entry
	size  int64 // as in Entry.Size
}

// adder is one run of addDir.
type adder struct {
	store  manifest.Store
	format manifest.Format
	o      AddOptions
	files  chan *item // to be stored
	found  chan *item // everything, in order
}

// walk sends what is in dir, which must be the one that was seen, then dir itself.
func (a *adder) walk(ctx context.Context, dir *os.Root, seen fs.FileInfo, path string, depth int) error {
	if depth > MaxDepth {
		return pathError(path, ErrTooDeep)
	}
	self, err := dir.Stat(".")
	if err != nil {
		return pathError(path, err)
	}
	if !os.SameFile(self, seen) {
		return pathError(path, ErrChanged)
	}
	if err := a.send(ctx, &item{path: path, open: true}); err != nil {
		return err
	}
	list, err := fs.ReadDir(dir.FS(), ".") // sorted
	if err != nil {
		return pathError(path, err)
	}
	for _, d := range list {
		if err := a.visit(ctx, dir, d.Name(), path+"/"+d.Name(), depth); err != nil {
			return err
		}
	}
	return a.send(ctx, &item{name: filepath.Base(path), path: path, info: self})
}

// visit sends one entry of a directory.
func (a *adder) visit(ctx context.Context, dir *os.Root, name, path string, depth int) error {
	info, err := dir.Lstat(name)
	if err != nil {
		return pathError(path, err)
	}
	if a.o.Skip != nil && a.o.Skip(info) {
		return nil
	}
	it := &item{name: name, path: path, info: info}
	switch info.Mode().Type() {
	case 0:
		it.done = make(chan struct{})
		if it.file, err = dir.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0); err != nil {
			return pathError(path, err)
		}
		select {
		case a.files <- it:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), it.file.Close())
		}
	case fs.ModeSymlink:
		if it.link, err = dir.Readlink(name); err != nil {
			return pathError(path, err)
		}
	case fs.ModeDir:
		sub, err := dir.OpenRoot(name)
		if err != nil {
			return pathError(path, err)
		}
		return errors.Join(a.walk(ctx, sub, info, path, depth+1), sub.Close())
	default:
		return specialError(path, info.Mode())
	}
	return a.send(ctx, it)
}

func (a *adder) send(ctx context.Context, it *item) error {
	select {
	case a.found <- it:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// work stores files until there are no more.
func (a *adder) work(ctx context.Context) error {
	w := manifest.NewWriter(a.store, a.format)
	for it := range a.files {
		w.Reset()
		root, info, err := storeFile(ctx, w, it.file, it.info, a.o.Progress)
		if err = errors.Join(err, it.file.Close()); err != nil {
			return pathError(it.path, err)
		}
		it.size = root.Size
		if root, err = manifest.WithMeta(ctx, a.store, root, metaOf(info)); err != nil {
			return pathError(it.path, err)
		}
		stored, err := manifest.Stat(ctx, a.store, root.CID)
		if err != nil {
			return pathError(it.path, err)
		}
		it.entry = manifest.Entry{CID: root.CID, DAGSize: stored.DAGSize}
		close(it.done)
	}
	return nil
}

// level is a directory that is being put together.
type level struct {
	entries []manifest.Entry
	size    int64 // bytes of all files below
}

// assemble makes directories of what the walker has found, and returns the last
// one, which is the root.
func (a *adder) assemble(ctx context.Context) (last Entry, err error) {
	var open []level // from the root down
	for it := range a.found {
		if it.open {
			open = append(open, level{})
			continue
		}
		switch {
		case it.done != nil:
			select {
			case <-it.done:
			case <-ctx.Done():
				return Entry{}, ctx.Err()
			}
		case it.link != "":
			it.entry, err = manifest.Symlink(ctx, a.store, it.link, manifest.Meta{Mtime: it.info.ModTime()})
		default:
			top := open[len(open)-1]
			open = open[:len(open)-1]
			it.size = top.size
			it.entry, err = manifest.Directory(ctx, a.store, top.entries, metaOf(it.info))
		}
		if err != nil {
			return Entry{}, pathError(it.path, err)
		}
		last = Entry{Name: it.path, CID: it.entry.CID, Size: it.size}
		if len(open) == 0 {
			continue
		}
		parent := &open[len(open)-1]
		it.entry.Name = it.name
		parent.entries = append(parent.entries, it.entry)
		parent.size += it.size
		if a.o.Below != nil {
			if err := a.o.Below(last); err != nil {
				return Entry{}, err
			}
		}
	}
	return last, nil
}

// Measure returns how many bytes of files Add would store, and fails early with
// most of the errors that Add would fail with.
func Measure(ctx context.Context, path string, o AddOptions) (int64, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return 0, err
	case info.IsDir() && !o.Recursive:
		return 0, ErrIsDir
	case info.Mode().IsRegular():
		return info.Size(), nil
	case !info.IsDir():
		return 0, specialError(path, info.Mode())
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	var total int64
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return pathError(filepath.Join(path, name), err)
		}
		info, err := d.Info()
		switch {
		case err != nil:
			return pathError(filepath.Join(path, name), err)
		case name != "." && o.Skip != nil && o.Skip(info):
			if d.IsDir() {
				return fs.SkipDir
			}
		case info.Mode().IsRegular():
			total += info.Size()
		case info.Mode().Type()&^(fs.ModeDir|fs.ModeSymlink) != 0:
			return specialError(filepath.Join(path, name), info.Mode())
		}
		return nil
	})
	return total, err
}
