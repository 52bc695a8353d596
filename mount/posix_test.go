//go:build linux

package mount

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// notPassed are the tests of go-fuse's suite that a mount is known not to pass,
// with the reason.
var notPassed = map[string]string{
	"FcntlFlockLocksFile": "the test is wrong, and fails on a local disk as well: it wants two locks of one process to conflict, which POSIX rules out",
}

func TestPosixSuite(t *testing.T) {
	dir := newMount(t)
	for name, test := range posixtest.All {
		if notPassed[name] != "" {
			continue
		}
		skipped := false
		t.Run(name, func(t *testing.T) {
			defer func() { skipped = t.Skipped() }()
			sub := filepath.Join(dir, name)
			ok(t, os.Mkdir(sub, 0o755))
			test(t, sub)
		})
		if skipped {
			t.Errorf("%s was skipped: something it needs is not supported", name)
		}
	}
	for name := range notPassed {
		if posixtest.All[name] == nil {
			t.Errorf("there is no test %s any more", name)
		}
	}
}
