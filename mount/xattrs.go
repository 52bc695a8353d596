//go:build linux

package mount

import (
	"bytes"
	"context"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cairnfs/cairn/namespace"
)

// Extended attributes. Reading a value or the list of names takes two calls by
// convention: one with an empty buffer for the size, one for the bytes, which
// fails with ERANGE if they do not fit by then.

// supportedXattr reports whether attributes of that name can be kept. Those of
// "system." promise what they say, access control lists above all, and storing
// without obeying them would be worse than a refusal.
func supportedXattr(name string) bool { return !strings.HasPrefix(name, "system.") }

// GetXAttr returns the size of the attribute's value, which it copies to dest
// if dest is not empty.
func (fs *fileSystem) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if !supportedXattr(name) {
		return 0, fuse.ENOTSUP
	}
	value, err := fs.vol.GetXattr(context.Background(), namespace.Ino(h.NodeId), name)
	if err != nil {
		return 0, fs.fail("getxattr", h.NodeId, name, err)
	}
	return answer(dest, value)
}

// ListXAttr returns the size of the list of names, each with a final NUL, which
// it copies to dest if dest is not empty.
func (fs *fileSystem) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	names, err := fs.vol.ListXattr(context.Background(), namespace.Ino(h.NodeId))
	if err != nil {
		return 0, fs.fail("listxattr", h.NodeId, "", err)
	}
	var list []byte
	for _, name := range names {
		list = append(append(list, name...), 0)
	}
	return answer(dest, list)
}

func answer(dest, value []byte) (uint32, fuse.Status) {
	if len(dest) > 0 && len(dest) < len(value) {
		return 0, fuse.ERANGE
	}
	copy(dest, value)
	return uint32(len(value)), fuse.OK
}

// SetXAttr sets an attribute; the volume knows the flags.
func (fs *fileSystem) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	if !supportedXattr(name) {
		return fuse.ENOTSUP
	}
	// The value may outlive the request's buffer.
	err := fs.vol.SetXattr(context.Background(), namespace.Ino(in.NodeId), name, bytes.Clone(value), in.Flags)
	return fs.status("setxattr", in.NodeId, name, err)
}

// RemoveXAttr removes an attribute.
func (fs *fileSystem) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if !supportedXattr(name) {
		return fuse.ENOTSUP
	}
	err := fs.vol.RemoveXattr(context.Background(), namespace.Ino(h.NodeId), name)
	return fs.status("removexattr", h.NodeId, name, err)
}
