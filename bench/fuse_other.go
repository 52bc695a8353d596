//go:build !linux

package bench

import (
	"errors"
	"io"
)

type floorFS struct{}

func newFloor() *floorFS { return nil }

func (*floorFS) mount(string) (func() error, error) { return nil, errors.ErrUnsupported }

func (*floorFS) answerWith(io.Reader) {}

func mountLoopback(string, string) (func() error, error) { return nil, errors.ErrUnsupported }
