//go:build !linux

package tree

import (
	"errors"
	"os"
)

// renameNew renames old to new, both in dir. It fails with fs.ErrExist if there
// is something at new.
func renameNew(dir *os.Root, old, new string) error { return renameIfFree(dir, old, new) }

// exchange fails: there is no portable way to swap two names.
func exchange(*os.Root, string, string) error { return errors.ErrUnsupported }
