//go:build linux

package cluster

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	_ "github.com/cairnfs/cairn/cmd" // most of the program that is built: when it changes, results that go test has kept do not count
	"github.com/cairnfs/cairn/test/posix"
)

// scratch is where the binary and nothing else is; TestMain sets and removes it.
var scratch string

// atOnce is how many tests run beside each other: mostly they wait.
const atOnce = 4

func TestMain(m *testing.M) {
	posix.Child()
	child()
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f != nil && f.Value.String() == fmt.Sprint(runtime.GOMAXPROCS(0)) {
		_ = f.Value.Set(fmt.Sprint(max(atOnce, runtime.GOMAXPROCS(0)))) // a number
	}
	os.Exit(func() int {
		var err error
		if scratch, err = os.MkdirTemp("", "cairn-cluster-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(scratch)
		return m.Run()
	}())
}

// binary returns the path of the program, which the first call builds.
var binary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("CAIRN_BINARY"); path != "" {
		return path, nil
	}
	path := filepath.Join(scratch, "cairn")
	out, err := exec.Command("go", "build", "-o", path, "github.com/cairnfs/cairn/cmd/cairn").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// cairn is binary for a test.
func cairn(t testing.TB) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// missing says what a test needs that is not here.
func missing(programs ...string) error {
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("not root"))
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		err = f.Close()
	}
	errs = append(errs, err)
	for _, p := range programs {
		_, err := exec.LookPath(p)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// needs skips the test where it cannot run, or fails it if that must not be. Tests
// of this package run beside each other.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("clusters of processes take minutes: left out with -short, which .ci/run does not set")
	}
	err := missing(programs...)
	switch {
	case err == nil:
		t.Parallel()
	case os.Getenv("CAIRN_REQUIRE_FUSE") == "1":
		t.Fatal("CAIRN_REQUIRE_FUSE=1, but this test cannot run here: ", err)
	default:
		t.Skip("this test cannot run here (CAIRN_REQUIRE_FUSE=1 makes that a failure): ", err)
	}
}

// needsNet is needs for tests with network namespaces.
func needsNet(t *testing.T, programs ...string) {
	t.Helper()
	needs(t, append(programs, "ip", "nft", "nsenter")...)
	if err := tryNamespace(); err != nil {
		if os.Getenv("CAIRN_REQUIRE_FUSE") == "1" {
			t.Fatal("CAIRN_REQUIRE_FUSE=1, but there are no network namespaces: ", err)
		}
		t.Skip("no network namespaces here (CAIRN_REQUIRE_FUSE=1 makes that a failure): ", err)
	}
}
