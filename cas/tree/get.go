package tree

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
)

// GetOptions change what Get does.
type GetOptions struct {
	// Force replaces what exists at the path.
	Force bool
	// Parallel is how many blocks of a file are fetched at the same time; 0
	// suits a local store, a remote one wants more.
	Parallel int
	// Progress is called with the number of bytes written since the last
	// call, from several goroutines.
	Progress func(n int64)
}

const (
	getWorkers = 4       // files of a directory that are written at a time
	cacheBytes = 8 << 20 // of nodes and buffers, shared by all files
)

// Get writes what c names to the path out. It is made under another name beside
// out, and out appears, with every byte verified, when it is complete. On error
// nothing is left behind and what was at out is unchanged.
//
// With Force what exists is replaced: by an exchange of names where the system
// has one, else, if a directory is involved, there is a moment without out.
//
// Errors: fs.ErrExist without Force; *manifest.NameError, ErrTooDeep; those of the
// store and of the operating system. Names are those within the tree.
func Get(ctx context.Context, store cas.Getter, c cas.CID, out string, o GetOptions) (err error) {
	dir, base := filepath.Split(strings.TrimRight(out, string(filepath.Separator)))
	if checkName(base) != nil {
		return &fs.PathError{Op: "get", Path: out, Err: fs.ErrInvalid}
	}
	if dir == "" {
		dir = "."
	}
	parent, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer parent.Close()
	if _, err := parent.Lstat(base); err == nil && !o.Force {
		return &fs.PathError{Op: "get", Path: out, Err: fs.ErrExist}
	}
	if o.Progress == nil {
		o.Progress = func(int64) {}
	}
	temp := ".cairn-" + rand.Text()
	defer func() {
		err = errors.Join(err, removeTree(parent, temp))
	}()
	if err := build(ctx, store, c, parent, temp, o); err != nil {
		return err
	}
	if !o.Force {
		if err = renameNew(parent, temp, base); errors.Is(err, fs.ErrExist) {
			err = &fs.PathError{Op: "get", Path: out, Err: fs.ErrExist}
		}
		return err
	}
	return replace(parent, temp, base)
}

// build makes what c names as the entry temp of parent.
func build(ctx context.Context, store cas.Getter, c cas.CID, parent *os.Root, temp string, o GetOptions) error {
	info, err := manifest.Stat(ctx, store, c)
	if err != nil {
		return err
	}
	g := &getter{store: store, root: parent, o: o, cache: manifest.NewCache(cacheBytes)}
	if info.Kind != manifest.KindDirectory {
		return g.run(ctx, func(ctx context.Context) error { return g.entry(ctx, c, temp, 0) })
	}
	// Others must not look in, let alone change anything, before it is
	// complete.
	if err := parent.Mkdir(temp, 0o700); err != nil {
		return err
	}
	if g.root, err = parent.OpenRoot(temp); err != nil {
		return err
	}
	defer g.root.Close()
	if !info.Meta.HasMode {
		if info.Meta.Mode, err = defaultDirMode(g.root); err != nil {
			return err
		}
		info.Meta.HasMode = true
	}
	g.dirs = append(g.dirs, dirMeta{".", info.Meta})
	if err := g.run(ctx, func(ctx context.Context) error { return g.children(ctx, c, "", 0) }); err != nil {
		return err
	}
	return g.finishDirs()
}

// defaultDirMode returns the mode that a directory made in dir gets.
func defaultDirMode(dir *os.Root) (uint32, error) {
	const probe = "probe"
	if err := dir.Mkdir(probe, 0o777); err != nil {
		return 0, err
	}
	info, err := dir.Lstat(probe)
	if err != nil {
		return 0, err
	}
	return uint32(info.Mode().Perm()), dir.Remove(probe)
}

// getter is one run of Get.
type getter struct {
	store cas.Getter
	root  *os.Root
	o     GetOptions
	cache *manifest.Cache
	files *errgroup.Group
	dirs  []dirMeta // made so far, parents first
}

// dirMeta is a directory whose attributes are set once all is in it: before, it
// may have to be written to, and what is made in it changes its time.
type dirMeta struct {
	path string
	meta manifest.Meta
}

// run calls walk, which may start g.files, and waits for all of them.
func (g *getter) run(ctx context.Context, walk func(context.Context) error) error {
	g.files, ctx = errgroup.WithContext(ctx)
	g.files.SetLimit(1 + getWorkers)
	g.files.Go(func() error { return walk(ctx) })
	return g.files.Wait()
}

// children makes the entries of the directory c at path.
func (g *getter) children(ctx context.Context, c cas.CID, dir string, depth int) error {
	if depth > MaxDepth {
		return pathError(dir, ErrTooDeep)
	}
	return manifest.List(ctx, g.store, c, func(e manifest.Entry) error {
		if err := checkName(e.Name); err != nil {
			return pathError(path.Join(".", dir), err)
		}
		return g.entry(ctx, e.CID, path.Join(dir, e.Name), depth)
	})
}

// entry makes what c names at path. Files are made in the background.
func (g *getter) entry(ctx context.Context, c cas.CID, path string, depth int) error {
	info, err := manifest.Stat(ctx, g.store, c)
	if err != nil {
		return pathError(path, err)
	}
	switch info.Kind {
	case manifest.KindDirectory:
		err = g.root.Mkdir(path, 0o777)
		if err != nil {
			break
		}
		g.dirs = append(g.dirs, dirMeta{path, info.Meta})
		return g.children(ctx, c, path, depth+1)
	case manifest.KindSymlink:
		if err = g.root.Symlink(info.Target, path); err == nil && !info.Meta.Mtime.IsZero() {
			err = setTime(g.root, path, info.Meta.Mtime)
		}
	default:
		var file *os.File
		if file, err = createFile(g.root, path, info.Meta); err != nil {
			break
		}
		g.files.Go(func() error {
			if err := g.file(ctx, file, path, manifest.Root{CID: c, Size: info.Size}, info.Meta); err != nil {
				return pathError(path, err)
			}
			return nil
		})
	}
	if err != nil {
		return pathError(path, err)
	}
	return nil
}

// createFile makes an empty file. Its mode is the default one, or, if another is
// to be set, such that nobody else can open it before.
func createFile(root *os.Root, path string, meta manifest.Meta) (*os.File, error) {
	perm := fs.FileMode(0o666)
	if meta.HasMode {
		perm = 0o600
	}
	return root.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
}

// file writes the bytes of a file and sets its attributes. It closes file.
func (g *getter) file(ctx context.Context, file *os.File, path string, root manifest.Root, meta manifest.Meta) (err error) {
	defer func() { err = errors.Join(err, file.Close()) }()
	w := &sparseWriter{file: file, progress: g.o.Progress}
	r := manifest.NewReader(g.store, root, manifest.ReaderOptions{Cache: g.cache, Parallel: g.o.Parallel})
	if _, err := r.WriteTo(ctx, w); err != nil {
		return err
	}
	if err := w.finish(); err != nil {
		return err
	}
	if meta.HasMode {
		if err := file.Chmod(permOf(meta)); err != nil {
			return err
		}
	}
	if meta.Mtime.IsZero() {
		return nil
	}
	return setTime(g.root, path, meta.Mtime)
}

// finishDirs sets the attributes of the directories, children first.
func (g *getter) finishDirs() error {
	for i := len(g.dirs) - 1; i >= 0; i-- {
		d := g.dirs[i]
		if !d.meta.Mtime.IsZero() {
			if err := setTime(g.root, d.path, d.meta.Mtime); err != nil {
				return pathError(d.path, err)
			}
		}
		if d.meta.HasMode {
			if err := g.root.Chmod(d.path, permOf(d.meta)); err != nil {
				return pathError(d.path, err)
			}
		}
	}
	return nil
}

// sparseWriter writes to a file and leaves holes where whole blocks of zeros are
// written.
type sparseWriter struct {
	file     *os.File
	off      int64 // where the next byte goes
	end      int64 // behind the last byte written
	progress func(int64)
}

// holeMin is the least run of zeros that is worth a hole, in bytes.
const holeMin = 16 << 10

func (w *sparseWriter) Write(p []byte) (int, error) {
	if len(p) < holeMin || !allZero(p) {
		if n, err := w.file.WriteAt(p, w.off); err != nil {
			return n, err
		}
		w.end = w.off + int64(len(p))
	}
	w.off += int64(len(p))
	w.progress(int64(len(p)))
	return len(p), nil
}

// finish gives the file its size if it ends in a hole.
func (w *sparseWriter) finish() error {
	if w.end == w.off {
		return nil
	}
	return w.file.Truncate(w.off)
}

func allZero(p []byte) bool {
	for len(p) >= 8 {
		if binary.NativeEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
