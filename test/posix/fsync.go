//go:build linux

package posix

import (
	"os"

	"golang.org/x/sys/unix"
)

// fsync(2), fdatasync(2), O_SYNC, sync_file_range(2) and statfs(2). That what
// was synced survives a power loss is for other tests to show.

func fsyncDescriptors(r *rules) {
	r.rule("fsync and fdatasync take any descriptor of a file or directory", func(c *check) {
		path, dir := c.file("file", "content"), c.directory("dir")
		for _, fd := range []int{c.open(path, unix.O_RDONLY), c.open(path, unix.O_WRONLY), c.open(path, unix.O_RDWR|unix.O_APPEND), c.open(dir, unix.O_RDONLY)} {
			c.ok(unix.Fsync(fd))
			c.ok(unix.Fdatasync(fd))
			c.ok(unix.Syncfs(fd))
		}
	})
	r.rule("fsync of a FIFO is EINVAL, of no descriptor EBADF", func(c *check) {
		c.want(unix.EINVAL, unix.Fsync(c.open(c.fifo("fifo"), unix.O_RDWR)))
		c.want(unix.EBADF, unix.Fsync(999999))
		c.want(unix.EBADF, unix.Fdatasync(999999))
	})
	r.rule("fsync by one descriptor takes what others wrote", func(c *check) {
		path := c.file("file", "")
		fd := c.open(path, unix.O_RDWR)
		c.write(fd, "content", 0)
		c.ok(unix.Fsync(c.open(path, unix.O_RDONLY)))
		c.holds(path, "content")
	})
}

func fsyncWrites(r *rules) {
	r.rule("O_SYNC and O_DSYNC write as others do", func(c *check) {
		for name, flags := range map[string]int{"sync": unix.O_SYNC, "dsync": unix.O_DSYNC, "append": unix.O_SYNC | unix.O_APPEND} {
			fd := c.open(c.path(name), unix.O_CREAT|unix.O_RDWR|flags)
			want := ""
			for range 20 {
				c.write(fd, "0123456789", int64(len(want)))
				want += "0123456789"
			}
			c.holds(c.path(name), want)
		}
	})
	r.rule("sync_file_range succeeds for ranges that can be", func(c *check) {
		fd := c.open(c.file("file", "content"), unix.O_RDWR)
		c.ok(unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER))
		c.want(unix.EINVAL, unix.SyncFileRange(fd, -1, 0, 0))
		c.want(unix.ESPIPE, unix.SyncFileRange(c.open(c.fifo("fifo"), unix.O_RDWR), 0, 0, 0))
	})
}

func statfsFigures(r *rules) {
	r.rule("statfs gives figures that fit together", func(c *check) {
		var st, again unix.Statfs_t
		c.ok(unix.Statfs(c.dir, &st))
		equal(c, "longest name", st.Namelen, 255)
		if st.Bsize <= 0 || st.Frsize <= 0 {
			c.Errorf("blocks have %d and %d bytes", st.Bsize, st.Frsize)
		}
		if st.Bavail > st.Bfree || st.Bfree > st.Blocks || st.Blocks == 0 {
			c.Errorf("of %d blocks %d are free, %d for all users", st.Blocks, st.Bfree, st.Bavail)
		}
		if st.Ffree > st.Files {
			c.Errorf("of %d inodes %d are free", st.Files, st.Ffree)
		}
		c.ok(unix.Fstatfs(c.open(c.file("file", ""), unix.O_RDONLY), &again))
		equal(c, "type", again.Type, st.Type)
		equal(c, "file system", again.Fsid, st.Fsid)
		equal(c, "blocks", again.Blocks, st.Blocks)
	})
	r.rule("statfs of what is missing is ENOENT or ENOTDIR, of no descriptor EBADF", func(c *check) {
		var st unix.Statfs_t
		c.want(unix.ENOENT, unix.Statfs(c.path("none"), &st))
		c.want(unix.ENOTDIR, unix.Statfs(c.file("file", "")+"/x", &st))
		c.want(unix.EBADF, unix.Fstatfs(999999, &st))
		c.ok(unix.Statfs(os.TempDir(), &st))
	})
}
