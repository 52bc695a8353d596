package namespace

import (
	"errors"
	"log/slog"

	"github.com/cairnfs/cairn/cas"
	"github.com/cockroachdb/pebble/v2"
)

// Options of a State. The zero value works.
type Options struct {
	// HashKey seeds the hash of names. It counts only when the namespace is
	// created, is stored in it, and must then be the same on all replicas.
	// It should be random, else users could choose names that collide.
	HashKey [16]byte
	// Bounds of the caches: inodes, directory entries, and bytes of inline
	// content and link targets. Defaults: 256 Ki, 512 Ki, 64 MiB.
	CacheInodes   int
	CacheDentries int
	CacheBytes    int64
	Logger        *slog.Logger
}

// State is the namespace as of the last applied command.
type State struct{ db *pebble.DB }

var errNotBuilt = errors.New("namespace: not built yet")

// Open reads the namespace in db, or creates it there.
func Open(db *pebble.DB, o Options) (*State, error) { return &State{db: db}, nil }

// Apply carries out the command with the given place in the log.
func (s *State) Apply(index uint64, cmd *Command) (Result, error) { return Result{}, errNotBuilt }

// Applied returns the index of the last applied command.
func (s *State) Applied() uint64 { return 0 }

// Inode returns the inode, also of an orphan.
func (s *State) Inode(ino Ino) (Inode, error) { return Inode{}, errNotBuilt }

// Lookup returns the inode that name refers to in the directory parent.
func (s *State) Lookup(parent Ino, name string) (Inode, error) { return Inode{}, errNotBuilt }

// ReadDir calls fn for the entries of a directory after the cookie, 0 being the
// start, in the order of cookies, until fn returns false.
func (s *State) ReadDir(parent Ino, after uint64, fn func(Dentry) bool) error { return errNotBuilt }

// Xattr returns the value of an extended attribute.
func (s *State) Xattr(ino Ino, name string) ([]byte, error) { return nil, errNotBuilt }

// Xattrs returns the names of an inode's extended attributes.
func (s *State) Xattrs(ino Ino) ([]string, error) { return nil, errNotBuilt }

// PinInfo is a pinned CID.
type PinInfo struct {
	CID  cas.CID
	Name string
	Time int64 // of the command that pinned it
}

// Pins calls fn for each pin until it returns false.
func (s *State) Pins(fn func(PinInfo) bool) error { return errNotBuilt }

// Orphans returns all inodes without a name.
func (s *State) Orphans() ([]Ino, error) { return nil, errNotBuilt }

// Stats returns the counters.
func (s *State) Stats() Stats { return Stats{} }

// At returns the namespace as it was after the command with the given index.
func (s *State) At(index uint64) View { return View{} }

// View reads the namespace as of one instant.
type View struct{}

// Inode is State.Inode as of the view's instant.
func (v View) Inode(ino Ino) (Inode, error) { return Inode{}, errNotBuilt }

// Lookup is State.Lookup as of the view's instant.
func (v View) Lookup(parent Ino, name string) (Inode, error) { return Inode{}, errNotBuilt }

// ReadDir is State.ReadDir as of the view's instant.
func (v View) ReadDir(parent Ino, after uint64, fn func(Dentry) bool) error { return errNotBuilt }

// Xattr is State.Xattr as of the view's instant.
func (v View) Xattr(ino Ino, name string) ([]byte, error) { return nil, errNotBuilt }

// Xattrs is State.Xattrs as of the view's instant.
func (v View) Xattrs(ino Ino) ([]string, error) { return nil, errNotBuilt }
