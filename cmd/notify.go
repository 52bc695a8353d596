package cmd

import (
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
)

// A service manager that starts a mount and wants to know how it goes says so by
// a socket in the environment (sd_notify). It is told when the mount can be used,
// what it waits for, and when it ends. That it does not listen is no reason to
// fail.

// notifySocket is the variable that names the socket.
const notifySocket = "NOTIFY_SOCKET"

// notify tells the service manager, if there is one, about a change of state.
func (m *mounter) notify(lines ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		m.logger(m.Err).Warn("cannot notify the service manager", "err", err)
	}
}

// statusLine is a line for people, in the words of text.
func statusLine(text string) string { return "STATUS=" + text }
