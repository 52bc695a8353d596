//go:build linux

package posix

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// mknod(2), mkfifo(3), bind(2) of a UNIX socket, and mkdir(2).

func mknodMakes(r *rules) {
	r.rule("mknod makes files, FIFOs and sockets with the mode it is given", func(c *check) {
		for _, kind := range []uint32{unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK} {
			path := c.path(fmt.Sprintf("%o", kind))
			c.apart(0, func() { c.ok(unix.Mknod(path, kind|0o7641, 0)) })
			st := c.stat(path)
			equal(c, "mode", st.Mode, kind|0o7641)
			equal(c, "links", st.Nlink, 1)
			equal(c, "size", st.Size, 0)
			equal(c, "device", st.Rdev, 0)
		}
	})
	r.rule("mknod without a type makes a regular file", func(c *check) {
		c.ok(unix.Mknod(c.path("new"), 0o600, 0))
		equal(c, "mode", c.stat(c.path("new")).Mode, unix.S_IFREG|0o600)
	})
	r.rule("mknod by root makes devices, or is EPERM where there are none", func(c *check) {
		device := unix.Mkdev(1, 3)
		for _, kind := range []uint32{unix.S_IFCHR, unix.S_IFBLK} {
			path := c.path(fmt.Sprintf("%o", kind))
			err := unix.Mknod(path, kind|0o600, int(device))
			if !c.traits.Devices {
				c.want(unix.EPERM, err)
				c.want(unix.ENOENT, statErr(path))
				continue
			}
			c.ok(err)
			st := c.stat(path)
			equal(c, "mode", st.Mode, kind|0o600)
			equal(c, "device", st.Rdev, device)
		}
	})
}

func mknodRefuses(r *rules) {
	r.rule("mknod refuses what exists, of any type: EEXIST", func(c *check) {
		for _, path := range []string{c.file("file", ""), c.directory("dir"), c.fifo("fifo"), c.symlink("none", "link")} {
			c.want(unix.EEXIST, unix.Mknod(path, unix.S_IFREG|0o644, 0))
			c.want(unix.EEXIST, unix.Mkfifo(path, 0o644))
		}
	})
	r.rule("mknod of a directory is EPERM, of an unknown type EINVAL", func(c *check) {
		c.want(unix.EPERM, unix.Mknod(c.path("new"), unix.S_IFDIR|0o755, 0))
		c.want(unix.EINVAL, unix.Mknod(c.path("new"), unix.S_IFLNK|0o755, 0))
		c.want(unix.EINVAL, unix.Mknod(c.path("new"), 0o070000|0o755, 0))
	})
	r.rule("mknod of a device by an ordinary user is EPERM, of a FIFO it is not", func(c *check) {
		c.as(alice(), func() {
			c.want(unix.EPERM, unix.Mknod("chr", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
			c.want(unix.EPERM, unix.Mknod("blk", unix.S_IFBLK|0o600, int(unix.Mkdev(1, 3))))
			c.ok(unix.Mkfifo("fifo", 0o600))
			c.ok(unix.Mknod("sock", unix.S_IFSOCK|0o600, 0))
		})
	})
	r.rule("mknod needs a directory that exists and that the caller may write", func(c *check) {
		c.want(unix.ENOENT, unix.Mkfifo(c.path("none", "new"), 0o644))
		c.want(unix.ENOTDIR, unix.Mkfifo(c.file("file", "")+"/new", 0o644))
		c.want(unix.ENAMETOOLONG, unix.Mkfifo(c.path(strings.Repeat("n", 256)), 0o644))
		c.want(unix.ENOENT, unix.Mkfifo("", 0o644))
		c.directory("dir")
		c.as(alice(), func() { c.want(unix.EACCES, unix.Mkfifo("dir/new", 0o644)) })
	})
}

func mknodSockets(r *rules) {
	r.rule("a bound socket is a name that can be connected to", func(c *check) {
		c.apart(0, func() {
			server, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			c.ok(err)
			defer unix.Close(server)
			name := &unix.SockaddrUnix{Name: "socket"}
			c.ok(unix.Bind(server, name))
			c.ok(unix.Listen(server, 1))
			equal(c, "type", c.stat("socket").Mode&unix.S_IFMT, unix.S_IFSOCK)
			client, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			c.ok(err)
			defer unix.Close(client)
			c.want(unix.EADDRINUSE, unix.Bind(client, name))
			c.ok(unix.Connect(client, name))
			c.want(unix.ENXIO, openErr("socket", unix.O_RDWR))
			c.ok(unix.Rename("socket", "moved"))
			c.ok(unix.Unlink("moved"))
		})
	})
	r.rule("a socket that nobody listens at refuses connections", func(c *check) {
		c.apart(0, func() {
			c.ok(unix.Mknod("socket", unix.S_IFSOCK|0o644, 0))
			client, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			c.ok(err)
			defer unix.Close(client)
			c.want(unix.ECONNREFUSED, unix.Connect(client, &unix.SockaddrUnix{Name: "socket"}))
			c.want(unix.ENOENT, unix.Connect(client, &unix.SockaddrUnix{Name: "none"}))
		})
	})
}

func mkdirMakes(r *rules) {
	r.rule("mkdir makes an empty directory with the mode it is given", func(c *check) {
		c.apart(0, func() {
			for _, mode := range []uint32{0, 0o700, 0o1755, 0o777} {
				path := fmt.Sprintf("%o", mode)
				c.ok(unix.Mkdir(path, mode))
				equal(c, "mode", c.stat(path).Mode, unix.S_IFDIR|mode)
				equal(c, "entries", len(c.entries(path)), 2)
			}
		})
	})
	r.rule("mkdir takes no set-id bits", func(c *check) {
		c.apart(0, func() {
			c.ok(unix.Mkdir("dir", 0o6755))
			equal(c, "mode", c.mode("dir"), 0o755)
		})
	})
	r.rule("mkdir allows trailing slashes", func(c *check) {
		c.ok(unix.Mkdir(c.path("dir")+"///", 0o755))
		equal(c, "type", c.stat(c.path("dir")).Mode&unix.S_IFMT, unix.S_IFDIR)
	})
}

func mkdirRefuses(r *rules) {
	r.rule("mkdir refuses what exists, of any type: EEXIST", func(c *check) {
		for _, path := range []string{
			c.file("file", ""), c.directory("dir"), c.fifo("fifo"), c.symlink("none", "link"), c.symlink("dir", "to dir"),
			c.dir + "/.", c.dir + "/..", "/",
		} {
			c.want(unix.EEXIST, unix.Mkdir(path, 0o755))
		}
		c.want(unix.ENOENT, statErr(c.path("none")))
	})
	r.rule("mkdir needs a directory that exists and that the caller may write", func(c *check) {
		c.want(unix.ENOENT, unix.Mkdir(c.path("none", "new"), 0o755))
		c.want(unix.ENOENT, unix.Mkdir(c.symlink("none", "link")+"/new", 0o755))
		c.want(unix.ENOTDIR, unix.Mkdir(c.file("file", "")+"/new", 0o755))
		c.want(unix.ENAMETOOLONG, unix.Mkdir(c.path(strings.Repeat("n", 256)), 0o755))
		c.want(unix.ELOOP, unix.Mkdir(c.symlink("loop", "loop")+"/new", 0o755))
		c.directory("dir")
		c.as(alice(), func() { c.want(unix.EACCES, unix.Mkdir("dir/new", 0o755)) })
	})
}
