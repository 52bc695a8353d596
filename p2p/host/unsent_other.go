//go:build !linux

package host

import "net"

// unsentLimit returns nil where it is not known how.
func unsentLimit(net.Conn) func(bytes int) { return nil }
