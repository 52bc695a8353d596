//go:build linux

package posix

import (
	"golang.org/x/sys/unix"
)

// utimensat(2), and which operations change which times (inode(7)).

// utimes is utimensat(2) of a path.
func utimes(path string, atime, mtime unix.Timespec, flags int) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{atime, mtime}, flags)
}

func now() unix.Timespec  { return unix.Timespec{Nsec: unix.UTIME_NOW} }
func omit() unix.Timespec { return unix.Timespec{Nsec: unix.UTIME_OMIT} }

func timesSet(r *rules) {
	r.rule("utimensat sets both times to the nanosecond", func(c *check) {
		for _, path := range []string{c.file("file", "x"), c.directory("dir"), c.fifo("fifo")} {
			a, m := unix.Timespec{Sec: 1234567890, Nsec: 123456789}, unix.Timespec{Sec: 1, Nsec: 999999999}
			c.ok(utimes(path, a, m, 0))
			st := c.stat(path)
			equal(c, "atime", st.Atim, a)
			equal(c, "mtime", st.Mtim, m)
		}
	})
	r.rule("UTIME_OMIT leaves a time, UTIME_NOW sets it to now", func(c *check) {
		path := c.file("file", "x")
		a, m := unix.Timespec{Sec: 1000, Nsec: 5}, unix.Timespec{Sec: 2000, Nsec: 6}
		c.ok(utimes(path, a, m, 0))
		c.ok(utimes(path, omit(), unix.Timespec{Sec: 3000}, 0))
		equal(c, "atime", c.stat(path).Atim, a)
		equal(c, "mtime", c.stat(path).Mtim, unix.Timespec{Sec: 3000})
		c.ok(utimes(path, unix.Timespec{Sec: 4000}, omit(), 0))
		equal(c, "atime", c.stat(path).Atim, unix.Timespec{Sec: 4000})
		equal(c, "mtime", c.stat(path).Mtim, unix.Timespec{Sec: 3000})
		c.changes(func() { c.ok(utimes(path, now(), omit(), 0)) }, change{path, "ac"})
		c.changes(func() { c.ok(utimes(path, omit(), now(), 0)) }, change{path, "mc"})
		c.changes(func() { c.ok(utimes(path, omit(), omit(), 0)) }, change{path, ""})
		c.changes(func() { c.ok(unix.UtimesNanoAt(unix.AT_FDCWD, path, nil, 0)) }, change{path, "amc"})
	})
	r.rule("UTIME_NOW is not before what was just written", func(c *check) {
		path, other := c.file("file", ""), c.file("other", "")
		fd := c.open(path, unix.O_RDWR)
		for range 50 {
			c.write(fd, "x", 0)
			c.ok(utimes(other, now(), now(), 0))
			if w, u := c.stat(path).Mtim, c.stat(other).Mtim; u.Nano() < w.Nano() {
				c.Fatalf("written at %v, then now was %v", w, u)
			}
		}
	})
	r.rule("AT_SYMLINK_NOFOLLOW sets the times of the link", func(c *check) {
		file, link := c.file("file", ""), c.symlink("file", "link")
		before := c.stat(file)
		at := unix.Timespec{Sec: 1000}
		c.ok(utimes(link, at, at, unix.AT_SYMLINK_NOFOLLOW))
		equal(c, "mtime of the link", c.stat(link).Mtim, at)
		equal(c, "mtime of the file", c.stat(file).Mtim, before.Mtim)
		c.ok(utimes(link, at, at, 0))
		equal(c, "mtime of the file", c.stat(file).Mtim, at)
	})
	r.rule("times that cannot be are EINVAL, files that are missing ENOENT or ENOTDIR", func(c *check) {
		path, t := c.file("file", ""), unix.Timespec{Sec: 1}
		c.want(unix.EINVAL, utimes(path, unix.Timespec{Nsec: 1e9}, t, 0))
		c.want(unix.EINVAL, utimes(path, t, unix.Timespec{Nsec: -1}, 0))
		c.want(unix.EINVAL, utimes(path, t, t, 1<<20))
		c.want(unix.ENOENT, utimes(c.path("none"), t, t, 0))
		c.want(unix.ENOTDIR, utimes(c.path("file", "x"), t, t, 0))
		c.want(unix.ELOOP, utimes(c.symlink("loop", "loop"), t, t, 0))
	})
}

func timesWho(r *rules) {
	some := unix.Timespec{Sec: 1}
	r.rule("the owner sets any time, without the right to write", func(c *check) {
		c.owned("file", alice(), staff, 0)
		c.as(alice(), func() {
			c.ok(utimes("file", some, some, 0))
			c.ok(utimes("file", now(), now(), 0))
		})
	})
	r.rule("others who may write set both times to now, and nothing else: EPERM", func(c *check) {
		c.owned("file", alice(), staff, 0o666)
		c.as(bob(), func() {
			c.ok(unix.UtimesNanoAt(unix.AT_FDCWD, "file", nil, 0))
			c.ok(utimes("file", now(), now(), 0))
			c.ok(utimes("file", omit(), omit(), 0))
			c.want(unix.EPERM, utimes("file", some, some, 0))
			c.want(unix.EPERM, utimes("file", now(), omit(), 0))
			c.want(unix.EPERM, utimes("file", omit(), now(), 0))
			c.want(unix.EPERM, utimes("file", now(), some, 0))
		})
	})
	r.rule("others who may not write set no time: EACCES for now, EPERM for others", func(c *check) {
		c.owned("file", alice(), staff, 0o644)
		c.as(bob(), func() {
			c.want(unix.EACCES, unix.UtimesNanoAt(unix.AT_FDCWD, "file", nil, 0))
			c.want(unix.EACCES, utimes("file", now(), now(), 0))
			c.want(unix.EPERM, utimes("file", some, some, 0))
			c.ok(utimes("file", omit(), omit(), 0))
		})
	})
}

func timesRange(r *rules) {
	r.rule("times before 1970 and far away are kept, others become the nearest", func(c *check) {
		lo, hi := c.traits.MinTime, c.traits.MaxTime
		for _, sec := range []int64{-1, 0, 1 << 31, 1 << 32, -1 << 31, 1<<33 + 5, lo, hi, lo - 1, hi + 1, -1 << 40, 1 << 40} {
			if sec == lo-1 && lo < sec || sec == hi+1 && hi > sec {
				continue // there are no others
			}
			path := c.file("file", "")
			c.ok(utimes(path, unix.Timespec{Sec: sec}, unix.Timespec{Sec: sec}, 0))
			want := min(max(sec, lo), hi)
			equal(c, "atime", c.stat(path).Atim.Sec, want)
			equal(c, "mtime", c.stat(path).Mtim.Sec, want)
		}
	})
	r.rule("fractions of seconds before 1970 count forwards", func(c *check) {
		path := c.file("file", "")
		at := unix.Timespec{Sec: -100, Nsec: 250000000}
		c.ok(utimes(path, at, at, 0))
		equal(c, "mtime", c.stat(path).Mtim, at)
	})
}

func timesOfFiles(r *rules) {
	type step struct {
		name, times string
		do          func(c *check, path string, fd int) error
	}
	for _, s := range []step{
		{"write", "mc", func(c *check, path string, fd int) error { _, err := unix.Pwrite(fd, []byte("x"), 2); return err }},
		{"write at the end", "mc", func(c *check, path string, fd int) error { _, err := unix.Pwrite(fd, []byte("x"), 99); return err }},
		{"write of nothing", "", func(c *check, path string, fd int) error { _, err := unix.Pwrite(fd, nil, 0); return err }},
		{"truncate", "mc", func(c *check, path string, fd int) error { return unix.Truncate(path, 2) }},
		{"ftruncate", "mc", func(c *check, path string, fd int) error { return unix.Ftruncate(fd, 2) }},
		{"O_TRUNC", "mc", func(c *check, path string, fd int) error { return openErr(path, unix.O_WRONLY|unix.O_TRUNC) }},
		{"punching a hole", "mc", func(c *check, path string, fd int) error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4)
		}},
		{"fallocate that grows", "mc", func(c *check, path string, fd int) error { return unix.Fallocate(fd, 0, 0, 10000) }},
		{"chmod", "c", func(c *check, path string, fd int) error { return unix.Chmod(path, 0o600) }},
		{"chmod to the same", "c", func(c *check, path string, fd int) error { return unix.Chmod(path, 0o644) }},
		{"chown", "c", func(c *check, path string, fd int) error { return unix.Chown(path, 1, 2) }},
		{"setxattr", "c", func(c *check, path string, fd int) error { return unix.Setxattr(path, "user.x", []byte("y"), 0) }},
		{"removexattr", "c", func(c *check, path string, fd int) error { return unix.Removexattr(path, "user.there") }},
		{"link", "c", func(c *check, path string, fd int) error { return unix.Link(path, path+" too") }},
		{"unlink of another name", "c", func(c *check, path string, fd int) error { return unix.Unlink(c.path("other")) }},
		{"rename", "c", func(c *check, path string, fd int) error { return unix.Rename(c.path("other"), path+" moved") }},
		{"utimensat", "mc", func(c *check, path string, fd int) error { return utimes(path, omit(), now(), 0) }},
	} {
		r.rule(s.name+" changes of the file "+letters(s.times), func(c *check) {
			path := c.file("file", "content")
			c.ok(unix.Link(path, c.path("other")))
			c.ok(unix.Setxattr(path, "user.there", []byte("x"), 0))
			fd := c.open(path, unix.O_RDWR)
			c.changes(func() { c.ok(s.do(c, path, fd)) }, change{path, s.times})
		})
	}
	r.rule("unlink changes the ctime of a file that stays open", func(c *check) {
		path := c.file("file", "")
		fd := c.open(path, unix.O_RDWR)
		before := c.fstat(fd)
		c.later(before.Ctim)
		c.ok(unix.Unlink(path))
		after := c.fstat(fd)
		if after.Ctim.Nano() <= before.Ctim.Nano() {
			c.Errorf("ctime was %v and is %v", before.Ctim, after.Ctim)
		}
		equal(c, "mtime", after.Mtim, before.Mtim)
	})
}

// letters spells out the times of a change.
func letters(times string) string {
	switch times {
	case "":
		return "nothing"
	case "c":
		return "ctime"
	}
	return "mtime and ctime"
}

func timesOfDirectories(r *rules) {
	for name, do := range map[string]func(c *check, dir string) error{
		"creating a file": func(c *check, dir string) error { return openErr(dir+"/new", unix.O_CREAT|unix.O_RDWR) },
		"mknod":           func(c *check, dir string) error { return unix.Mkfifo(dir+"/new", 0o644) },
		"mkdir":           func(c *check, dir string) error { return unix.Mkdir(dir+"/new", 0o755) },
		"rmdir":           func(c *check, dir string) error { return unix.Rmdir(dir + "/sub") },
		"symlink":         func(c *check, dir string) error { return unix.Symlink("x", dir+"/new") },
		"link":            func(c *check, dir string) error { return unix.Link(dir+"/file", dir+"/new") },
		"unlink":          func(c *check, dir string) error { return unix.Unlink(dir + "/file") },
		"rename within":   func(c *check, dir string) error { return unix.Rename(dir+"/file", dir+"/new") },
		"rename over":     func(c *check, dir string) error { return unix.Rename(dir+"/file", dir+"/other") },
		"rename into":     func(c *check, dir string) error { return unix.Rename(c.path("outside"), dir+"/new") },
		"rename out of":   func(c *check, dir string) error { return unix.Rename(dir+"/sub", c.path("new")) },
		"exchanging": func(c *check, dir string) error {
			return rename2(dir+"/file", c.path("outside"), unix.RENAME_EXCHANGE)
		},
	} {
		r.rule(name+" changes of the directory mtime and ctime", func(c *check) {
			dir := c.directory("dir")
			c.file("dir/file", "")
			c.file("dir/other", "")
			c.directory("dir", "sub")
			c.file("outside", "")
			c.changes(func() { c.ok(do(c, dir)) }, change{dir, "mc"})
		})
	}
	r.rule("rename changes both directories and the ctime of what moves", func(c *check) {
		a, b := c.directory("a"), c.directory("b")
		file, dir := c.file("a/file", ""), c.directory("a", "dir")
		before := c.stat(file).Ctim
		c.changes(func() {
			c.ok(unix.Rename(file, b+"/file"))
			c.ok(unix.Rename(dir, b+"/dir"))
		}, change{a, "mc"}, change{b, "mc"})
		if after := c.stat(b + "/file").Ctim; after.Nano() <= before.Nano() {
			c.Errorf("ctime was %v and is %v", before, after)
		}
	})
	r.rule("a new file has the times of its creation, its directory the same", func(c *check) {
		dir := c.directory("dir")
		c.later(c.stat(dir).Ctim)
		c.file("dir/file", "")
		st := c.stat(dir + "/file")
		equal(c, "mtime and ctime", st.Mtim, st.Ctim)
		equal(c, "atime and ctime", st.Atim, st.Ctim)
		if d := c.stat(dir).Mtim; d.Nano() > st.Ctim.Nano()+int64(1e9) {
			c.Errorf("made at %v in a directory changed at %v", st.Ctim, d)
		}
	})
}

func timesUntouched(r *rules) {
	r.rule("changing a file changes no time of its directory", func(c *check) {
		dir := c.directory("dir")
		path := c.file("dir/file", "content")
		c.changes(func() {
			fd := c.open(path, unix.O_RDWR)
			c.write(fd, "x", 100000)
			c.ok(unix.Ftruncate(fd, 5))
			c.ok(unix.Chmod(path, 0o600))
			c.ok(unix.Chown(path, 1, 1))
			c.ok(unix.Fsync(fd))
		}, change{dir, ""})
	})
	r.rule("reading changes neither mtime nor ctime", func(c *check) {
		dir := c.directory("dir")
		path, link := c.file("dir/file", "content"), c.symlink("x", "dir/link")
		c.changes(func() {
			c.holds(path, "content")
			c.entries(dir)
			_, err := unix.Readlink(link, make([]byte, 10))
			c.ok(err)
			c.ok(openErr(path, unix.O_RDWR))
		}, change{path, ""}, change{dir, ""}, change{link, ""})
	})
	r.rule("what is refused changes no time", func(c *check) {
		dir, path := c.directory("dir"), c.file("dir/file", "")
		c.directory("dir", "sub")
		c.file("dir/sub/x", "")
		c.changes(func() {
			c.want(unix.EEXIST, unix.Mkdir(path, 0o755))
			c.want(unix.EEXIST, unix.Link(path, dir+"/sub"))
			c.want(unix.ENOENT, unix.Unlink(dir+"/none"))
			c.want(unix.ENOTEMPTY, unix.Rmdir(dir+"/sub"))
			c.want(unix.EISDIR, unix.Rename(path, dir+"/sub"))
		}, change{path, ""}, change{dir, ""})
	})
	r.rule("times survive closing and syncing", func(c *check) {
		path := c.file("file", "")
		at := unix.Timespec{Sec: 1000, Nsec: 1}
		fd := c.open(path, unix.O_RDWR)
		c.write(fd, "content", 0)
		c.ok(utimes(path, at, at, 0))
		c.ok(unix.Fsync(fd))
		c.close(fd)
		equal(c, "mtime", c.stat(path).Mtim, at)
		fd = c.open(path, unix.O_RDONLY)
		equal(c, "mtime", c.fstat(fd).Mtim, at)
	})
}

func timesOfAccess(r *rules) {
	old := unix.Timespec{Sec: 1000}
	read := func(c *check, path string, flags int) {
		c.Helper()
		fd := c.open(path, unix.O_RDONLY|flags)
		if c.stat(path).Mode&unix.S_IFMT == unix.S_IFDIR {
			c.list(fd, 4096)
			return
		}
		c.same("file", c.read(fd, 100, 0), "content")
	}
	r.rule("reading sets an atime that is older than mtime, if reading sets it at all", func(c *check) {
		for _, path := range []string{c.file("file", "content"), c.directory("dir")} {
			for range 2 { // what is read may be in memory the second time
				c.ok(utimes(path, old, now(), 0))
				read(c, path, 0)
				st := c.stat(path)
				equal(c, "set", st.Atim.Nano() > old.Nano(), c.traits.AccessTimes)
			}
		}
	})
	r.rule("reading with O_NOATIME sets no atime", func(c *check) {
		for _, path := range []string{c.file("file", "content"), c.directory("dir")} {
			c.ok(utimes(path, old, now(), 0))
			read(c, path, unix.O_NOATIME)
			equal(c, "atime", c.stat(path).Atim, old)
		}
	})
	r.rule("what reads no content sets no atime", func(c *check) {
		path := c.file("file", "content")
		c.ok(utimes(path, old, now(), 0))
		fd := c.open(path, unix.O_RDWR)
		c.write(fd, "x", 3)
		c.ok(unix.Fsync(fd))
		c.ok(unix.Chmod(path, 0o600))
		c.ok(unix.Link(path, c.path("link")))
		equal(c, "atime", c.stat(path).Atim, old)
	})
}
