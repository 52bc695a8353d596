package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
)

// SocketName is the name of the socket in the data directory.
const SocketName = "control.sock"

// maxSocketPath is the length of the longest path of a unix socket that every
// system takes (Linux 107 bytes, others 103).
const maxSocketPath = 103

// Listen makes the socket of the data directory dir and listens on it. The
// caller holds the lock of dir, so that a socket that is already there belongs
// to a process that has died; it is replaced. Close removes the socket.
func Listen(dir string) (net.Listener, error) {
	path := filepath.Join(dir, SocketName)
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("listen on %s: it exists and is no socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	short, release, err := shortPath(dir)
	if err != nil {
		return nil, err
	}
	defer release()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// short ends with release, so the socket is removed by its full path.
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &socket{Listener: l, path: path}, nil
}

// socket is a listener that removes its file.
type socket struct {
	net.Listener
	path string
}

func (s *socket) Close() error {
	err := s.Listener.Close()
	if rm := os.Remove(s.path); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	return err
}

// connect opens a connection to the socket of the data directory dir.
func connect(ctx context.Context, dir string) (net.Conn, error) {
	short, release, err := shortPath(dir)
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	return d.DialContext(ctx, "unix", short)
}

// shortPath returns a path for the socket in dir that a socket address can
// hold, valid until release is called.
func shortPath(dir string) (path string, release func(), err error) {
	if path = filepath.Join(dir, SocketName); len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	if path, err = pathThrough(f, SocketName); err != nil {
		return "", nil, errors.Join(err, f.Close())
	}
	return path, func() { _ = f.Close() }, nil
}
