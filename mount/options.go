// Package mount shows a volume as a directory of the operating system. It is a
// thin adapter from FUSE's wire protocol, as go-fuse decodes it, to the methods
// of volume.Volume: it translates numbers, flags and errors, keeps the table of
// open files that the kernel refers to by number, and decides what the kernel
// may cache. All that a file system has to know is in package volume.
//
// The node id that the kernel sees is the inode number, the generation is the
// inode's own, both persistent, so there is no table of nodes and file handles
// of NFS survive a restart. The kernel checks permissions (default_permissions)
// and applies the umask.
//
// Caches: of a volume that is not shared one kernel is the only writer, and it
// updates its own caches as it writes. Names, absent names, attributes and pages
// are therefore kept by the kernel for long. Of a shared volume it is told what
// other nodes change (see coherence).
//
// Mounting works on Linux. On other systems the package builds, and Mount fails
// with ErrUnsupported.
package mount

import (
	"errors"
	"fmt"
	"log/slog"
	"syscall"
	"time"
)

// GuardArg is the argument by which Options.Guard, started again, is a guard. What
// follows is for RunGuard.
const GuardArg = "guard-mount"

// fsName is the name of the file system: its type is fuse.cairn.
const fsName = "cairn"

// Options say where and how to mount. Only Mountpoint is required.
type Options struct {
	// Mountpoint is the directory to mount on. If it does not exist but its
	// parent does, it is created, and stays after Unmount.
	Mountpoint string
	// AllowOther lets users other than the one who mounts in, within the
	// permissions of files. Mounts by root always do; others need
	// user_allow_other in /etc/fuse.conf.
	AllowOther bool
	// ReadOnly makes the kernel refuse every change.
	ReadOnly bool
	// NoExec makes the kernel refuse to run programs from the mount.
	NoExec bool
	// Suid honours the set-user-ID and set-group-ID bits of programs. Dev
	// lets device nodes be created and opened; without it, creating one is
	// EPERM, so that nobody takes for a device what cannot be used as one.
	// Both are for root: ErrRootOnly.
	Suid, Dev bool
	// Relatime keeps the times of access of files: a read sets one that is
	// older than the last change or than a day. Without it, reading changes
	// nothing.
	Relatime bool
	// UID and GID, if they are set, are shown as the owner and the group of
	// every file, and permissions are checked with them. What is stored is
	// still the owner that chown set or that created the file.
	UID, GID *uint32
	// Source is what the system shows as the device of the mount, in
	// /proc/mounts and df; default "cairn".
	Source string
	// Guard is a program that calls RunGuard when it is started with GuardArg; if
	// it is set, one runs beside each mount of a shared volume, for the case that
	// this process is killed.
	Guard string
	// Now is the clock for utimens with UTIME_NOW; default time.Now.
	Now func() time.Time
	// Logger gets what cannot be told to the calling process; default: none.
	Logger *slog.Logger
}

func (o *Options) setDefaults() {
	if o.Source == "" {
		o.Source = fsName
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Errors of Mount and Unmount, besides those of the system. Compare with
// errors.Is.
var (
	// ErrUnsupported says that this system cannot mount.
	ErrUnsupported = errors.New("mounting is supported on Linux only")
	// ErrNoFUSE says that the kernel's FUSE device is missing.
	ErrNoFUSE = errors.New("/dev/fuse is missing: load the kernel module with \"modprobe fuse\"; " +
		"in a container, pass --device /dev/fuse --cap-add SYS_ADMIN")
	// ErrNoHelper says that mounting without root needs a program that is
	// not installed.
	ErrNoHelper = errors.New("fusermount3 is missing, which mounts for ordinary users: install the package fuse3")
	// ErrAllowOther says that the system does not let ordinary users show
	// their mounts to others.
	ErrAllowOther = errors.New("mounting for other users needs the line user_allow_other in /etc/fuse.conf")
	// ErrRootOnly says that the system lets only root mount like that.
	ErrRootOnly = errors.New("set-user-ID programs and device nodes are for mounts by root only: " +
		"mount as root, or without the options suid and dev")
	// ErrMounted says that the mount point is a live mount of Cairn already.
	ErrMounted = errors.New("already mounted")
	// ErrNotMounted says that there is no mount of Cairn to unmount.
	ErrNotMounted = errors.New("not a mount point of cairn")
)

// BusyError says that a mount cannot be unmounted because processes have files
// open in it or work in one of its directories. It is syscall.EBUSY.
type BusyError struct{ Mountpoint string }

func (e *BusyError) Error() string {
	return fmt.Sprintf("%s is in use: \"fuser -vm %s\" shows by whom; a lazy unmount hides it now and ends when they do",
		e.Mountpoint, e.Mountpoint)
}

func (e *BusyError) Unwrap() error { return syscall.EBUSY }
