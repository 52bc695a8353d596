//go:build !linux

package mount

import (
	"context"
	"io"

	"github.com/cairnfs/cairn/volume"
)

// Server is a mounted volume. There is none on this system.
type Server struct{}

// Mount fails with ErrUnsupported.
func Mount(context.Context, *volume.Volume, Options) (*Server, error) { return nil, ErrUnsupported }

// Mountpoint returns the path that the volume is mounted on.
func (s *Server) Mountpoint() string { return "" }

// Unmount fails with ErrUnsupported.
func (s *Server) Unmount() error { return ErrUnsupported }

// Wait returns at once.
func (s *Server) Wait() {}

// Unmount fails with ErrUnsupported.
func Unmount(mountpoint string, lazy bool) error { return ErrUnsupported }

// RunGuard fails with ErrUnsupported.
func RunGuard(args []string, in io.Reader, out io.Writer) error { return ErrUnsupported }
