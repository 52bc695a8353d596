//go:build linux

package fsx

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	dirFlag     = flag.String("dir", "", "test the file system of this directory only")
	seedFlag    = flag.Uint64("seed", 0, "replay this seed only")
	seedsFlag   = flag.Uint64("seeds", 2, "how many seeds to run")
	opsFlag     = flag.Int("ops", 5000, "operations for each seed")
	refusedFlag = flag.String("refused", "", "operations, separated by commas, that the directory's file system need not support")
)

// allocation is what file systems of the system need not support.
var allocation = []string{"allocate", "allocate beyond the end", "punch hole", "zero range", "zero range within the size"}

// TestFilesHoldWhatWasDoneToThem tests the tester on file systems that are known
// to be right, or a file system that may not be, by the tester.
func TestFilesHoldWhatWasDoneToThem(t *testing.T) {
	if *dirFlag != "" {
		runSeeds(t, *dirFlag, strings.Split(*refusedFlag, ","))
		return
	}
	t.Run("disk", func(t *testing.T) { runSeeds(t, t.TempDir(), allocation) })
	t.Run("memory", func(t *testing.T) { runSeeds(t, inMemory(t), allocation) })
}

func runSeeds(t *testing.T, dir string, refused []string) {
	seeds := []uint64{*seedFlag}
	if *seedFlag == 0 {
		seeds = nil
		for s := range *seedsFlag {
			seeds = append(seeds, s+1)
		}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			o := Options{
				Dir: dir, Seed: seed, Ops: *opsFlag, Refused: refused,
				Replay: fmt.Sprintf("go test ./test/fsx -run %s -dir %s -seed %d -ops %d -refused %q",
					"TestFilesHoldWhatWasDoneToThem", dir, seed, *opsFlag, strings.Join(refused, ",")),
			}
			if *dirFlag != "" {
				o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
			}
			if err := Run(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// inMemory returns a directory of a tmpfs, where fsync costs nothing, or of the disk
// if there is none.
func inMemory(t *testing.T) string {
	t.Helper()
	const shm = "/dev/shm"
	var st unix.Statfs_t
	if err := unix.Statfs(shm, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(shm, "fsx")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestEveryOperationIsPerformed keeps a mistake in the weights, or an operation
// that always finds a reason to do nothing, from going unnoticed.
func TestEveryOperationIsPerformed(t *testing.T) {
	tester := newTester(Options{Dir: inMemory(t), Seed: 1, Ops: 4000, Refused: append(allocation, "read direct", "write direct")})
	if err := tester.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, op := range append(operations, operation{name: "remount"}) {
		if tester.done[op.name]+tester.done[op.name+" refused"] == 0 {
			t.Errorf("%s was never performed", op.name)
		}
	}
}

// TestTheSameSeedDoesTheSame compares the last operations of two runs.
func TestTheSameSeedDoesTheSame(t *testing.T) {
	var logs [2]string
	for i := range logs {
		tester := newTester(Options{Dir: inMemory(t), Seed: 3, Ops: 3000, Refused: allocation})
		if err := tester.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		logs[i] = strings.Join(tester.recent, "\n")
	}
	if logs[0] != logs[1] {
		t.Errorf("once:\n%s\nand again:\n%s", logs[0], logs[1])
	}
}

func TestUnsupportedIsAFailureUnlessAllowed(t *testing.T) {
	tester := newTester(Options{Refused: []string{"punch hole"}})
	for _, c := range []struct {
		operation string
		err       error
		want      error
	}{
		{"punch hole", unix.EOPNOTSUPP, nil},
		{"punch hole", unix.EIO, unix.EIO},
		{"zero range", unix.EOPNOTSUPP, unix.EOPNOTSUPP},
		{"zero range", nil, nil},
	} {
		if err := tester.outcome(c.operation, c.err); !errors.Is(err, c.want) {
			t.Errorf("%s that fails with %v: %v", c.operation, c.err, err)
		}
	}
}
