package bench

import (
	"fmt"
	"os"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// mountLoopback shows the directory disk on dir through go-fuse's file system for
// that purpose. Its options are those that fs.Mount takes when it gets none: names
// and attributes stay in the kernel for a second, requests are of up to 128 KiB,
// and root's files are read and written by the kernel itself (passthrough). Only,
// root mounts by the system call, as for our mount.
func mountLoopback(disk, dir string) (unmount func() error, err error) {
	root, err := fs.NewLoopbackRoot(disk)
	if err != nil {
		return nil, err
	}
	second := time.Second
	srv, err := fs.Mount(dir, root, &fs.Options{
		EntryTimeout: &second,
		AttrTimeout:  &second,
		MountOptions: fuse.MountOptions{FsName: "loopback", Name: "cairn-bench", DirectMountStrict: os.Geteuid() == 0},
	})
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	return srv.Unmount, nil
}
