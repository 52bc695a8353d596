//go:build linux

package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What is mounted where, and how to end it. The kernel's list of mounts is read,
// not the files below a mount point, because those may belong to a node that is
// dead or hangs.

const fsType = "fuse." + fsName

// mountInfo is one line of /proc/self/mountinfo.
type mountInfo struct {
	device string // major:minor
	path   string
	fstype string
}

// mountAt returns the topmost mount on path, if there is one.
func mountAt(path string) (mountInfo, bool) {
	list, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mountInfo{}, false
	}
	return findMount(list, path)
}

// findMount searches list, in the format of proc(5), for the last mount on path.
func findMount(list []byte, path string) (found mountInfo, ok bool) {
	for line := range bytes.Lines(list) {
		// id parent major:minor root path options [fields …] - type source options
		before, after, _ := strings.Cut(string(line), " - ")
		mount, kind := strings.Fields(before), strings.Fields(after)
		if len(mount) < 6 || len(kind) == 0 {
			continue
		}
		if p := unescape(mount[4]); p == path {
			found, ok = mountInfo{device: mount[2], path: p, fstype: kind[0]}, true
		}
	}
	return found, ok
}

// unescape undoes the kernel's writing of blanks and the like as \ooo.
func unescape(s string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, `\`)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		s = after
		if len(after) >= 3 {
			if c, err := strconv.ParseUint(after[:3], 8, 8); err == nil {
				b.WriteByte(byte(c))
				s = after[3:]
				continue
			}
		}
		b.WriteByte('\\')
	}
}

// resolve returns the absolute path of a mount point without symbolic links. The
// mount on it need not be alive.
func resolve(mountpoint string) (string, error) {
	path, err := filepath.Abs(mountpoint)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		return real, nil
	}
	dir, derr := filepath.EvalSymlinks(filepath.Dir(path))
	if derr != nil {
		return "", derr
	}
	path = filepath.Join(dir, filepath.Base(path))
	if _, mounted := mountAt(path); mounted {
		return path, nil // but its root cannot be looked at
	}
	return path, err
}

// prepare makes sure that the system can mount and that the mount point is a
// directory without a mount of ours. It returns its path and whether it had to
// be created.
func prepare(ctx context.Context, o Options) (path string, created bool, err error) {
	if err := checkSystem(o); err != nil {
		return "", false, err
	}
	path, err = resolve(o.Mountpoint)
	if errors.Is(err, os.ErrNotExist) && path != "" {
		err = os.Mkdir(path, 0o755)
		return path, err == nil, err
	}
	if err != nil {
		return "", false, err
	}
	if err := clearStale(ctx, path, o); err != nil {
		return "", false, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return "", false, err
	}
	if len(entries) > 0 {
		o.Logger.Warn("mount point is not empty; its files are hidden while it is mounted", "mountpoint", path)
	}
	return path, false, nil
}

func checkSystem(o Options) error {
	if _, err := os.Stat("/dev/fuse"); errors.Is(err, os.ErrNotExist) {
		return ErrNoFUSE
	}
	if os.Geteuid() == 0 {
		return nil
	}
	if o.Suid || o.Dev {
		return ErrRootOnly
	}
	if _, err := helper(); err != nil {
		return err
	}
	if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); err != nil {
		return fmt.Errorf("/dev/fuse: %w: users other than root need it to have mode 0666", err)
	}
	conf, err := os.ReadFile("/etc/fuse.conf")
	if o.AllowOther && err == nil && !allowsOther(conf) {
		return ErrAllowOther
	}
	return nil
}

// allowsOther reports whether conf, in the format of fuse.conf, has the line
// that lets ordinary users pass allow_other.
func allowsOther(conf []byte) bool {
	for line := range bytes.Lines(conf) {
		if string(bytes.TrimSpace(line)) == "user_allow_other" {
			return true
		}
	}
	return false
}

// clearStale detaches mounts of ours on path whose node is gone. One that is
// alive, or does not answer for a while, is ErrMounted; a dead one of another
// kind is left to its owner.
func clearStale(ctx context.Context, path string, o Options) error {
	const maxStacked = 16
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for range maxStacked {
		m, ok := mountAt(path)
		if !ok {
			return nil
		}
		dead := isDead(ctx, path)
		switch {
		case !dead && m.fstype == fsType:
			return ErrMounted
		case !dead:
			return nil
		case m.fstype != fsType:
			return fmt.Errorf("a mount of type %s is there whose server is gone: %w", m.fstype, syscall.ENOTCONN)
		}
		o.Logger.Warn("detaching a mount whose node is gone", "mountpoint", path)
		if err := detach(path); err != nil {
			return err
		}
	}
	return &BusyError{path}
}

// isDead reports whether the mount on path has lost its server. It asks by
// statfs, which is never answered from a cache.
func isDead(ctx context.Context, path string) bool {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(path, &st)
	}()
	select {
	case err := <-answer:
		return errors.Is(err, syscall.ENOTCONN)
	case <-ctx.Done():
		return false
	}
}

// helper returns the path of the program that mounts and unmounts for ordinary
// users.
func helper() (string, error) {
	for _, name := range []string{"fusermount3", "/bin/fusermount3", "fusermount", "/bin/fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNoHelper
}

// unmount unmounts path, trying for a while if it is in use: processes that have
// just ended may still be closing their files.
func unmount(path string) error {
	const tries = 6
	delay := 10 * time.Millisecond
	for try := 1; ; try++ {
		err := umount(path, false)
		if !errors.Is(err, syscall.EBUSY) {
			return err
		}
		if try == tries {
			return &BusyError{path}
		}
		time.Sleep(delay)
		delay *= 2
	}
}

// detach takes path out of sight now; it ends when it is no longer in use.
func detach(path string) error { return umount(path, true) }

func umount(path string, lazy bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		if err := unix.Unmount(path, flags); err != nil {
			return &os.PathError{Op: "unmount", Path: path, Err: err}
		}
		return nil
	}
	bin, err := helper()
	if err != nil {
		return err
	}
	args := []string{"-u", path}
	if lazy {
		args = []string{"-u", "-z", path}
	}
	cmd := exec.Command(bin, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		// The helper says why in words only.
		if strings.Contains(string(out), "busy") {
			err = syscall.EBUSY
		}
		return fmt.Errorf("unmount %s: %s: %w", path, bytes.TrimSpace(out), err)
	}
	return nil
}
