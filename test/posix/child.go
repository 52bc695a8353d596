//go:build linux

package posix

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// Processes of their own are this binary again, told by its environment what to
// do.

const (
	// childVar holds the order of a child, as JSON.
	childVar = "CAIRN_POSIX_CHILD"
	// childTime is when a child is taken to hang.
	childTime = 2 * time.Minute
)

// order says what a child is to do: check one rule in a directory that exists,
// or, without a rule, to write back its standard input.
type order struct {
	Group, Rule string
	Dir         string
	Traits      Traits
}

// Child does the work of a process that a rule has started, and exits; in any
// other process it does nothing. TestMain has to call it first.
func Child() {
	text, isChild := os.LookupEnv(childVar)
	if !isChild {
		return
	}
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if o.Rule == "" {
		io.Copy(os.Stdout, os.Stdin)
		os.Exit(0)
	}
	os.Exit(o.obey())
}

// obey checks the rule and returns the exit code.
func (o order) obey() int {
	tb := &childTB{}
	found := false
	r := &rules{run: func(name string, here bool, fn func(*check)) {
		if here || name != o.Rule {
			return
		}
		found = true
		tb.run(func() { fn(&check{TB: tb, dir: o.Dir, traits: o.Traits}) })
	}}
	for _, g := range groups() {
		if g.name != o.Group {
			continue
		}
		for _, section := range g.sections {
			section(r)
		}
	}
	if !found {
		fmt.Fprintf(os.Stderr, "there is no rule %q in group %q\n", o.Rule, o.Group)
	}
	if !found || tb.failed {
		return 1
	}
	return 0
}

// environment is that of a child with this order.
func (o order) environment(c *check) []string {
	c.Helper()
	text, err := json.Marshal(o)
	c.ok(err)
	return append(os.Environ(), childVar+"="+string(text))
}

// inChild has a child check a rule in c's directory.
func (c *check) inChild(group, rule string) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), childTime)
	defer cancel()
	self, err := os.Executable()
	c.ok(err)
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = order{group, rule, c.dir, c.traits}.environment(c)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.Errorf("%s%v", out, err)
	}
}

// childTB is the testing.TB of a rule in a child.
type childTB struct {
	testing.TB // nil: methods that are missing here are not for use in children
	failed     bool
	cleanups   []func()
}

// run calls fn, and then what it left to Cleanup.
func (t *childTB) run(fn func()) {
	done := make(chan struct{})
	go func() { // a goroutine that FailNow can end
		defer close(done)
		defer func() {
			for i := len(t.cleanups) - 1; i >= 0; i-- {
				t.cleanups[i]()
			}
		}()
		fn()
	}()
	<-done
}

func (t *childTB) Helper()           {}
func (t *childTB) Failed() bool      { return t.failed }
func (t *childTB) Fail()             { t.failed = true }
func (t *childTB) Cleanup(fn func()) { t.cleanups = append(t.cleanups, fn) }

func (t *childTB) Errorf(format string, args ...any) {
	t.failed = true
	fmt.Fprintf(os.Stderr, "%s: %s\n", caller(), fmt.Sprintf(format, args...))
}

// caller is the line of the rule that is being checked: the nearest that is not
// in this file or in that of the helpers.
func caller() string {
	for skip := 1; ; skip++ {
		_, path, line, ok := runtime.Caller(skip)
		file := filepath.Base(path)
		if !ok || file != "child.go" && file != "check.go" {
			return fmt.Sprintf("%s:%d", file, line)
		}
	}
}

func (t *childTB) FailNow() {
	t.failed = true
	runtime.Goexit()
}

func (t *childTB) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	t.FailNow()
}

func (t *childTB) Fatal(args ...any) { t.Fatalf("%s", fmt.Sprint(args...)) }
func (t *childTB) Error(args ...any) { t.Errorf("%s", fmt.Sprint(args...)) }
