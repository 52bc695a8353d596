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
//
// The kernel checks who may do what with which attributes (xattr(7)) and what is
// too long, but hands all names through to a FUSE file system.

// checkXattrName says whether there can be attributes of that name. A namespace
// that nobody knows promises something that nobody keeps; of "system." those are
// known that the kernel obeys, access control lists.
func checkXattrName(name string) fuse.Status {
	if name == namespace.ACLAccess || name == namespace.ACLDefault {
		return fuse.OK
	}
	for _, prefix := range [...]string{"user.", trusted, "security."} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			if rest == "" {
				return fuse.EINVAL
			}
			return fuse.OK
		}
	}
	return fuse.ENOTSUP
}

// trusted begins the names that only the privileged may see.
const trusted = "trusted."

// GetXAttr returns the size of the attribute's value, which it copies to dest
// if dest is not empty.
func (fs *fileSystem) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if status := checkXattrName(name); status != fuse.OK {
		return 0, status
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
		if h.Uid != 0 && strings.HasPrefix(name, trusted) {
			continue
		}
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

// SetXAttr sets an attribute; the volume knows the flags. Setting an access
// control list changes the mode, and the kernel asks for it again by itself.
func (fs *fileSystem) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	if status := checkXattrName(name); status != fuse.OK {
		return status
	}
	// The value may outlive the request's buffer.
	value = bytes.Clone(value)
	killSetGID := fs.saysKillSetGID && in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0
	err := fs.vol.SetXattr(context.Background(), namespace.Ino(in.NodeId), name, value, in.Flags, killSetGID)
	return fs.status("setxattr", in.NodeId, name, err)
}

// RemoveXAttr removes an attribute.
func (fs *fileSystem) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if status := checkXattrName(name); status != fuse.OK {
		return status
	}
	err := fs.vol.RemoveXattr(context.Background(), namespace.Ino(h.NodeId), name)
	return fs.status("removexattr", h.NodeId, name, err)
}
