package host

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unsentLimit returns what limits the bytes that the kernel takes and has not sent
// yet, nil if the connection is not one of TCP.
func unsentLimit(c net.Conn) func(bytes int) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	return func(bytes int) {
		// It fails when the connection has ended, which others tell.
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes)
		})
	}
}
