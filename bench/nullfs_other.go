//go:build !linux

package bench

import "errors"

func mountNull(string) (func() error, error) { return nil, errors.ErrUnsupported }
