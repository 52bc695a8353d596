package manifest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/ipfs/go-unixfsnode/data"

	"github.com/cairnfs/cairn/cas"
)

// A directory is one dag-pb node with a link per entry, in the order of names, as
// long as that block has at most maxDirectory bytes; else it is a tree of shards
// (see hamt.go). The rule of boxo and kubo compares the sum of the lengths of
// names and CIDs by default, or the exact length of the block; this is the exact
// one.
const maxDirectory = 256 << 10

// maxEntries bounds how many entries of a directory are held in memory.
const maxEntries = 1 << 24

// Entry is a name in a directory and what it stands for.
type Entry struct {
	Name string
	CID  cas.CID
	// DAGSize is the number of bytes of all blocks below, UnixFS's Tsize;
	// Stat tells it. Other tools show it as the size of the entry; nothing
	// depends on it.
	DAGSize int64
}

// NameError says that a name cannot stand in a directory. Such names are neither
// written nor returned, so that joining an entry's name to a path never leads out
// of the directory.
type NameError struct{ Name, Reason string }

func (e *NameError) Error() string {
	return fmt.Sprintf("manifest: entry name %q %s", e.Name, e.Reason)
}

func checkName(name string) error {
	switch {
	case name == "":
		return &NameError{name, "is empty"}
	case name == "." || name == "..":
		return &NameError{name, "means a directory itself"}
	case strings.ContainsAny(name, "/\x00"):
		return &NameError{name, "contains a slash or NUL"}
	}
	return nil
}

// sortEntries sorts entries by name and checks that names are good and different.
func sortEntries(entries []Entry) error {
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	for i, e := range entries {
		if err := checkName(e.Name); err != nil {
			return err
		}
		if i > 0 && e.Name == entries[i-1].Name {
			return &NameError{e.Name, "is there twice"}
		}
	}
	return nil
}

// Directory stores a directory with the given entries, in any order, and returns
// the entry to give it in its own parent, as yet without a name. Errors:
// *NameError, or the store's.
func Directory(ctx context.Context, store cas.Putter, entries []Entry, meta Meta) (Entry, error) {
	entries = slices.Clone(entries)
	if err := sortEntries(entries); err != nil {
		return Entry{}, err
	}
	for _, e := range entries {
		if !e.CID.Defined() || e.DAGSize < 0 {
			return Entry{}, fmt.Errorf("manifest: entry %q: CID %v, DAG size %d", e.Name, e.CID, e.DAGSize)
		}
	}
	n := &node{kind: data.Data_Directory, entries: entries, meta: meta}
	if n.encodedSize() > maxDirectory {
		return putShards(ctx, store, entries, meta)
	}
	return putNode(ctx, store, n)
}

// Symlink stores a symlink and returns the entry to give it in a directory, as
// yet without a name. The target must not be empty or contain NUL.
func Symlink(ctx context.Context, store cas.Putter, target string, meta Meta) (Entry, error) {
	if err := checkTarget(target); err != nil {
		return Entry{}, err
	}
	return putNode(ctx, store, &node{kind: data.Data_Symlink, data: []byte(target), meta: meta})
}

func checkTarget(target string) error {
	if target == "" || strings.ContainsRune(target, 0) {
		return fmt.Errorf("manifest: symlink target %q is empty or contains NUL", target)
	}
	return nil
}

func putNode(ctx context.Context, store cas.Putter, n *node) (Entry, error) {
	b, tsize, err := n.block(nil)
	if err != nil {
		return Entry{}, err
	}
	return Entry{CID: b.CID(), DAGSize: tsize}, store.Put(ctx, b)
}

// List calls fn for each entry of a directory, in the order of names, until fn
// returns an error, which List returns. Entries are collected before the first
// call. Other errors: ErrNotDirectory; *FormatError, which wraps a *NameError for
// a name that cannot be; the store's.
func List(ctx context.Context, store cas.Getter, dir cas.CID, fn func(Entry) error) error {
	n, err := getDirectory(ctx, store, dir)
	if err != nil {
		return err
	}
	entries := n.entries
	if n.kind == data.Data_HAMTShard {
		if entries, err = appendShard(ctx, store, nil, dir, n, shardPath{}); err != nil {
			return err
		}
	}
	if err := sortEntries(entries); err != nil {
		return &FormatError{dir, "bad entry", err}
	}
	for _, e := range entries {
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

// Lookup returns the entry of the given name. It reads one block per level of
// the directory. Errors: ErrNoEntry, otherwise as List.
func Lookup(ctx context.Context, store cas.Getter, dir cas.CID, name string) (Entry, error) {
	n, err := getDirectory(ctx, store, dir)
	if err != nil {
		return Entry{}, err
	}
	if checkName(name) != nil {
		return Entry{}, fmt.Errorf("%w: %q in %v", ErrNoEntry, name, dir)
	}
	if n.kind == data.Data_HAMTShard {
		return lookupShard(ctx, store, dir, n, name)
	}
	for _, e := range n.entries {
		if e.Name == name {
			return e, nil
		}
	}
	return Entry{}, fmt.Errorf("%w: %q in %v", ErrNoEntry, name, dir)
}

func getDirectory(ctx context.Context, store cas.Getter, dir cas.CID) (*node, error) {
	if dir.Codec() != cas.DagPB {
		return nil, fmt.Errorf("%w: %v", ErrNotDirectory, dir)
	}
	n, err := getNode(ctx, store, dir)
	if err != nil {
		return nil, err
	}
	if n.kind != data.Data_Directory && n.kind != data.Data_HAMTShard {
		return nil, fmt.Errorf("%w: %v", ErrNotDirectory, dir)
	}
	return n, nil
}

// Kind says what a CID is the root of.
type Kind uint8

// The kinds.
const (
	KindFile Kind = iota + 1
	KindDirectory
	KindSymlink
)

// Info is what Stat knows.
type Info struct {
	Kind    Kind
	Size    int64 // of a file's content, in bytes; for others 0
	DAGSize int64 // of all blocks, in bytes; see Entry
	Meta    Meta
	Target  string // of a symlink
}

// Stat reads one block and says what it is the root of. Errors: *FormatError, or
// the store's.
func Stat(ctx context.Context, store cas.Getter, c cas.CID) (Info, error) {
	if c.Codec() == cas.Raw {
		b, err := store.Get(ctx, c, nil)
		if err != nil {
			return Info{}, err
		}
		n := int64(len(b.Data()))
		return Info{Kind: KindFile, Size: n, DAGSize: n}, nil
	}
	n, err := getNode(ctx, store, c)
	if err != nil {
		return Info{}, err
	}
	info := Info{DAGSize: n.tsize, Meta: n.meta}
	switch n.kind {
	case data.Data_Symlink:
		info.Kind, info.Target = KindSymlink, string(n.data)
		if err := checkTarget(info.Target); err != nil {
			return Info{}, &FormatError{c, "bad symlink", err}
		}
	case data.Data_Directory, data.Data_HAMTShard:
		info.Kind = KindDirectory
	default:
		info.Kind, info.Size = KindFile, n.size
	}
	return info, nil
}

// WithMeta stores the root node of a file anew with the given metadata in place
// of what it may have, and returns the new root. A file that is one leaf gets a
// node above it. No metadata gives the root that a Writer gives. Errors:
// ErrNotFile, *FormatError, or the store's.
func WithMeta(ctx context.Context, store Store, root Root, meta Meta) (Root, error) {
	n := fileNode(nil)
	switch {
	case root.CID.Codec() == cas.Raw && meta.none():
		return root, nil
	case root.CID.Codec() == cas.Raw:
		n = fileNode([]link{{root.CID, root.Size, root.Size}})
	case root.CID.Defined():
		var err error
		if n, err = getNode(ctx, store, root.CID); err != nil {
			return Root{}, err
		}
	}
	if err := checkFile(root.link(), n, 0); err != nil {
		return Root{}, err
	}
	n.meta = meta
	if len(n.links) == 1 && len(n.data) == 0 && meta.none() {
		return Root{n.links[0].cid, root.Size, root.Holes}, nil
	}
	e, err := putNode(ctx, store, n)
	if err != nil {
		return Root{}, err
	}
	return Root{e.CID, root.Size, root.Holes}, nil
}
