//go:build linux

package posix

import (
	"golang.org/x/sys/unix"
)

// What is refused because something is mounted: by EBUSY, EXDEV and EROFS. The
// mounts are in a mount namespace that ends with the rule.

// mounting runs fn on a thread with a mount namespace of its own.
func (c *check) mounting(fn func()) {
	c.Helper()
	c.apart(unix.CLONE_NEWNS, func() {
		c.ok(unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
		fn()
	})
}

func mountPoints(r *rules) {
	r.rule("a mount point can be neither removed nor moved: EBUSY", func(c *check) {
		c.mounting(func() {
			c.ok(unix.Mkdir("dir", 0o755))
			c.ok(unix.Mkdir("other", 0o755))
			c.ok(unix.Mkdir("dir/point", 0o755))
			c.ok(unix.Mount("none", "dir/point", "tmpfs", 0, ""))
			c.want(unix.EBUSY, unix.Rmdir("dir/point"))
			c.want(unix.EBUSY, unix.Rename("dir/point", "dir/moved"))
			c.want(unix.EBUSY, unix.Rename("other", "dir/point"))
			c.want(unix.ENOTEMPTY, unix.Rmdir("dir"))
			c.ok(unix.Rename("dir", "moved"))
			c.ok(unix.Unmount("moved/point", 0))
			c.ok(unix.Rmdir("moved/point"))
		})
	})
	r.rule("a file that is a mount point can be neither removed nor replaced: EBUSY", func(c *check) {
		c.mounting(func() {
			c.file("point", "below")
			c.file("above", "above")
			c.file("other", "other")
			c.ok(unix.Mount("above", "point", "", unix.MS_BIND, ""))
			c.holds("point", "above")
			c.want(unix.EBUSY, unix.Unlink("point"))
			c.want(unix.EBUSY, unix.Rename("other", "point"))
			c.ok(unix.Unmount("point", 0))
			c.holds("point", "below")
		})
	})
	r.rule("link and rename stay within a mount: EXDEV", func(c *check) {
		c.mounting(func() {
			c.ok(unix.Mkdir("tmp", 0o755))
			c.ok(unix.Mkdir("dir", 0o755))
			c.ok(unix.Mkdir("bound", 0o755))
			c.file("file", "")
			c.ok(unix.Mount("none", "tmp", "tmpfs", 0, ""))
			c.ok(unix.Mount("dir", "bound", "", unix.MS_BIND, ""))
			for _, dir := range []string{"tmp", "bound"} {
				c.want(unix.EXDEV, unix.Link("file", dir+"/new"))
				c.want(unix.EXDEV, unix.Rename("file", dir+"/new"))
				c.want(unix.EXDEV, unix.Rename("dir", dir+"/new"))
			}
		})
	})
}

func readOnlyMounts(r *rules) {
	r.rule("a read-only mount refuses every change and no reading: EROFS", func(c *check) {
		c.mounting(func() {
			c.ok(unix.Mkdir("dir", 0o755))
			c.ok(unix.Mkdir("dir/sub", 0o755))
			c.file("dir/file", "content")
			c.symlink("file", "dir/link")
			c.ok(unix.Mount("dir", "dir", "", unix.MS_BIND, ""))
			c.ok(unix.Mount("", "dir", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			c.holds("dir/file", "content")
			fd, err := unix.Open("dir/file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			c.ok(err)
			defer unix.Close(fd)
			for what, err := range map[string]error{
				"open for writing": openErr("dir/file", unix.O_WRONLY),
				"O_TRUNC":          openErr("dir/file", unix.O_RDONLY|unix.O_TRUNC),
				"O_CREAT":          openErr("dir/new", unix.O_CREAT|unix.O_RDWR),
				"O_TMPFILE":        openErr("dir", unix.O_TMPFILE|unix.O_RDWR),
				"mknod":            unix.Mkfifo("dir/new", 0o644),
				"mkdir":            unix.Mkdir("dir/new", 0o755),
				"symlink":          unix.Symlink("x", "dir/new"),
				"link":             unix.Link("dir/file", "dir/new"),
				"unlink":           unix.Unlink("dir/file"),
				"rmdir":            unix.Rmdir("dir/sub"),
				"rename":           unix.Rename("dir/file", "dir/new"),
				"truncate":         unix.Truncate("dir/file", 0),
				"chmod":            unix.Chmod("dir/file", 0o600),
				"fchmod":           unix.Fchmod(fd, 0o600),
				"chown":            unix.Chown("dir/file", 1, 1),
				"utimensat":        unix.UtimesNanoAt(unix.AT_FDCWD, "dir/file", nil, 0),
				"setxattr":         unix.Setxattr("dir/file", "user.x", []byte("x"), 0),
				"removexattr":      unix.Removexattr("dir/file", "user.x"),
				"access":           unix.Access("dir/file", unix.W_OK),
			} {
				if err != unix.EROFS {
					c.Errorf("%s: error is %v, want EROFS", what, err)
				}
			}
			c.ok(openErr("dir/file", unix.O_CREAT|unix.O_RDONLY))
			c.want(unix.EEXIST, unix.Mkdir("dir/sub", 0o755))
			c.holds("dir/file", "content")
		})
	})
}
