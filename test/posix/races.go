//go:build linux

package posix

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// What holds when several threads do things at once.

// together runs fn n times at once, each with its number, and returns when all
// are done.
func together(n int, fn func(i int)) {
	var start, done sync.WaitGroup
	start.Add(1)
	for i := range n {
		done.Go(func() {
			start.Wait()
			fn(i)
		})
	}
	start.Done()
	done.Wait()
}

// oneWins has four threads do the same 50 times, and checks that each time one
// succeeds and the others get want.
func (c *check) oneWins(want error, do func(path string, i int) error) {
	c.Helper()
	for round := range 50 {
		path := c.path(fmt.Sprint(round))
		var winners atomic.Int32
		together(4, func(i int) {
			switch err := do(path, i); {
			case err == nil:
				winners.Add(1)
			case !errors.Is(err, want):
				c.Errorf("error is %v, want %v", err, want)
			}
		})
		equal(c, "winners", winners.Load(), 1)
	}
}

func raceCreation(r *rules) {
	r.rule("of those who make one name at once, one wins", func(c *check) {
		for _, w := range []struct {
			name string
			do   func(path string, i int) error
		}{
			{"open", func(path string, i int) error { return openErr(path, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR) }},
			{"mkdir", func(path string, i int) error { return unix.Mkdir(path, 0o755) }},
			{"symlink", func(path string, i int) error { return unix.Symlink("x", path) }},
			{"mknod", func(path string, i int) error { return unix.Mkfifo(path, 0o644) }},
			{"all", func(path string, i int) error {
				return []func(string, uint32) error{unix.Mkfifo, unix.Mkdir, func(p string, _ uint32) error { return unix.Symlink("x", p) },
					func(p string, _ uint32) error { return openErr(p, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR) }}[i](path, 0o755)
			}},
		} {
			sub := &check{TB: c.TB, dir: c.directory(w.name), traits: c.traits}
			sub.oneWins(unix.EEXIST, w.do)
		}
	})
	r.rule("of those who give one name at once by link or rename without replacing, one wins", func(c *check) {
		c.directory("from")
		for i := range 4 {
			c.file(fmt.Sprint("from/", i), "")
		}
		sub := &check{TB: c.TB, dir: c.directory("to"), traits: c.traits}
		sub.oneWins(unix.EEXIST, func(path string, i int) error { return unix.Link(c.path("from", fmt.Sprint(i)), path) })
		sub = &check{TB: c.TB, dir: c.directory("moved"), traits: c.traits}
		sub.oneWins(unix.EEXIST, func(path string, i int) error {
			source := fmt.Sprint(path, " from ", i)
			if err := os.WriteFile(source, nil, 0o644); err != nil {
				return err
			}
			return rename2(source, path, unix.RENAME_NOREPLACE)
		})
	})
	r.rule("of those who remove one name at once, one wins", func(c *check) {
		for i := range 50 {
			c.file(fmt.Sprint(i), "")
		}
		c.oneWins(unix.ENOENT, func(path string, _ int) error { return unix.Unlink(path) })
		for i := range 50 {
			c.directory(fmt.Sprint(i))
		}
		c.oneWins(unix.ENOENT, func(path string, _ int) error { return unix.Rmdir(path) })
	})
}

func raceRenames(r *rules) {
	r.rule("a name that is replaced again and again is always there, whole", func(c *check) {
		contents := [][]byte{bytes.Repeat([]byte("a"), 10000), bytes.Repeat([]byte("b"), 20000)}
		path := c.path("file")
		c.ok(os.WriteFile(path, contents[0], 0o644))
		var stop atomic.Bool
		together(3, func(i int) {
			if i > 0 {
				for !stop.Load() {
					got, err := os.ReadFile(path)
					if err != nil || !bytes.Equal(got, contents[0]) && !bytes.Equal(got, contents[1]) {
						c.Errorf("%d bytes, error %v", len(got), err)
						return
					}
				}
				return
			}
			defer stop.Store(true)
			for n := range 300 {
				next := fmt.Sprint(path, " next ", n%2)
				if err := errors.Join(os.WriteFile(next, contents[n%2], 0o644), os.Rename(next, path)); err != nil {
					c.Error(err)
					return
				}
			}
		})
	})
	r.rule("of those who move one name at once, one wins", func(c *check) {
		for i := range 50 {
			c.file(fmt.Sprint(i), "")
		}
		c.oneWins(unix.ENOENT, func(path string, i int) error { return unix.Rename(path, fmt.Sprint(path, " to ", i)) })
		equal(c, "entries", len(c.entries(c.dir)), 52)
	})
	r.rule("directories that move into each other at once never form a ring", func(c *check) {
		for range 100 {
			a, b := c.directory("a"), c.directory("b")
			var winners atomic.Int32
			together(2, func(i int) {
				from, to := a, b+"/a"
				if i == 1 {
					from, to = b, a+"/b"
				}
				if err := unix.Rename(from, to); err == nil {
					winners.Add(1)
				} else if err != unix.ENOENT && err != unix.EINVAL {
					c.Errorf("error is %v", err)
				}
			})
			equal(c, "winners", winners.Load(), 1)
			c.ok(os.RemoveAll(a))
			c.ok(os.RemoveAll(b))
		}
	})
}

func raceAppends(r *rules) {
	r.rule("appends at once overwrite nothing", func(c *check) {
		path := c.file("file", "")
		const writers, lines = 4, 100
		fds := make([]int, writers)
		for i := range fds {
			fds[i] = c.open(path, unix.O_WRONLY|unix.O_APPEND)
		}
		together(writers, func(i int) {
			for n := range lines {
				line := fmt.Sprintf("writer %d line %03d %s\n", i, n, strings.Repeat("x", n))
				if m, err := unix.Write(fds[i], []byte(line)); err != nil || m != len(line) {
					c.Errorf("wrote %d of %d: %v", m, len(line), err)
				}
			}
		})
		got, err := os.ReadFile(path)
		c.ok(err)
		seen := make(map[string]int)
		for line := range strings.Lines(string(got)) {
			seen[line]++
		}
		for i := range writers {
			for n := range lines {
				line := fmt.Sprintf("writer %d line %03d %s\n", i, n, strings.Repeat("x", n))
				equal(c, line[:18], seen[line], 1)
			}
		}
	})
	r.rule("writes at once to places of their own all count", func(c *check) {
		path := c.file("file", "")
		const writers, size = 4, 100000
		fd := c.open(path, unix.O_RDWR)
		together(writers, func(i int) {
			for at := i; at < size; at += writers {
				if _, err := unix.Pwrite(fd, []byte{byte('a' + i)}, int64(at)); err != nil {
					c.Error(err)
					return
				}
				if at > 20000 {
					at += 997 * writers
				}
			}
		})
		got := c.read(fd, size, 0)
		for at := range 20000 {
			if got[at] != byte('a'+at%writers) {
				c.Fatalf("byte %d is %q", at, got[at])
			}
		}
	})
}
