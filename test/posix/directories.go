//go:build linux

package posix

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// getdents64(2) and what readdir(3), telldir(3), seekdir(3) and rewinddir(3)
// make of it.

// entry is an entry of a directory.
type entry struct {
	ino  uint64
	next int64 // for lseek: where the entries after this one begin
	kind uint8
	name string
}

// page reads entries of an open directory into a buffer of size bytes. At the
// end there are none.
func (c *check) page(fd, size int) []entry {
	c.Helper()
	buf := make([]byte, size)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		c.Fatalf("getdents: %v", err)
	}
	var list []entry
	for p := buf[:n]; len(p) > 0; {
		length := binary.NativeEndian.Uint16(p[16:])
		name, _, _ := bytes.Cut(p[19:length], []byte{0})
		list = append(list, entry{binary.NativeEndian.Uint64(p), int64(binary.NativeEndian.Uint64(p[8:])), p[18], string(name)})
		p = p[length:]
	}
	return list
}

// list reads the rest of an open directory with buffers of size bytes.
func (c *check) list(fd, size int) []entry {
	c.Helper()
	var all []entry
	for {
		list := c.page(fd, size)
		if len(list) == 0 {
			return all
		}
		all = append(all, list...)
	}
}

// entries reads a directory.
func (c *check) entries(dir string) []entry {
	c.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	c.ok(err)
	defer unix.Close(fd)
	return c.list(fd, 32<<10)
}

// count returns how often each name is in a list.
func count(list []entry) map[string]int {
	n := make(map[string]int)
	for _, e := range list {
		n[e.name]++
	}
	return n
}

// once fails the rule unless the names that want has are in the list, once each,
// and no others.
func (c *check) once(list []entry, want ...string) {
	c.Helper()
	got, wrong := count(list), 0
	for _, name := range want {
		if got[name] != 1 {
			wrong++
		}
		delete(got, name)
	}
	if wrong > 0 || len(got) > 0 {
		c.Errorf("of %d entries %d do not come once, and %d others come", len(want), wrong, len(got))
	}
}

// numbered makes n names and returns them. They are those of one file, because
// many file systems are slow to make files.
func (c *check) numbered(dir string, n int) []string {
	c.Helper()
	fd := c.open(dir, unix.O_PATH)
	names := make([]string, n)
	for i := range n {
		names[i] = fmt.Sprintf("file %06d", i)
		if i == 0 {
			c.ok(unix.Mknodat(fd, names[0], unix.S_IFREG|0o644, 0))
			continue
		}
		c.ok(unix.Linkat(fd, names[0], fd, names[i], 0))
	}
	return names
}

// dots is names with "." and ".." in front.
func dots(names []string) []string { return append([]string{".", ".."}, names...) }

func (c *check) seek(fd int, at int64) {
	c.Helper()
	got, err := unix.Seek(fd, at, unix.SEEK_SET)
	c.ok(err)
	equal(c, "position", got, at)
}

func dirEntries(r *rules) {
	r.rule("readdir lists each entry once, with \".\" and \"..\"", func(c *check) {
		c.once(c.entries(c.directory("empty")), ".", "..")
		dir := c.directory("dir")
		names := dots(c.numbered(dir, 100))
		c.once(c.entries(dir), names...)
	})
	r.rule("readdir tells inodes and types", func(c *check) {
		kinds := map[string]uint8{"file": unix.DT_REG, "dir": unix.DT_DIR, "link": unix.DT_LNK, "fifo": unix.DT_FIFO, "sock": unix.DT_SOCK, ".": unix.DT_DIR, "..": unix.DT_DIR}
		c.file("file", "")
		c.directory("dir")
		c.symlink("file", "link")
		c.fifo("fifo")
		c.ok(unix.Mknod(c.path("sock"), unix.S_IFSOCK|0o644, 0))
		list := c.entries(c.dir)
		equal(c, "entries", len(list), len(kinds))
		for _, e := range list {
			equal(c, "type of "+e.name, e.kind, kinds[e.name])
			equal(c, "inode of "+e.name, e.ino, c.stat(c.dir+"/"+e.name).Ino)
		}
	})
	r.rule("readdir through any size of buffer lists the same", func(c *check) {
		names := dots(c.numbered(c.dir, 300))
		for _, size := range []int{40, 64, 100, 333, 4096, 1 << 20} {
			fd := c.open(c.dir, unix.O_RDONLY)
			c.once(c.list(fd, size), names...)
		}
	})
	r.rule("readdir into a buffer too small for an entry is EINVAL", func(c *check) {
		fd := c.open(c.dir, unix.O_RDONLY)
		_, err := unix.Getdents(fd, make([]byte, 10))
		c.want(unix.EINVAL, err)
		_, err = unix.Getdents(c.open(c.file("file", ""), unix.O_RDONLY), make([]byte, 1000))
		c.want(unix.ENOTDIR, err)
	})
	r.rule("readdir of a new descriptor sees what was just made, removed and renamed", func(c *check) {
		for i := range 30 {
			a, b := fmt.Sprint("a", i), fmt.Sprint("b", i)
			c.file(a, "")
			c.once(c.entries(c.dir), ".", "..", a)
			c.ok(unix.Rename(c.path(a), c.path(b)))
			c.once(c.entries(c.dir), ".", "..", b)
			c.ok(unix.Unlink(c.path(b)))
			c.once(c.entries(c.dir), ".", "..")
		}
	})
}

func dirPositions(r *rules) {
	r.rule("seekdir goes back to any position that telldir gave", func(c *check) {
		c.numbered(c.dir, 200)
		fd := c.open(c.dir, unix.O_RDONLY)
		all := c.list(fd, 4096)
		for _, i := range []int{0, 1, 2, 50, 199, 200, 100, 7} {
			c.seek(fd, all[i].next)
			rest := c.list(fd, 1000)
			equal(c, fmt.Sprintf("entries after %d", i), len(rest), len(all)-i-1)
			if len(rest) > 0 {
				equal(c, "next entry", rest[0].name, all[i+1].name)
			}
		}
	})
	r.rule("rewinddir starts again and sees what has changed", func(c *check) {
		names := c.numbered(c.dir, 50)
		fd := c.open(c.dir, unix.O_RDONLY)
		c.once(c.list(fd, 4096), dots(names)...)
		c.ok(unix.Unlink(c.path(names[0])))
		c.file("new", "")
		c.seek(fd, 0)
		c.once(c.list(fd, 4096), dots(append(names[1:], "new"))...)
	})
	r.rule("two descriptors read at their own pace", func(c *check) {
		names := dots(c.numbered(c.dir, 50))
		a, b := c.open(c.dir, unix.O_RDONLY), c.open(c.dir, unix.O_RDONLY)
		var fromA, fromB []entry
		for {
			x, y := c.page(a, 100), c.page(b, 300)
			fromA, fromB = append(fromA, x...), append(fromB, y...)
			if len(x) == 0 && len(y) == 0 {
				break
			}
		}
		c.once(fromA, names...)
		c.once(fromB, names...)
	})
}

func dirMany(r *rules) {
	r.rule("a directory of 20,000 entries is listed whole", func(c *check) {
		const n = 20000
		dir := c.directory("dir")
		names := c.numbered(dir, n)
		c.once(c.entries(dir), dots(names)...)
		c.want(unix.ENOTEMPTY, unix.Rmdir(dir))
		for _, name := range names {
			c.ok(unix.Unlink(dir + "/" + name))
		}
		c.once(c.entries(dir), ".", "..")
		c.ok(unix.Rmdir(dir))
	})
}

func dirChanging(r *rules) {
	r.rule("entries that stay come once while others come and go", func(c *check) {
		stay := c.numbered(c.dir, 500)
		go2 := func(i int) string { return c.path(fmt.Sprint("passing ", i)) }
		for i := range 500 {
			c.file(fmt.Sprint("passing ", i), "")
		}
		fd := c.open(c.dir, unix.O_RDONLY)
		var list []entry
		for i := 0; ; i++ {
			page := c.page(fd, 700)
			if len(page) == 0 {
				break
			}
			list = append(list, page...)
			for j := range 10 {
				os.Remove(go2((10*i + j) % 500))
				c.file(fmt.Sprintf("new %d %d", i%100, j), "")
			}
		}
		got := count(list)
		for _, name := range dots(stay) {
			if got[name] != 1 {
				c.Errorf("%q comes %d times", name, got[name])
			}
		}
	})
	r.rule("removing entries as they are listed removes them all", func(c *check) {
		dir := c.directory("dir")
		c.numbered(dir, 1000)
		fd := c.open(dir, unix.O_RDONLY)
		for {
			page := c.page(fd, 1000)
			if len(page) == 0 {
				break
			}
			for _, e := range page {
				if e.name != "." && e.name != ".." {
					c.ok(unix.Unlink(dir + "/" + e.name))
				}
			}
		}
		c.ok(unix.Rmdir(dir))
	})
	r.rule("a position outlives the entry it follows", func(c *check) {
		names := c.numbered(c.dir, 300)
		fd := c.open(c.dir, unix.O_RDONLY)
		all := c.list(fd, 4096)
		middle := all[150]
		rest := count(all[151:])
		if middle.name != "." && middle.name != ".." {
			c.ok(unix.Unlink(c.path(middle.name)))
		}
		c.seek(fd, middle.next)
		got := count(c.list(fd, 4096))
		for _, name := range names {
			if got[name] != rest[name] {
				c.Errorf("%q comes %d times after the position, want %d", name, got[name], rest[name])
			}
		}
	})
}
