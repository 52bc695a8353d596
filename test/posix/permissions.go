//go:build linux

package posix

import (
	"golang.org/x/sys/unix"
)

// Who may do what: path_resolution(7), access(2), chmod(2), chown(2).

// owned makes a file with an owner, a group and a mode.
func (c *check) owned(name string, u user, gid int, mode uint32) string {
	c.Helper()
	path := c.file(name, "content")
	c.ok(unix.Chown(path, u.uid, gid))
	c.ok(unix.Chmod(path, mode))
	return path
}

// ownedDir makes a directory with an owner, a group and a mode.
func (c *check) ownedDir(name string, u user, gid int, mode uint32) string {
	c.Helper()
	path := c.directory(name)
	c.ok(unix.Chown(path, u.uid, gid))
	c.ok(unix.Chmod(path, mode))
	return path
}

// staff is a group without members, except those whom a rule puts there.
const staff = 54100

func permissionFiles(r *rules) {
	r.rule("the class of owner, group or others alone decides", func(c *check) {
		member := bob()
		member.groups = []int{staff}
		others := user{uid: 54003, gid: 54003}
		c.owned("owner", alice(), staff, 0o077)
		c.owned("group", alice(), staff, 0o707)
		c.owned("others", alice(), staff, 0o770)
		for _, who := range []struct {
			user
			barred string
		}{{alice(), "owner"}, {member, "group"}, {others, "others"}} {
			c.as(who.user, func() {
				for _, name := range []string{"owner", "group", "others"} {
					for _, flags := range []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR} {
						if err := openErr(name, flags); (err == unix.EACCES) != (name == who.barred) {
							c.Errorf("user %d opens the file that bars %s: %v", who.uid, name, err)
						}
					}
				}
			})
		}
	})
	r.rule("reading and writing are rights of their own", func(c *check) {
		c.owned("read", alice(), staff, 0o400)
		c.owned("write", alice(), staff, 0o200)
		c.as(alice(), func() {
			c.ok(openErr("read", unix.O_RDONLY))
			c.want(unix.EACCES, openErr("read", unix.O_WRONLY))
			c.want(unix.EACCES, openErr("read", unix.O_RDWR))
			c.ok(openErr("write", unix.O_WRONLY))
			c.want(unix.EACCES, openErr("write", unix.O_RDONLY))
			c.want(unix.EACCES, openErr("write", unix.O_RDWR))
			c.want(unix.EACCES, unix.Truncate("read", 0))
			c.ok(unix.Truncate("write", 0))
		})
	})
	r.rule("the rights of an open file are those it had when it was opened", func(c *check) {
		c.owned("file", alice(), staff, 0o600)
		c.as(alice(), func() {
			fd := c.open("file", unix.O_RDWR)
			c.ok(unix.Chmod("file", 0))
			c.write(fd, "x", 0)
			c.same("file", c.read(fd, 1, 0), "x")
			c.ok(unix.Ftruncate(fd, 0))
			c.want(unix.EACCES, openErr("file", unix.O_RDONLY))
		})
	})
	r.rule("root reads and writes whatever the mode", func(c *check) {
		path := c.owned("file", alice(), staff, 0)
		c.ok(openErr(path, unix.O_RDWR))
		dir := c.ownedDir("dir", alice(), staff, 0)
		c.ok(openErr(dir+"/new", unix.O_CREAT|unix.O_RDWR))
		equal(c, "entries", len(c.entries(dir)), 3)
	})
}

func permissionDirectories(r *rules) {
	r.rule("without the right to search, what is in a directory is EACCES", func(c *check) {
		dir := c.directory("dir")
		c.file("dir/file", "x")
		c.directory("dir", "sub")
		c.ok(unix.Chmod(dir, 0o666))
		c.as(alice(), func() {
			var st unix.Stat_t
			for what, err := range map[string]error{
				"stat": unix.Stat("dir/file", &st), "lstat": unix.Lstat("dir/none", &st), "open": openErr("dir/file", unix.O_RDONLY),
				"create": openErr("dir/new", unix.O_CREAT|unix.O_RDWR), "mkdir": unix.Mkdir("dir/new", 0o755), "rmdir": unix.Rmdir("dir/sub"),
				"unlink": unix.Unlink("dir/file"), "rename": unix.Rename("dir/file", "x"), "link": unix.Link("dir/file", "x"),
				"symlink": unix.Symlink("x", "dir/x"), "chmod": unix.Chmod("dir/file", 0o777), "truncate": unix.Truncate("dir/file", 0),
				"access": unix.Access("dir/file", unix.F_OK), "chdir": unix.Chdir("dir"), "O_PATH": openErr("dir/file", unix.O_PATH),
				"utimensat": unix.UtimesNanoAt(unix.AT_FDCWD, "dir/file", nil, 0),
			} {
				if err != unix.EACCES {
					c.Errorf("%s: error is %v, want EACCES", what, err)
				}
			}
			equal(c, "entries", len(c.entries("dir")), 4)
		})
	})
	r.rule("without the right to read, a directory is not listed but searched", func(c *check) {
		dir := c.directory("dir")
		c.file("dir/file", "x")
		c.ok(unix.Chmod(dir, 0o711))
		c.as(alice(), func() {
			c.want(unix.EACCES, openErr("dir", unix.O_RDONLY))
			c.holds("dir/file", "x")
			c.ok(unix.Chdir("dir"))
		})
	})
	r.rule("names are made and removed by those who may write and search the directory", func(c *check) {
		for name, mode := range map[string]uint32{"w": 0o772, "x": 0o771, "wx": 0o773} {
			dir := c.directory(name)
			c.file(name+"/file", "")
			c.ok(unix.Chmod(dir, mode))
			c.as(alice(), func() {
				if name == "wx" {
					c.ok(unix.Mkdir(name+"/new", 0o755))
					c.ok(unix.Unlink(name + "/file"))
					return
				}
				c.want(unix.EACCES, unix.Mkdir(name+"/new", 0o755))
				c.want(unix.EACCES, unix.Unlink(name+"/file"))
			})
		}
	})
}

func permissionAccess(r *rules) {
	r.rule("access tells what the user may do", func(c *check) {
		for mode := range uint32(8) {
			c.owned("file", alice(), staff, mode<<6)
			c.as(alice(), func() {
				c.ok(unix.Access("file", unix.F_OK))
				for ask := range uint32(8) {
					err := unix.Access("file", ask)
					if allowed := ask&^mode == 0; allowed != (err == nil) || !allowed && err != unix.EACCES {
						c.Errorf("mode %o: access %o is %v", mode, ask, err)
					}
				}
			})
			c.ok(unix.Unlink(c.path("file")))
		}
	})
	r.rule("access by root is refused for running only, and only without any x", func(c *check) {
		path := c.owned("file", alice(), staff, 0)
		c.ok(unix.Access(path, unix.R_OK|unix.W_OK))
		c.want(unix.EACCES, unix.Access(path, unix.X_OK))
		c.ok(unix.Chmod(path, 0o001))
		c.ok(unix.Access(path, unix.X_OK))
		c.ok(unix.Access(c.ownedDir("dir", alice(), staff, 0), unix.X_OK))
	})
	r.rule("access of what is missing is ENOENT or ENOTDIR", func(c *check) {
		c.want(unix.ENOENT, unix.Access(c.path("none"), unix.F_OK))
		c.want(unix.ENOENT, unix.Access(c.symlink("none", "link"), unix.F_OK))
		c.want(unix.ENOTDIR, unix.Access(c.file("file", "")+"/x", unix.F_OK))
		c.want(unix.EINVAL, unix.Access(c.path("file"), 0o10))
		c.ok(unix.Faccessat(unix.AT_FDCWD, c.path("link"), unix.F_OK, unix.AT_SYMLINK_NOFOLLOW))
	})
}

func permissionChmod(r *rules) {
	r.rule("chmod sets all twelve bits", func(c *check) {
		path, dir := c.file("file", ""), c.directory("dir")
		for _, mode := range []uint32{0, 0o7777, 0o644, 0o4755, 0o2755, 0o1644, 0o1777} {
			c.ok(unix.Chmod(path, mode))
			equal(c, "mode", c.mode(path), mode)
			c.ok(unix.Chmod(dir, mode))
			equal(c, "mode of the directory", c.mode(dir), mode)
			c.ok(unix.Fchmod(c.open(path, unix.O_RDONLY), mode^0o777))
			equal(c, "mode", c.mode(path), mode^0o777)
		}
	})
	r.rule("chmod is for the owner, EPERM for others", func(c *check) {
		c.owned("file", alice(), staff, 0o666)
		c.as(alice(), func() { c.ok(unix.Chmod("file", 0o777)) })
		c.as(bob(), func() {
			c.want(unix.EPERM, unix.Chmod("file", 0o600))
			c.want(unix.EPERM, unix.Fchmod(c.open("file", unix.O_RDWR), 0o600))
		})
		equal(c, "mode", c.mode(c.path("file")), 0o777)
	})
	r.rule("chmod by an owner outside of the group takes S_ISGID from the mode", func(c *check) {
		path := c.owned("file", alice(), staff, 0o644)
		c.as(alice(), func() { c.ok(unix.Chmod("file", 0o6755)) })
		equal(c, "mode", c.mode(path), 0o4755)
		member := alice()
		member.groups = []int{staff}
		c.as(member, func() { c.ok(unix.Chmod("file", 0o6755)) })
		equal(c, "mode set by a member", c.mode(path), 0o6755)
		c.ok(unix.Chmod(path, 0o2700))
		equal(c, "mode set by root", c.mode(path), 0o2700)
	})
	r.rule("chmod of what is missing is ENOENT or ENOTDIR", func(c *check) {
		c.want(unix.ENOENT, unix.Chmod(c.path("none"), 0o600))
		c.want(unix.ENOENT, unix.Chmod(c.symlink("none", "link"), 0o600))
		c.want(unix.ENOTDIR, unix.Chmod(c.file("file", "")+"/x", 0o600))
	})
}

func permissionChown(r *rules) {
	r.rule("chown sets owner and group, or with -1 one of them", func(c *check) {
		path := c.file("file", "")
		for _, step := range []struct {
			uid, gid         int
			wantUID, wantGID uint32
		}{{12, 13, 12, 13}, {-1, 14, 12, 14}, {15, -1, 15, 14}, {-1, -1, 15, 14}, {1 << 30, 1<<32 - 2, 1 << 30, 1<<32 - 2}} {
			c.ok(unix.Chown(path, step.uid, step.gid))
			equal(c, "owner", c.stat(path).Uid, step.wantUID)
			equal(c, "group", c.stat(path).Gid, step.wantGID)
		}
	})
	r.rule("chown of the owner is for root: EPERM", func(c *check) {
		c.owned("file", alice(), alice().gid, 0o666)
		c.as(alice(), func() {
			c.want(unix.EPERM, unix.Chown("file", bob().uid, -1))
			c.ok(unix.Chown("file", alice().uid, -1))
		})
		c.as(bob(), func() { c.want(unix.EPERM, unix.Chown("file", bob().uid, -1)) })
	})
	r.rule("chown of the group is for the owner, to a group of his: EPERM", func(c *check) {
		path := c.owned("file", alice(), alice().gid, 0o666)
		member := alice()
		member.groups = []int{staff}
		c.as(alice(), func() { c.want(unix.EPERM, unix.Chown("file", -1, staff)) })
		c.as(member, func() { c.ok(unix.Chown("file", -1, staff)) })
		equal(c, "group", c.stat(path).Gid, staff)
		stranger := bob()
		stranger.groups = []int{staff}
		c.as(stranger, func() { c.want(unix.EPERM, unix.Chown("file", -1, staff)) })
	})
	r.rule("chown of what is missing is ENOENT or ENOTDIR", func(c *check) {
		c.want(unix.ENOENT, unix.Chown(c.path("none"), 1, 1))
		c.want(unix.ENOTDIR, unix.Chown(c.file("file", "")+"/x", 1, 1))
	})
}
