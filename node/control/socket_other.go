//go:build !linux

package control

import (
	"fmt"
	"os"
	"path/filepath"
)

// pathThrough fails: without /proc there is no short path for a long one.
func pathThrough(dir *os.File, name string) (string, error) {
	return "", fmt.Errorf("path of the control socket %s is longer than %d bytes; choose a shorter data directory",
		filepath.Join(dir.Name(), name), maxSocketPath)
}
