//go:build linux

package cluster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Patience. Everything is much faster on a machine that does nothing else; what
// matters how fast is logged.
const (
	readyTime   = 90 * time.Second  // for a node to start
	killTime    = 5 * time.Second   // for a killed process to be gone
	stopTime    = 60 * time.Second  // for a node to end
	commandTime = 60 * time.Second  // for a command
	settleTime  = 90 * time.Second  // for a cluster to get where it is going
	callTime    = 100 * time.Second // for one call on a mount, whatever its outcome
	pause       = 50 * time.Millisecond
	logTail     = 40 // lines of each log that a failure shows
)

// rig is some machines and the nodes on them.
type rig struct {
	t     testing.TB
	base  string
	lan   *lan // nil: all on the host itself
	nodes []*node
	loads []*load // that the end of the test ends
}

// node is a machine with a data directory and a mount point, and the process that
// runs there, if one does.
type node struct {
	r        *rig
	t        testing.TB
	name     string
	net      *netns
	listen   string
	dir, mnt string
	logPath  string

	cmd    *exec.Cmd
	exited chan struct{} // closed when the process has ended
	end    error         // how, then
}

// newRig returns n machines on a network of their own, on which nothing runs.
func newRig(t testing.TB, n int) *rig {
	t.Helper()
	cairn(t)
	r := &rig{t: t, base: t.TempDir()}
	r.lan = newLAN(t)
	t.Cleanup(r.end) // runs before the network and the files go
	for range n {
		r.add()
	}
	return r
}

// newLocalRig returns n nodes to be on the host itself.
func newLocalRig(t testing.TB, n int) *rig {
	t.Helper()
	cairn(t)
	r := &rig{t: t, base: t.TempDir()}
	t.Cleanup(r.end)
	for range n {
		r.add()
	}
	return r
}

// newCluster returns n nodes that are mounted and members of one cluster.
func newCluster(t testing.TB, n int) *rig {
	t.Helper()
	start := time.Now()
	r := newRig(t, n)
	r.nodes[0].mount()
	for _, n := range r.nodes[1:] {
		n.mount("--join", r.nodes[0].invite())
	}
	t.Logf("a cluster of %d was made in %v", n, since(start))
	return r
}

// add adds a machine.
func (r *rig) add() *node {
	r.t.Helper()
	if r.lan == nil {
		return r.addAt(nil)
	}
	ns := r.lan.plug(r.t)
	return r.addAt(&ns)
}

// addAt adds a machine at a place in the network, nil for the host itself.
func (r *rig) addAt(ns *netns) *node {
	r.t.Helper()
	i := len(r.nodes) + 1
	n := &node{r: r, t: r.t, name: fmt.Sprint("n", i), listen: "127.0.0.1:0"}
	home := filepath.Join(r.base, n.name)
	n.dir, n.mnt, n.logPath = filepath.Join(home, "store"), filepath.Join(home, "mnt"), filepath.Join(home, "log")
	if err := os.MkdirAll(n.mnt, 0o755); err != nil {
		r.t.Fatal(err)
	}
	if ns != nil {
		n.net, n.listen = ns, fmt.Sprintf("%v:4101", ns.addr)
	}
	r.nodes = append(r.nodes, n)
	return n
}

// end kills all processes, detaches all mounts and, of a test that has failed,
// shows what the nodes logged.
func (r *rig) end() {
	for _, l := range r.loads {
		l.halt() // but for calls under way, which the nodes' end ends
	}
	for _, n := range r.nodes {
		if n.runs() {
			_ = n.cmd.Process.Kill() // it may have ended just now
			n.abort()
			select {
			case <-n.exited:
			case <-time.After(stopTime):
				r.t.Errorf("%s cannot be killed:\n%s", n.name, n.stacks())
			}
		}
		n.detach()
	}
	for _, l := range r.loads {
		l.all.Wait()
	}
	if !r.t.Failed() {
		return
	}
	for _, n := range r.nodes {
		r.t.Logf("the last lines of %s:\n%s", n.name, n.logEnd(logTail))
	}
}

// log returns what the node has logged and said, in all its runs.
func (n *node) log() string {
	data, err := os.ReadFile(n.logPath)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func (n *node) logEnd(lines int) string {
	all := strings.Split(strings.TrimRight(n.log(), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// command returns a command of the program on this machine.
func (n *node) command(ctx context.Context, args ...string) *exec.Cmd {
	n.t.Helper()
	words := append([]string{cairn(n.t)}, args...)
	if n.net != nil {
		words = n.net.inside(words...)
	}
	c := exec.CommandContext(ctx, words[0], words[1:]...)
	c.Env = append(os.Environ(), "CAIRN_DIR="+n.dir)
	return c
}

// run runs a command and returns what it said and its exit code.
func (n *node) run(args ...string) (stdout, stderr string, code int) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	c := n.command(ctx, args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		n.t.Fatalf("cairn %v on %s: %v, %v", args, n.name, err, ctx.Err())
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// must is run for a command that has to work; it returns stdout without white
// space around it.
func (n *node) must(args ...string) string {
	n.t.Helper()
	out, errs, code := n.run(args...)
	if code != 0 {
		n.t.Fatalf("cairn %s on %s: exit code %d: %s%s", strings.Join(args, " "), n.name, code, out, errs)
	}
	return strings.TrimSpace(out)
}

// invite returns a token.
func (n *node) invite(flags ...string) string {
	n.t.Helper()
	return n.must(append([]string{"invite"}, flags...)...)
}

// mount starts the node with a mount and returns when it is ready.
func (n *node) mount(flags ...string) {
	n.t.Helper()
	n.start("mounted "+n.mnt, slices.Concat([]string{"mount", "--listen", n.listen, "--name", n.name}, flags, []string{n.mnt})...)
}

// serve starts the node without a mount.
func (n *node) serve() {
	n.t.Helper()
	n.start("serving "+n.dir, "serve", "--listen", n.listen, "--name", n.name)
}

// start starts a command that goes on, and returns when it has said the line.
func (n *node) start(ready string, args ...string) {
	n.t.Helper()
	said, err := n.tryStart(ready, args...)
	if err != nil {
		n.t.Fatalf("%s: cairn %s: %v; it said %q\n%s", n.name, strings.Join(args, " "), err, said, n.logEnd(10))
	}
}

func (n *node) tryStart(ready string, args ...string) (said string, err error) {
	n.t.Helper()
	if n.runs() {
		n.t.Fatal(n.name, "runs already")
	}
	level := "info"
	if l := os.Getenv("CAIRN_CLUSTER_LOG"); l != "" {
		level = l
	}
	log, err := os.OpenFile(n.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return "", err
	}
	defer log.Close()
	fmt.Fprintf(log, "-- %s cairn %s\n", time.Now().Format("15:04:05.000"), strings.Join(args, " "))
	c := n.command(context.Background(), append(args, "--log-level", level)...)
	stdout, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	c.Stdout, c.Stderr = w, log
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // should the test be killed
	started, exited := make(chan error), make(chan struct{})
	go func() {
		// The signal comes when the thread ends that started the process, and some
		// tests end threads. So this one stays until the process has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.Start()
		started <- err
		if err == nil {
			n.end = c.Wait()
			close(exited)
		}
	}()
	err = errors.Join(<-started, w.Close())
	if err != nil {
		return "", errors.Join(err, stdout.Close())
	}
	n.cmd, n.exited = c, exited
	lines := make(chan string, 1)
	go func() {
		defer stdout.Close()
		out := bufio.NewReader(stdout)
		text := ""
		for !strings.HasSuffix("\n"+text, "\n"+ready+"\n") {
			line, err := out.ReadString('\n')
			if text += line; err != nil {
				break
			}
		}
		lines <- text
		_, _ = io.Copy(io.Discard, out) // until the process has ended
	}()
	select {
	case said = <-lines:
	case <-time.After(readyTime):
		return "", fmt.Errorf("not ready after %v", readyTime)
	}
	if strings.HasSuffix(said, ready+"\n") {
		return said, nil
	}
	return said, fmt.Errorf("it ended: %w", n.awaitEnd())
}

// runs reports whether the node's process does.
func (n *node) runs() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// kill ends the processes of nodes as a power cut does, all at once, and detaches
// their mounts, of which nothing can be used any more.
func kill(nodes ...*node) {
	for _, n := range nodes {
		n.t.Helper()
		if err := n.cmd.Process.Kill(); err != nil {
			n.t.Fatal(n.name, err)
		}
	}
	for _, n := range nodes {
		if stuck := n.outlives(killTime); stuck != "" {
			// That this happens is TestANodeThatIsKilledIsGone's to tell.
			n.t.Logf("%s was killed %v ago and is still there:\n%s", n.name, killTime, stuck)
			n.abort()
			_ = n.awaitEnd() // that it was killed
		}
		n.detach()
	}
}

// outlives returns where the threads of a process are that has not ended in time,
// nothing if it has.
func (n *node) outlives(patience time.Duration) string {
	select {
	case <-n.exited:
		return ""
	case <-time.After(patience):
		return "it is " + n.stacks()
	}
}

// abort ends the connection between the kernel and the node's mount: all calls on
// it fail at once.
func (n *node) abort() { _ = syscall.Unmount(n.mnt, syscall.MNT_FORCE) }

// detach takes away all mounts of the node, in use or not.
func (n *node) detach() {
	for syscall.Unmount(n.mnt, syscall.MNT_DETACH) == nil {
	}
}

// stacks says where in the kernel the threads of the process are.
func (n *node) stacks() string {
	var all strings.Builder
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", n.cmd.Process.Pid))
	for _, path := range tasks {
		stack, err := os.ReadFile(path)
		fmt.Fprintf(&all, "%s: %v\n%s", path, err, stack)
	}
	return all.String()
}

// stop ends the process in order.
func (n *node) stop() {
	n.t.Helper()
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		n.t.Fatal(n.name, err)
	}
	if err := n.awaitEnd(); err != nil {
		n.t.Errorf("%s ended with %v\n%s", n.name, err, n.logEnd(10))
	}
}

// awaitEnd waits until the process has ended and returns how.
func (n *node) awaitEnd() error {
	n.t.Helper()
	select {
	case <-n.exited:
		return n.end
	case <-time.After(stopTime):
		n.t.Fatalf("%s has not ended after %v\n%s", n.name, stopTime, n.logEnd(logTail))
		return nil
	}
}

// wipe deletes what the node has stored.
func (n *node) wipe() {
	n.t.Helper()
	if err := os.RemoveAll(n.dir); err != nil {
		n.t.Fatal(err)
	}
}

// path returns a path in the node's mount.
func (n *node) path(elem ...string) string {
	return filepath.Join(append([]string{n.mnt}, elem...)...)
}

// part cuts all links between the groups of nodes. Links inside of a group stay.
func (r *rig) part(groups ...[]*node) {
	r.t.Helper()
	for i, g := range groups {
		var others []netns
		for j, o := range groups {
			for _, n := range o {
				if i != j {
					others = append(others, *n.net)
				}
			}
		}
		for _, n := range g {
			if err := n.net.refuse(others); err != nil {
				r.t.Fatal(err)
			}
		}
	}
}

// heal undoes part.
func (r *rig) heal() {
	r.t.Helper()
	for _, n := range r.nodes {
		if err := n.net.admit(); err != nil {
			r.t.Fatal(err)
		}
	}
}

// others returns the nodes but for some.
func (r *rig) others(not ...*node) []*node {
	return slices.DeleteFunc(slices.Clone(r.nodes), func(n *node) bool { return slices.Contains(not, n) })
}

// since returns the time that has passed, for people.
func since(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }
