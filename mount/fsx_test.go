//go:build linux

package mount

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/test/fsx"
)

var opsFlag = flag.Int("ops", 3000/slowdown, "operations for each seed of the random test of one file")

// TestFilesHoldWhatWasDoneToThem performs random operations on a file, mappings
// included, and compares with a model. Now and then the volume is unmounted,
// closed, opened and mounted.
//
// The operations are a child's, since a page fault must not stop the process that
// serves it. The child asks for a remount by a line and waits for one.
func TestFilesHoldWhatWasDoneToThem(t *testing.T) {
	needFUSE(t)
	for _, seed := range seeds() {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			store := vfs.NewMem()
			vol, closeVolume := openVolume(t, store, "node")
			server := mountVolume(t, vol, Options{})
			dir := server.Mountpoint()
			arg, err := json.Marshal(fsx.Options{
				Dir: dir, Seed: seed, Ops: *opsFlag,
				Replay: fmt.Sprintf("go test ./mount -run TestFilesHoldWhatWasDoneToThem -seed %d -ops %d", seed, *opsFlag),
			})
			ok(t, err)
			runFiles(t, string(arg), func() {
				ok(t, server.Unmount())
				closeVolume()
				vol, closeVolume = openVolume(t, store, "node")
				server = mountVolume(t, vol, Options{Mountpoint: dir})
			})
		})
	}
}

// runFiles runs a child with the role "files" to its end, and remount when it
// asks for that.
func runFiles(t *testing.T, arg string, remount func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childRole+"=files", childArg+"="+arg)
	var failure bytes.Buffer
	cmd.Stderr = &failure
	stdin, err := cmd.StdinPipe()
	ok(t, err)
	stdout, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // so that it has no files open
	})
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if lines.Text() != "remount" {
			t.Log(lines.Text())
			continue
		}
		remount()
		_, err := io.WriteString(stdin, "mounted\n")
		ok(t, err)
	}
	if err := errors.Join(lines.Err(), cmd.Wait()); err != nil {
		t.Fatalf("%v\n%s", err, failure.String())
	}
}

// testFiles is the child's part: arg is an fsx.Options as JSON.
func testFiles(arg string) error {
	var o fsx.Options
	if err := json.NewDecoder(strings.NewReader(arg)).Decode(&o); err != nil {
		return err
	}
	stdin := bufio.NewReader(os.Stdin)
	o.Remount = func() error {
		fmt.Println("remount")
		_, err := stdin.ReadString('\n')
		return err
	}
	o.Log = slog.New(slog.NewTextHandler(os.Stdout, nil))
	return fsx.Run(context.Background(), o)
}
