//go:build linux

package posix

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// execve(2) of files in the directory, by processes of their own.

// program puts this program, which as a child writes back what it reads, into a
// file.
func (c *check) program(name string) string {
	c.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	c.ok(err)
	path := c.path(name)
	c.ok(os.WriteFile(path, self, 0o755))
	return path
}

// script makes a shell script.
func (c *check) script(name, text string, mode uint32) string {
	c.Helper()
	path := c.file(name, "#!/bin/sh\n"+text)
	c.ok(unix.Chmod(path, mode))
	return path
}

func execRuns(r *rules) {
	r.ruleApart("a script runs", func(c *check) {
		out, err := exec.Command(c.script("script", "echo ran with $1\n", 0o755), "this").Output()
		c.ok(err)
		c.same("output", string(out), "ran with this\n")
	})
	r.ruleApart("a program runs, also through a link and after it was moved", func(c *check) {
		path := c.program("program")
		link := c.symlink("program", "link")
		for _, run := range []string{path, link} {
			c.echoes(run)
		}
		c.ok(unix.Rename(path, c.path("moved")))
		c.echoes(c.path("moved"))
	})
}

// echoes fails the rule unless the program at path runs.
func (c *check) echoes(path string) {
	c.Helper()
	cmd := exec.Command(path)
	cmd.Env = order{}.environment(c)
	cmd.Stdin, _ = os.Open(os.DevNull)
	out, err := cmd.CombinedOutput()
	c.ok(err)
	c.same("output", string(out), "")
}

func execBusy(r *rules) {
	r.ruleApart("a program that runs is not written: ETXTBSY", func(c *check) {
		path := c.program("program")
		cmd := exec.Command(path)
		cmd.Env = order{}.environment(c)
		in, err := cmd.StdinPipe()
		c.ok(err)
		out, err := cmd.StdoutPipe()
		c.ok(err)
		c.ok(cmd.Start())
		fmt.Fprintln(in, "running")
		line, err := bufio.NewReader(out).ReadString('\n')
		c.ok(err)
		c.same("output", line, "running\n")
		c.want(unix.ETXTBSY, openErr(path, unix.O_WRONLY))
		c.want(unix.ETXTBSY, openErr(path, unix.O_RDWR))
		c.want(unix.ETXTBSY, openErr(path, unix.O_WRONLY|unix.O_TRUNC))
		c.want(unix.ETXTBSY, unix.Truncate(path, 0))
		c.ok(openErr(path, unix.O_RDONLY))
		c.ok(unix.Chmod(path, 0o700))
		c.ok(unix.Rename(path, c.path("moved")))
		c.ok(unix.Unlink(c.path("moved")))
		in.Close()
		c.ok(cmd.Wait())
	})
	r.ruleApart("a program that is open for writing does not run: ETXTBSY", func(c *check) {
		path := c.script("script", "", 0o755)
		fd := c.open(path, unix.O_WRONLY)
		c.want(unix.ETXTBSY, exec.Command(path).Run())
		c.close(fd)
		c.ok(exec.Command(path).Run())
	})
}

func execRefuses(r *rules) {
	r.ruleApart("a file that nobody may run does not run, for root either: EACCES", func(c *check) {
		c.want(unix.EACCES, exec.Command(c.script("script", "", 0o666)).Run())
		c.want(unix.EACCES, exec.Command(c.directory("dir")).Run())
		c.ok(exec.Command(c.script("script 2", "", 0o711)).Run())
	})
	r.ruleApart("a file of no known format does not run: ENOEXEC", func(c *check) {
		path := c.file("file", "neither script nor program")
		c.ok(unix.Chmod(path, 0o755))
		c.want(unix.ENOEXEC, exec.Command(path).Run())
		empty := c.file("empty", "")
		c.ok(unix.Chmod(empty, 0o755))
		c.want(unix.ENOEXEC, exec.Command(empty).Run())
	})
	r.ruleApart("a file that is missing, and a missing interpreter, are ENOENT", func(c *check) {
		c.want(unix.ENOENT, exec.Command(c.path("none")).Run())
		path := c.file("file", "#!"+c.path("interpreter")+"\n")
		c.ok(unix.Chmod(path, 0o755))
		c.want(unix.ENOENT, exec.Command(path).Run())
	})
}
