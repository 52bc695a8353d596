//go:build linux

package posix

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inotify(7), for changes that are made on this machine.

// watch is an inotify instance that watches one path.
type watch struct {
	c  *check
	fd int
}

func (c *check) watch(path string, mask uint32) watch {
	c.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	c.ok(err)
	c.closes(fd)
	_, err = unix.InotifyAddWatch(fd, path, mask)
	c.ok(err)
	return watch{c, fd}
}

// saw returns the events since the last call, as words.
func (w watch) saw() (events string) {
	w.c.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Read(w.fd, buf)
	if err != nil {
		return err.Error()
	}
	var list []string
	for p := buf[:n]; len(p) > 0; {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&p[0]))
		name, _, _ := bytes.Cut(p[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+e.Len], []byte{0})
		list = append(list, strings.TrimSpace(eventName(e.Mask)+" "+string(name)))
		p = p[unix.SizeofInotifyEvent+e.Len:]
	}
	return strings.Join(list, ", ")
}

func eventName(mask uint32) string {
	names := map[uint32]string{
		unix.IN_ACCESS: "access", unix.IN_ATTRIB: "attrib", unix.IN_CLOSE_WRITE: "closed", unix.IN_CREATE: "create",
		unix.IN_DELETE: "delete", unix.IN_DELETE_SELF: "deleted", unix.IN_MODIFY: "modify", unix.IN_MOVE_SELF: "moved",
		unix.IN_MOVED_FROM: "from", unix.IN_MOVED_TO: "to", unix.IN_OPEN: "open", unix.IN_IGNORED: "ignored",
	}
	name, known := names[mask&^unix.IN_ISDIR]
	if !known {
		return fmt.Sprintf("event %#x", mask)
	}
	return name
}

func inotifyEvents(r *rules) {
	r.rule("a directory tells what happens to its entries", func(c *check) {
		dir := c.directory("dir")
		w := c.watch(dir, unix.IN_CREATE|unix.IN_DELETE|unix.IN_MODIFY|unix.IN_ATTRIB|unix.IN_CLOSE_WRITE)
		fd, err := unix.Open(dir+"/file", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
		c.ok(err)
		equal(c, "creating", w.saw(), "create file")
		c.write(fd, "x", 0)
		equal(c, "writing", w.saw(), "modify file")
		c.ok(unix.Ftruncate(fd, 0))
		equal(c, "truncating", w.saw(), "modify file")
		c.close(fd)
		equal(c, "closing", w.saw(), "closed file")
		c.ok(unix.Chmod(dir+"/file", 0o600))
		equal(c, "chmod", w.saw(), "attrib file")
		c.ok(unix.Mkdir(dir+"/sub", 0o755))
		equal(c, "mkdir", w.saw(), "create sub")
		c.ok(unix.Symlink("x", dir+"/link"))
		equal(c, "symlink", w.saw(), "create link")
		c.ok(unix.Link(dir+"/file", dir+"/hard"))
		equal(c, "link", w.saw(), "create hard")
		c.ok(unix.Unlink(dir + "/link"))
		equal(c, "unlink", w.saw(), "delete link")
		c.ok(unix.Rmdir(dir + "/sub"))
		equal(c, "rmdir", w.saw(), "delete sub")
	})
	r.rule("a file tells what happens to it, until it is gone", func(c *check) {
		path := c.file("file", "x")
		w := c.watch(path, unix.IN_MODIFY|unix.IN_DELETE_SELF|unix.IN_ACCESS)
		c.holds(path, "x")
		if got := w.saw(); !strings.HasPrefix(got, "access") {
			c.Errorf("reading: %s", got)
		}
		c.ok(os.WriteFile(path, []byte("y"), 0))
		equal(c, "writing", w.saw(), "modify") // truncating and writing are alike
		c.ok(unix.Unlink(path))
		equal(c, "unlink", w.saw(), "deleted, ignored")
	})
}

func inotifyMoves(r *rules) {
	r.rule("rename tells both directories and what was moved", func(c *check) {
		a, b := c.directory("a"), c.directory("b")
		file := c.file("a/file", "")
		wa, wb := c.watch(a, unix.IN_MOVE|unix.IN_DELETE|unix.IN_CREATE), c.watch(b, unix.IN_MOVE|unix.IN_DELETE|unix.IN_CREATE)
		self := c.watch(file, unix.IN_MOVE_SELF)
		c.ok(unix.Rename(file, b+"/new"))
		equal(c, "old directory", wa.saw(), "from file")
		equal(c, "new directory", wb.saw(), "to new")
		equal(c, "file", self.saw(), "moved")
		c.ok(unix.Rename(b+"/new", b+"/newer"))
		equal(c, "directory", wb.saw(), "from new, to newer")
	})
	r.rule("a name that is replaced is gone", func(c *check) {
		old := c.file("old", "")
		w := c.watch(old, unix.IN_DELETE_SELF)
		c.ok(unix.Rename(c.file("new", ""), old))
		equal(c, "replaced file", w.saw(), "deleted, ignored")
	})
}
