// Package tree carries directory trees between a disk and a store: Add makes
// manifests of what is on disk, Get writes to disk what manifests say.
//
// What is kept of an entry is its name, type, bytes, permission bits,
// modification time and, of a symbolic link, the target. Owner, extended
// attributes and hard links are not kept: two names of one file are stored as two
// files, which share all their blocks. The CID of a tree depends on nothing
// else, so adding the same tree twice gives the same CID.
//
// Neither direction can be led out of its tree. Every path is opened relative to
// an open directory (os.Root), links are never followed below the path given,
// and names read from a store are checked before they name anything.
package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
)

// Errors of Add and Get. Compare with errors.Is.
var (
	// ErrIsDir says that a path is a directory and Recursive is not set.
	ErrIsDir = errors.New("is a directory")
	// ErrSpecial says that something is neither file, directory nor link.
	ErrSpecial = errors.New("cannot be stored")
	// ErrTooDeep says that directories are nested more than MaxDepth deep.
	ErrTooDeep = fmt.Errorf("directories are nested more than %d deep", MaxDepth)
	// ErrChanged says that an entry was exchanged for another while it was
	// being read.
	ErrChanged = errors.New("changed while it was being read")
)

// MaxDepth bounds the nesting of directories. A manifest can hold any depth at
// no cost, so what comes from elsewhere needs a bound.
const MaxDepth = 1000

// Entry is something stored by Add.
type Entry struct {
	// Name is the path with slashes, beginning with the last element of the
	// path that was added.
	Name string
	CID  cas.CID
	Size int64 // bytes of the file, or of all files below the directory
}

// pathError names the path an error is about. An error of the operating system
// loses the path it has, which is relative to an open directory.
func pathError(path string, err error) error {
	var sys *fs.PathError
	if errors.As(err, &sys) {
		err = sys.Err
	}
	return fmt.Errorf("%s: %w", path, err)
}

// kindText names the type of a special file.
func kindText(m fs.FileMode) string {
	switch {
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

func specialError(path string, m fs.FileMode) error {
	return fmt.Errorf("%s: a %s %w", path, kindText(m), ErrSpecial)
}

// metaOf returns what is kept of a file's attributes.
func metaOf(info fs.FileInfo) manifest.Meta {
	m := info.Mode()
	bits := uint32(m.Perm())
	for _, b := range modeBits() {
		if m&b.mode != 0 {
			bits |= b.bit
		}
	}
	return manifest.Meta{Mode: bits, HasMode: true, Mtime: info.ModTime()}
}

// permOf returns the permission bits to restore: those of m without set-user-ID
// and set-group-ID. A manifest has no owner, so these bits would lend the rights
// of whoever calls Get to a program of unknown origin.
func permOf(m manifest.Meta) fs.FileMode {
	perm := fs.FileMode(m.Mode) & fs.ModePerm
	if m.Mode&stickyBit != 0 {
		perm |= fs.ModeSticky
	}
	return perm
}

// Mode bits above the permissions, as Unix numbers them.
const (
	setUIDBit = 0o4000
	setGIDBit = 0o2000
	stickyBit = 0o1000
)

type modeBit struct {
	mode fs.FileMode
	bit  uint32
}

func modeBits() [3]modeBit {
	return [3]modeBit{{fs.ModeSetuid, setUIDBit}, {fs.ModeSetgid, setGIDBit}, {fs.ModeSticky, stickyBit}}
}

// checkName fails unless name can be an entry of a directory on this system.
// Package manifest does not return others; nothing else stands between what a
// stranger has stored and the user's files, so it is looked at twice.
func checkName(name string) error {
	if name == "." || !filepath.IsLocal(name) || strings.ContainsRune(name, filepath.Separator) {
		return &manifest.NameError{Name: name, Reason: "cannot be a file name"}
	}
	return nil
}
