//go:build !linux

package cache

import (
	"errors"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// setDirect is for Linux.
func setDirect(vfs.File) error { return errors.ErrUnsupported }
