//go:build !linux

package bench

import "errors"

type floorFS struct{}

func newFloor() *floorFS { return nil }

func (*floorFS) mount(string) (func() error, error) { return nil, errors.ErrUnsupported }

func mountLoopback(string, string) (func() error, error) { return nil, errors.ErrUnsupported }
