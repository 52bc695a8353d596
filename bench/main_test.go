package bench_test

import (
	"os"
	"strings"
	"testing"

	"github.com/cairnfs/cairn/cmd"
)

// TestMain makes the program of the tests usable as its own client and as a node of
// a cluster: unless it is told to test, it is cairn.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-test.") {
		os.Exit(cmd.Main(append([]string{"cairn"}, os.Args[1:]...), cmd.IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
	}
	os.Exit(m.Run())
}
