package cmd

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// For a file system of type cairn, on a command line or in /etc/fstab, mount(8)
// runs the program /sbin/mount.cairn:
//
//	mount.cairn SOURCE MOUNTPOINT [-sfnvrw] [-o OPTIONS] [-t TYPE]
//
// That is this program by another name, a symbolic link. It starts the daemon
// that "cairn mount --daemon" starts and returns, with the exit codes of mount(8),
// when the mount can be used. SOURCE is the data directory; the mount shows it
// as its device just as it was given, by which mount(8) knows what it has
// mounted already. At boot there is neither HOME nor PATH.

// helperName is the name by which mount(8) calls this program.
const helperName = "mount.cairn"

// defaultSource is the SOURCE that stands for the data directory which other
// commands use.
const defaultSource = "cairn"

// Exit codes of mount(8).
const (
	mountUsage       = 1
	mountSystem      = 2
	mountInterrupted = 8
	mountFailed      = 32
)

// errNoDaemon says that the daemon could not even be started.
var errNoDaemon = errors.New("cannot start the daemon")

// mountHelper is the whole program when mount(8) calls it.
func (a *app) mountHelper() *cobra.Command {
	var (
		lists                         []string
		fsType, namespace             string
		sloppy, fake, noMtab, verbose bool
		readOnly, readWrite           bool
	)
	c := &cobra.Command{
		Use:   helperName + " SOURCE MOUNTPOINT",
		Short: "Mount a store as mount(8) asks for it",
		Long: `Mount(8) runs this program for file systems of type cairn. SOURCE is the data
directory of the store, or "cairn" for the default one.

` + mountOptionsText,
		Example:          example("mount -t cairn -o ro /var/lib/cairn /srv/shared"),
		Args:             cobra.ExactArgs(2),
		SilenceUsage:     true,
		SilenceErrors:    true,
		PersistentPreRun: func(*cobra.Command, []string) { a.running = true },
		RunE: func(c *cobra.Command, args []string) error {
			if readOnly {
				lists = append(lists, "ro")
			}
			if readWrite {
				lists = append(lists, "rw")
			}
			m := &mounter{app: a, daemon: true}
			if err := m.helpMount(args[0], args[1], fsType, namespace, lists, sloppy); err != nil {
				return &usageError{err, helperName}
			}
			if fake {
				return nil
			}
			if !verbose {
				m.Out = io.Discard
			}
			return m.startDaemon(c.Context())
		},
	}
	c.SetOut(a.Out)
	c.SetErr(a.Err)
	flags := c.Flags()
	flags.StringArrayVarP(&lists, "options", "o", nil, "`OPTIONS` of the mount, see above")
	flags.StringVarP(&fsType, "types", "t", "", "`TYPE` of the file system: cairn")
	flags.StringVarP(&namespace, "namespace", "N", "", "mount `NAMESPACE`: not supported")
	flags.BoolVarP(&sloppy, "sloppy", "s", false, "ignore unknown options")
	flags.BoolVarP(&fake, "fake", "f", false, "do everything but mount")
	flags.BoolVarP(&noMtab, "no-mtab", "n", false, "nothing: the kernel keeps the list of mounts")
	flags.BoolVarP(&verbose, "verbose", "v", false, "say what was mounted")
	flags.BoolVarP(&readOnly, "read-only", "r", false, "like the option ro")
	flags.BoolVarP(&readWrite, "rw", "w", false, "like the option rw")
	return c
}

// helpMount checks and takes over what mount(8) says.
func (m *mounter) helpMount(source, mountpoint, fsType, namespace string, lists []string, sloppy bool) error {
	if fsType != "" && fsType != "cairn" {
		return fmt.Errorf("type %q is not cairn", fsType)
	}
	if namespace != "" {
		return fmt.Errorf("-N is not supported; use `nsenter --mount=%s mount …`", namespace)
	}
	o, err := parseMountOptions(lists, sloppy)
	if err != nil {
		return err
	}
	switch {
	case o.dir == "" && filepath.IsAbs(source):
		o.dir = source
	case o.dir == "" && source != defaultSource:
		return fmt.Errorf("SOURCE is the absolute path of a data directory, or cairn for the default one, not %q", source)
	case o.dir != "" && !filepath.IsAbs(o.dir):
		return fmt.Errorf("the option dir=%s is not an absolute path", o.dir)
	case o.dir != "" && filepath.IsAbs(source) && filepath.Clean(o.dir) != filepath.Clean(source):
		return fmt.Errorf("SOURCE %s and the option dir=%s name two data directories; leave one out", source, o.dir)
	}
	if o.dir == "" {
		if _, err := m.app.dir(); err != nil {
			return errors.New("SOURCE cairn is a directory below HOME, which is not set; give the path of a data directory instead")
		}
	}
	o.Source = source
	m.logLevel = slog.LevelInfo.String()
	// The service that mount(8) is called from, if it is, is another one.
	if err := os.Unsetenv(notifySocket); err != nil {
		return err
	}
	return m.choose(mountpoint, o)
}

// helperCode returns the exit code for err as mount(8) understands it.
func helperCode(err error) int {
	code := exitCode(err)
	switch {
	case code == codeDone:
		return 0
	case errors.Is(err, errRemount):
		return mountFailed
	case code == codeUsage:
		return mountUsage
	case errors.Is(err, errInterrupted):
		return mountInterrupted
	case errors.Is(err, errNoDaemon):
		return mountSystem
	}
	return mountFailed
}
