//go:build linux

package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/volume"
)

const (
	maxRequest  = 1 << 20   // bytes of one read or write
	maxInFlight = 256 << 20 // bytes of requests that are being answered
	maxAsync    = 64        // read-ahead and the like under way at once
	readAheadKB = 1024      // of each open file, if root mounts; half of it costs 10 % more for a cold read
	unmountWait = 5 * time.Second
)

// capabilities asks the kernel for what go-fuse does not by itself:
//   - an open that truncates is one request;
//   - READDIRPLUS only for processes that also stat;
//   - directories are opened without a request (see OpenDir);
//   - setuid and setgid are cleared here, on writes by the unprivileged, so that
//     the kernel need not ask for security.capability before each write;
//   - the umask is applied here, because in a directory with a default access
//     control list there is none, and setting an access control list says whether
//     the setgid bit goes;
//   - a node id is good for ever (see Lookup of "."), as NFS and
//     open_by_handle_at need;
//   - files with direct I/O can be mapped as well.
const capabilities = fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_NO_OPENDIR_SUPPORT |
	fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_DONT_MASK | fuse.CAP_SETXATTR_EXT | fuse.CAP_EXPORT_SUPPORT |
	fuse.CAP_DIRECT_IO_ALLOW_MMAP

// Server is a mounted volume.
type Server struct {
	fuse       *fuse.Server
	fs         *fileSystem
	mountpoint string
	log        *slog.Logger
	done       chan struct{} // closed when the last request has been answered
	ending     chan struct{} // closed before, for the guard
	guarding   sync.WaitGroup

	mu sync.Mutex // of Unmount
}

// Mount mounts vol, which must be started, and returns when the mount answers.
// The volume must stay open until Wait returns. ctx is for mounting only. A mount
// that a killed node left at the same place is detached first.
//
// Root mounts by the system call; other users need fusermount3. Errors:
// ErrNoFUSE, ErrNoHelper, ErrAllowOther, ErrRootOnly, ErrMounted, and those of the
// system.
func Mount(ctx context.Context, vol *volume.Volume, o Options) (*Server, error) {
	o.setDefaults()
	path, created, err := prepare(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", o.Mountpoint, err)
	}
	s, err := serve(ctx, vol, path, o)
	if err != nil {
		if created {
			os.Remove(path)
		}
		return nil, fmt.Errorf("mount on %s: %w", path, err)
	}
	s.setReadAhead()
	return s, nil
}

func serve(ctx context.Context, vol *volume.Volume, path string, o Options) (*Server, error) {
	fs := newFileSystem(vol, o)
	srv, err := fuse.NewServer(fs, path, fuseOptions(fs, o))
	if err != nil {
		if m, mounted := mountAt(path); mounted && m.fstype == fsType {
			err = errors.Join(err, detach(path))
		}
		return nil, explain(err)
	}
	s := &Server{fuse: srv, fs: fs, mountpoint: path, log: o.Logger, done: make(chan struct{}), ending: make(chan struct{})}
	mounted, guarded := make(chan struct{}), make(chan struct{})
	if o.Guard != "" {
		s.guarding.Go(func() { s.keepGuard(o.Guard, mounted, fs.coherent.begun, guarded) })
	}
	go func() {
		srv.Serve()
		close(s.ending)
		s.guarding.Wait()
		close(s.done)
	}()
	if err := s.check(ctx); err != nil {
		if derr := detach(path); derr != nil {
			o.Logger.Warn("cannot detach a mount that does not answer", "mountpoint", path, "err", derr)
		}
		s.ended()
		return nil, err
	}
	close(mounted)
	if o.Guard != "" && fs.coherent.shared() {
		<-guarded
	}
	return s, nil
}

// keepGuard has the mount guarded from when its volume is shared until it ends. It
// closes guarded when there is a guard or will be none.
func (s *Server) keepGuard(program string, mounted, shared <-chan struct{}, guarded chan<- struct{}) {
	defer func() {
		if guarded != nil {
			close(guarded)
		}
	}()
	for _, event := range []<-chan struct{}{mounted, shared} {
		select {
		case <-event:
		case <-s.ending:
			return
		}
	}
	g, err := startGuard(program, s.mountpoint)
	if err != nil {
		s.log.Warn("mount has no guard: if this process is killed, programs may hang until it is unmounted with force", "mountpoint", s.mountpoint, "err", err)
		return
	}
	close(guarded)
	guarded = nil
	<-s.ending
	g.dismiss()
}

func fuseOptions(fs *fileSystem, o Options) *fuse.MountOptions {
	root := os.Geteuid() == 0
	m := &fuse.MountOptions{
		FsName: o.Source, Name: fsName, // /proc/mounts: cairn … fuse.cairn
		AllowOther:               o.AllowOther || root,
		Options:                  []string{"default_permissions"},
		DirectMountStrict:        root,
		DirectMountFlags:         unix.MS_RELATIME, // none at all would stand for nosuid and nodev
		MaxWrite:                 maxRequest,
		MaxReadAhead:             maxRequest,
		MaxBackground:            maxAsync,
		MaxInflightRequestBytes:  maxInFlight,
		DisableSplice:            true, // bytes come from memory
		EnableSymlinkCaching:     true,
		EnableLocks:              true, // see locks.go
		ExplicitDataCacheControl: true, // our own writes must not drop pages by changing the mtime
		EnableAcl:                true, // the kernel reads access control lists and obeys them
		ExtraCapabilities:        capabilities,
		DisabledCapabilities:     fuse.CAP_PASSTHROUGH, // else overlayfs on top has one layer less
		PanicHandler:             fs.panicked,
		Logger:                   slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn),
	}
	for _, f := range []struct {
		set  bool
		flag uintptr
		name string
	}{
		{o.ReadOnly, unix.MS_RDONLY, "ro"},
		{o.NoExec, unix.MS_NOEXEC, "noexec"},
		{!o.Suid, unix.MS_NOSUID, "nosuid"},
		{!o.Dev, unix.MS_NODEV, "nodev"},
		{!o.Relatime, unix.MS_NOATIME, "noatime"}, // without it, relatime is the default
	} {
		switch {
		case !f.set:
		case root: // the system call takes flags
			m.DirectMountFlags |= f.flag
		default: // and the helper words
			m.Options = append(m.Options, f.name)
		}
	}
	return m
}

// explain adds to a refusal what its reason usually is, or where to find it.
func explain(err error) error {
	switch {
	case os.Geteuid() != 0:
		return fmt.Errorf("%s; the reason is on standard error", strings.TrimSpace(err.Error()))
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w: mounting needs the capability CAP_SYS_ADMIN (of a container: --cap-add SYS_ADMIN)", err)
	}
	return err
}

// check returns when the mount answers. The system calls that it makes on the
// mount run beside it and hold up nothing but themselves, should that fail.
func (s *Server) check(ctx context.Context) error {
	answer := make(chan error, 1)
	go func() {
		err := s.fuse.WaitMount()
		if err == nil {
			var st unix.Statfs_t
			err = unix.Statfs(s.mountpoint, &st)
			if err == nil && st.Type != unix.FUSE_SUPER_MAGIC {
				err = ErrNotMounted
			}
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.done:
		return ErrNotMounted
	}
}

// setReadAhead raises what the kernel reads ahead above the 128 KiB that it
// grants file systems like this one. Without permission the mount works, but
// reads in smaller pieces.
func (s *Server) setReadAhead() {
	err := os.ErrNotExist
	if m, ok := mountAt(s.mountpoint); ok {
		err = os.WriteFile("/sys/class/bdi/"+m.device+"/read_ahead_kb", fmt.Append(nil, readAheadKB), 0)
	}
	if err != nil {
		s.log.Debug("cannot set read-ahead", "mountpoint", s.mountpoint, "err", err)
	}
}

// Mountpoint returns the absolute path that the volume is mounted on.
func (s *Server) Mountpoint() string { return s.mountpoint }

// Wait returns when the volume is not mounted any more, by Unmount or otherwise,
// and all requests have been answered.
func (s *Server) Wait() { <-s.done }

// Unmount unmounts and waits for the last request. If processes use the mount it
// fails with a *BusyError after some tries, and the mount stays; package function
// Unmount can then detach it.
func (s *Server) Unmount() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.done:
		return nil
	default:
	}
	if err := unmount(s.mountpoint); err != nil {
		if _, mounted := mountAt(s.mountpoint); mounted {
			return err
		}
	}
	if !s.ended() { // another mount namespace holds a copy of the mount
		return &BusyError{s.mountpoint}
	}
	return nil
}

// ended waits for the last request, but not for ever.
func (s *Server) ended() bool {
	select {
	case <-s.done:
		return true
	case <-time.After(unmountWait):
		return false
	}
}

// Unmount unmounts what any process of Cairn has mounted on the path. If it is in
// use it fails with a *BusyError, unless lazy: then it is gone from sight at once,
// and unmounted when the last user is done. ErrNotMounted says that there is no
// such mount.
func Unmount(mountpoint string, lazy bool) error {
	path, err := resolve(mountpoint)
	if err != nil {
		return fmt.Errorf("unmount %s: %w", mountpoint, err)
	}
	if m, ok := mountAt(path); !ok || m.fstype != fsType {
		return fmt.Errorf("unmount %s: %w", path, ErrNotMounted)
	}
	if lazy {
		return detach(path)
	}
	return unmount(path)
}
