//go:build linux

package posix

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// The bits above the nine (inode(7)): when set-id bits go away, what S_ISGID and
// S_ISVTX do to directories, and the umask (umask(2)).

func permissionSetIDs(r *rules) {
	// Whoever is not root loses the bits by changing the content.
	for name, change := range map[string]func(c *check, fd int) error{
		"write":     func(c *check, fd int) error { _, err := unix.Pwrite(fd, []byte("x"), 0); return err },
		"append":    func(c *check, fd int) error { _, err := unix.Pwrite(fd, []byte("x"), 7); return err },
		"truncate":  func(c *check, fd int) error { return unix.Ftruncate(fd, 3) },
		"fallocate": func(c *check, fd int) error { return unix.Fallocate(fd, 0, 0, 100) },
		"punching a hole": func(c *check, fd int) error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4)
		},
		"copy_file_range": func(c *check, fd int) error {
			at, pos := int64(0), int64(1)
			_, err := unix.CopyFileRange(c.open(procPath(fd), unix.O_RDONLY), &at, fd, &pos, 1, 0)
			return err
		},
	} {
		r.rule(name+" by an ordinary user takes the set-id bits", func(c *check) {
			path := c.owned("file", alice(), staff, 0o6777)
			c.as(bob(), func() { c.ok(change(c, c.open("file", unix.O_RDWR))) })
			equal(c, "mode", c.mode(path), 0o777)
		})
		r.rule(name+" by root keeps the set-id bits", func(c *check) {
			path := c.owned("file", alice(), staff, 0o6777)
			c.ok(change(c, c.open(path, unix.O_RDWR)))
			equal(c, "mode", c.mode(path), 0o6777)
		})
	}
	r.rule("opening with O_TRUNC by an ordinary user takes the set-id bits", func(c *check) {
		path := c.owned("file", alice(), staff, 0o6777)
		c.as(bob(), func() { c.ok(openErr("file", unix.O_WRONLY|unix.O_TRUNC)) })
		equal(c, "mode", c.mode(path), 0o777)
	})
	r.rule("reading and opening keep the set-id bits", func(c *check) {
		path := c.owned("file", alice(), staff, 0o6777)
		c.as(bob(), func() {
			fd := c.open("file", unix.O_RDWR)
			c.read(fd, 9, 0)
			_, err := unix.Pwrite(fd, nil, 0)
			c.ok(err)
		})
		equal(c, "mode", c.mode(path), 0o6777)
	})
	r.rule("chown takes the set-id bits of a program, whoever does it", func(c *check) {
		for _, ids := range [][2]int{{bob().uid, -1}, {-1, bob().gid}, {alice().uid, staff}} {
			path := c.owned(fmt.Sprint(ids), alice(), staff, 0o6755)
			c.ok(unix.Chown(path, ids[0], ids[1]))
			equal(c, "mode", c.mode(path), 0o755)
		}
		member := alice()
		member.groups = []int{staff}
		path := c.owned("file", alice(), alice().gid, 0o6755)
		c.as(member, func() { c.ok(unix.Chown("file", -1, staff)) })
		equal(c, "mode", c.mode(path), 0o755)
	})
	r.rule("chown by root keeps S_ISGID where the group may not run the file, and of directories", func(c *check) {
		path := c.owned("file", alice(), staff, 0o2644)
		c.ok(unix.Chown(path, bob().uid, -1))
		equal(c, "mode", c.mode(path), 0o2644)
		dir := c.ownedDir("dir", alice(), staff, 0o7755)
		c.ok(unix.Chown(dir, bob().uid, bob().gid))
		equal(c, "mode of the directory", c.mode(dir), 0o7755)
	})
}

func permissionSetgidDirectories(r *rules) {
	r.rule("what is made in a directory with S_ISGID gets its group", func(c *check) {
		c.ownedDir("dir", user{}, staff, 0o2777)
		c.as(alice(), func() {
			c.ok(openErr("dir/file", unix.O_CREAT|unix.O_RDWR))
			c.ok(unix.Mkfifo("dir/fifo", 0o644))
			c.ok(unix.Symlink("x", "dir/link"))
			c.ok(unix.Mkdir("dir/sub", 0o755))
			for _, name := range []string{"file", "fifo", "link", "sub"} {
				equal(c, "group of "+name, c.stat("dir/"+name).Gid, staff)
				equal(c, "owner of "+name, c.stat("dir/"+name).Uid, uint32(alice().uid))
			}
			equal(c, "mode of the file", c.mode("dir/file"), 0o644)
			equal(c, "mode of the directory", c.mode("dir/sub"), 0o2755)
		})
	})
	r.rule("a file made there by a user outside of the group has no S_ISGID", func(c *check) {
		c.ownedDir("dir", user{}, staff, 0o2777)
		member := alice()
		member.groups = []int{staff}
		for name, who := range map[string]user{"stranger": alice(), "member": member} {
			c.as(who, func() {
				fd, err := unix.Open("dir/"+name, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o2775)
				c.ok(err)
				c.closes(fd)
			})
		}
		equal(c, "mode by a stranger", c.mode(c.path("dir", "stranger")), 0o775)
		equal(c, "mode by a member", c.mode(c.path("dir", "member")), 0o2775)
	})
	r.rule("what is made elsewhere gets the caller's group", func(c *check) {
		c.ownedDir("dir", user{}, staff, 0o777)
		c.as(alice(), func() {
			c.ok(unix.Mkdir("dir/sub", 0o755))
			equal(c, "group", c.stat("dir/sub").Gid, uint32(alice().gid))
			equal(c, "mode", c.mode("dir/sub"), 0o755)
		})
	})
	r.rule("rename and link change no group", func(c *check) {
		c.ownedDir("dir", user{}, staff, 0o2777)
		c.as(alice(), func() {
			c.ok(unix.Mknod("file", unix.S_IFREG|0o644, 0))
			c.ok(unix.Link("file", "dir/link"))
			c.ok(unix.Rename("file", "dir/file"))
			equal(c, "group", c.stat("dir/file").Gid, uint32(alice().gid))
		})
	})
}

func permissionSticky(r *rules) {
	// sticky makes a directory of root with S_ISVTX, and in it a file and a
	// directory of alice's, and a file of bob's.
	sticky := func(c *check, owner user) {
		dir := c.ownedDir("dir", owner, owner.gid, 0o1777)
		for name, who := range map[string]user{"dir/alice": alice(), "dir/bob": bob()} {
			c.owned(name, who, who.gid, 0o666)
		}
		c.ownedDir("dir/sub", alice(), alice().gid, 0o777)
		equal(c, "mode", c.mode(dir), 0o1777)
	}
	r.rule("in a directory with S_ISVTX others remove, move and replace nothing: EPERM", func(c *check) {
		sticky(c, user{})
		c.as(bob(), func() {
			c.want(unix.EPERM, unix.Unlink("dir/alice"))
			c.want(unix.EPERM, unix.Rmdir("dir/sub"))
			c.want(unix.EPERM, unix.Rename("dir/alice", "dir/mine"))
			c.want(unix.EPERM, unix.Rename("dir/alice", "mine"))
			c.want(unix.EPERM, unix.Rename("dir/bob", "dir/alice"))
			c.want(unix.EPERM, rename2("dir/bob", "dir/alice", unix.RENAME_EXCHANGE))
			c.ok(openErr("dir/alice", unix.O_RDWR))
			c.ok(unix.Mkdir("dir/new", 0o755))
		})
	})
	r.rule("in a directory with S_ISVTX the owners remove what is theirs", func(c *check) {
		sticky(c, user{})
		c.as(alice(), func() {
			c.ok(unix.Rename("dir/alice", "dir/a"))
			c.ok(unix.Unlink("dir/a"))
			c.ok(unix.Rmdir("dir/sub"))
		})
	})
	r.rule("in a directory with S_ISVTX the owner of the directory removes everything", func(c *check) {
		carol := user{uid: 54003, gid: 54003}
		sticky(c, carol)
		c.as(carol, func() {
			c.ok(unix.Unlink("dir/alice"))
			c.ok(unix.Rename("dir/bob", "dir/b"))
			c.ok(unix.Rmdir("dir/sub"))
		})
	})
}

func permissionUmask(r *rules) {
	r.rule("the umask takes bits from whatever is made", func(c *check) {
		c.apart(0, func() {
			for _, mask := range []int{0, 0o022, 0o077, 0o777, 0o027} {
				unix.Umask(mask)
				m := uint32(mask)
				file, dir, fifo := fmt.Sprintf("file%o", mask), fmt.Sprintf("dir%o", mask), fmt.Sprintf("fifo%o", mask)
				fd, err := unix.Open(file, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o666)
				c.ok(err)
				c.closes(fd)
				equal(c, "mode of a file", c.mode(file), 0o666&^m)
				c.ok(unix.Mkdir(dir, 0o777))
				equal(c, "mode of a directory", c.mode(dir), 0o777&^m)
				c.ok(unix.Mknod(fifo, unix.S_IFIFO|0o666, 0))
				equal(c, "mode of a FIFO", c.mode(fifo), 0o666&^m)
			}
		})
	})
	r.rule("the umask takes nothing from what chmod sets and from links", func(c *check) {
		c.apart(0, func() {
			unix.Umask(0o777)
			c.ok(unix.Symlink("x", "link"))
			equal(c, "mode of a link", c.mode("link"), 0o777)
			c.ok(unix.Mknod("file", unix.S_IFREG|0o666, 0))
			c.ok(unix.Chmod("file", 0o765))
			equal(c, "mode", c.mode("file"), 0o765)
		})
	})
}
