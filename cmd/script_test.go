package cmd_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts in testdata run the real binary. Besides the commands of package
// testscript they have
//
//	code N PROGRAM ARG…   run and expect exit code N
//	cid NAME              keep the last word of the last stdout line that is a CID in $NAME
//	flip FILE WORD        change one bit of FILE behind the first place that has WORD
//	tree DIR FILE         write names, modes, times and contents below DIR to FILE

var cairn string // the binary

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "cairn-cmd-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		cairn = filepath.Join(dir, "cairn")
		build := exec.Command("go", "build", "-o", cairn, "github.com/cairnfs/cairn/cmd/cairn")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// needFUSE skips the test where nothing can be mounted, and fails it if that must
// not be.
func needFUSE(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		f.Close()
		if os.Geteuid() != 0 {
			_, err = exec.LookPath("fusermount3")
		}
	}
	switch {
	case err == nil:
	case os.Getenv("CAIRN_REQUIRE_FUSE") == "1":
		t.Fatalf("FUSE is required: %v", err)
	default:
		t.Skipf("FUSE cannot be used (CAIRN_REQUIRE_FUSE=1 makes that a failure): %v", err)
	}
}

// unmountBelow detaches all mounts of cairn below dir.
func unmountBelow(dir string) {
	list, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") && strings.Contains(line, " - fuse.cairn ") {
			_ = exec.Command(cairn, "umount", "--lazy", fields[4]).Run()
		}
	}
}

func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatal(scripts, err)
	}
	for _, script := range scripts {
		if strings.HasPrefix(filepath.Base(script), "fuse-") {
			t.Run("fuse", func(t *testing.T) {
				needFUSE(t)
				runScript(t, script)
			})
			continue
		}
		runScript(t, script)
	}
}

func runScript(t *testing.T, script string) {
	testscript.Run(t, testscript.Params{
		Files: []string{script},
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Dir(cairn)+":"+os.Getenv("PATH"))
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("CAIRN_DIR", filepath.Join(e.WorkDir, ".store"))
			e.Defer(func() { unmountBelow(e.WorkDir) })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": runCode, "cid": keepCID, "flip": flipBit, "tree": describeTree,
		},
	})
}

func runCode(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func keepCID(ts *testscript.TestScript, neg bool, args []string) {
	for _, word := range strings.Fields(ts.ReadFile("stdout")) {
		if strings.HasPrefix(word, "bafkr4i") || strings.HasPrefix(word, "bafyb4i") {
			ts.Setenv(args[0], word)
		}
	}
	if ts.Getenv(args[0]) == "" {
		ts.Fatalf("no CID in the output")
	}
}

func flipBit(ts *testscript.TestScript, neg bool, args []string) {
	path := ts.MkAbs(args[0])
	data, err := os.ReadFile(path)
	ts.Check(err)
	at := bytes.Index(data, []byte(args[1]))
	if at < 0 {
		ts.Fatalf("%s does not contain %q", path, args[1])
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	ts.Check(err)
	defer f.Close()
	_, err = f.WriteAt([]byte{data[at] ^ 1}, int64(at))
	ts.Check(err)
}

func describeTree(ts *testscript.TestScript, neg bool, args []string) {
	root := ts.MkAbs(args[0])
	var b strings.Builder
	ts.Check(filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		fmt.Fprintf(&b, "%q %v %v", rel, info.Mode(), info.ModTime().UnixNano())
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", data)
		case info.Mode()&os.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %q", target)
		}
		b.WriteByte('\n')
		return nil
	}))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(b.String()), 0o600))
}
