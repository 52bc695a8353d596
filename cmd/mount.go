package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/cairnfs/cairn/mount"
	"github.com/cairnfs/cairn/node"
	"github.com/cairnfs/cairn/node/control"
)

// Pauses while a mount ends.
const (
	unmountRetry = time.Second      // between attempts while it is in use
	serverGrace  = 5 * time.Second  // for commands under way
	umountWait   = 30 * time.Second // of umount, for the process to end
)

// mounter is one run of mount.
type mounter struct {
	*app
	dir     string
	options mountOptions
	reserve size
	online  online
	token   string
	daemon  bool
	readyFD int
}

func (a *app) mountCmd() *cobra.Command {
	m := &mounter{app: a}
	var (
		lists                []string
		allowOther, readOnly bool
		source               string
	)
	c := &cobra.Command{
		Use:     "mount MOUNTPOINT",
		GroupID: groupFiles,
		Short:   "Mount the store as a filesystem",
		Long: `Mount shows the store as a filesystem at MOUNTPOINT, prints "mounted PATH" when
it is ready and serves it until SIGINT, SIGTERM or "cairn umount". If files are
in use then, it waits for them; a second signal detaches the mount at once. The
store is created if there is none, MOUNTPOINT too if its parent exists. A mount
that a killed process has left there is replaced.

With --daemon the command returns when the mount is ready; the process in the
background logs to cairn.log in the data directory. A service manager that sets
NOTIFY_SOCKET is told when the mount is ready and when it ends. By the name
mount.cairn the program mounts for mount(8) and /etc/fstab.

` + mountOptionsText,
		Example: example(
			"cairn mount ~/cairn",
			"cairn mount -o ro,noexec ~/cairn",
			"cairn mount --daemon ~/cairn && cp -r photos ~/cairn/"),
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			o, err := parseMountOptions(lists, false)
			if err != nil {
				return &usageError{err, "cairn mount"}
			}
			o.ReadOnly = o.ReadOnly || readOnly
			o.AllowOther = o.AllowOther || allowOther
			o.Source = source
			if err := m.choose(args[0], o); err != nil {
				return err
			}
			if m.token != "" {
				if err := m.joinFirst(c.Context()); err != nil {
					return err
				}
			}
			if m.daemon && !c.Flag("log-level").Changed {
				a.logLevel = slog.LevelInfo.String()
			}
			if m.daemon {
				return m.startDaemon(c.Context())
			}
			return m.run(c.Context())
		},
	}
	flags := c.Flags()
	flags.StringArrayVarP(&lists, "options", "o", nil, "`OPTIONS` of the mount, see above; may be repeated")
	flags.BoolVar(&allowOther, "allow-other", false, "let other users in, within the permissions of files; root always does")
	flags.BoolVar(&readOnly, "read-only", false, "refuse every change to files, whatever -o says")
	flags.Var(&m.reserve, "reserve", "disk space to leave free (default the larger of 1 GiB and 2 % of the disk; at least 256 MiB, or an eighth of a smaller one)")
	flags.Lookup("reserve").DefValue = "0" // which help does not show
	flags.BoolVar(&m.daemon, "daemon", false, "return when the mount is ready and serve it in the background")
	m.online.flags(c)
	flags.StringVar(&m.token, "join", "", "join the cluster of this `TOKEN` first, if the store is no member yet")
	flags.IntVar(&m.readyFD, readyFlag, 0, "")
	flags.StringVar(&source, sourceFlag, "", "")
	for _, hidden := range []string{readyFlag, sourceFlag} {
		_ = flags.MarkHidden(hidden) // fails only for a flag that does not exist
	}
	return c
}

// background reports whether this is the process that a daemon runs in.
func (m *mounter) background() bool { return m.readyFD > 0 }

// run mounts and serves until the mount ends.
func (m *mounter) run(ctx context.Context) error {
	return m.withNode(ctx, func(n *node.Node, signals <-chan os.Signal) error {
		if exe, err := os.Executable(); err == nil {
			m.options.Guard = exe
		}
		srv, err := mount.Mount(ctx, n.Volume(), m.options.Options)
		if err != nil {
			return err // says what and where by itself
		}
		defer n.Mounted(srv.Mountpoint())()
		if err := m.ready(srv.Mountpoint()); err != nil {
			return errors.Join(err, srv.Unmount())
		}
		return m.serve(srv, n, signals)
	})
}

// withNode runs the node, with other commands answered, while do runs. signals has
// those that are to end it.
func (m *mounter) withNode(ctx context.Context, do func(n *node.Node, signals <-chan os.Signal) error) (err error) {
	// From here on signals end the node in order; a second one must not kill
	// the process.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	o := m.nodeOptions(m.dir, true)
	o.Reserve = int64(m.reserve)
	m.online.apply(&o)
	m.options.Logger = o.Logger
	n, err := m.openOwn(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		// ctx has ended by now, but what was written is still to be stored.
		err = errors.Join(err, fail("close store", m.dir, n.Close()))
	}()
	stopControl, err := m.serveControl(n, o.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopControl()) }()
	return do(n, signals)
}

// joinFirst makes the store a member's, unless it is one already.
func (m *mounter) joinFirst(ctx context.Context) error {
	err := m.join(ctx, m.token, node.JoinOptions{Listen: m.online.listen, Name: m.online.name})
	if errors.Is(err, node.ErrJoined) {
		return nil
	}
	return err
}

// openOwn opens the store in this process. Another one that holds it for a short
// command is waited for; the node of another mount is not.
func (m *mounter) openOwn(ctx context.Context, o node.Options) (*node.Node, error) {
	p := m.newProgress("opening the store", -1)
	defer p.stop()
	deadline := time.Now().Add(openTime)
	for {
		n, err := node.Open(ctx, o)
		if err == nil {
			return n, nil
		}
		var inUse *node.InUseError
		if !errors.As(err, &inUse) {
			return nil, fail("open store", o.Dir, err)
		}
		if client, dialErr := control.Dial(ctx, o.Dir); dialErr == nil {
			return nil, errors.Join(err, client.Close())
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return nil, err
		}
		time.Sleep(openPause)
	}
}

// serveControl answers other commands until stop is called.
func (m *mounter) serveControl(n *node.Node, logger *slog.Logger) (stop func() error, err error) {
	l, err := control.Listen(m.dir)
	if err != nil {
		return nil, fail("listen", m.dir, err)
	}
	srv := control.NewServer(n, logger)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), serverGrace)
		defer cancel()
		return errors.Join(srv.Close(ctx), <-served)
	}, nil
}

// ready says that the mount can be used.
func (m *mounter) ready(path string) error {
	line := "mounted " + path + "\n"
	state := []string{daemon.SdNotifyReady, statusLine("Mounted on " + printable(path))}
	if !m.background() {
		m.notify(state...)
		_, err := io.WriteString(m.Out, line)
		return err
	}
	if err := m.moveToLog(); err != nil {
		return err
	}
	// The process that was started ends next: the service is this one.
	m.notify(append(state, fmt.Sprint("MAINPID=", os.Getpid()))...)
	pipe := os.NewFile(uintptr(m.readyFD), "ready")
	_, err := io.WriteString(pipe, line)
	return errors.Join(err, pipe.Close())
}

// serve waits until the mount has ended, by whomever, and ends it on signals.
func (m *mounter) serve(srv *mount.Server, n *node.Node, signals <-chan os.Signal) error {
	ended := make(chan struct{})
	go func() {
		srv.Wait()
		close(ended)
	}()
	var failed error
	select {
	case <-ended:
	case failed = <-n.Failed():
	case <-signals:
	}
	m.notify(daemon.SdNotifyStopping, statusLine("Unmounting"))
	if failed != nil {
		return errors.Join(fail("serve", srv.Mountpoint(), failed), mount.Unmount(srv.Mountpoint(), true))
	}
	for told := false; ; told = true {
		err := srv.Unmount()
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) {
			return err
		}
		if !told {
			m.notify(statusLine("Waiting until no file in the mount is in use"))
			fmt.Fprintf(m.Err, "cairn: unmount: %v; waiting, interrupt again to detach it\n", err)
		}
		select {
		case <-ended:
			return nil
		case <-signals:
			return mount.Unmount(srv.Mountpoint(), true)
		case <-time.After(unmountRetry):
		}
	}
}

// checkApart fails if one of the two directories lies in the other: the store
// would have to answer for its own files.
func checkApart(dir, mountpoint string) error {
	d, m := realPath(dir), realPath(mountpoint)
	switch {
	case d == m:
		return errors.New("it is the data directory itself; mount somewhere else")
	case strings.HasPrefix(d, strings.TrimSuffix(m, "/")+"/"):
		return fmt.Errorf("the data directory %s lies in it; mount somewhere else, or choose another store with --dir", dir)
	case strings.HasPrefix(m, strings.TrimSuffix(d, "/")+"/"):
		return fmt.Errorf("it lies in the data directory %s; mount somewhere else", dir)
	}
	return nil
}

// mountPath returns the mount point that arg names as an absolute path. An empty
// one, as of a variable that is not set, is not the current directory.
func mountPath(arg string) (string, error) {
	if arg == "" {
		return "", &usageError{errors.New("MOUNTPOINT is empty"), "cairn"}
	}
	return filepath.Abs(arg)
}

// realPath returns path without symbolic links, as far as it exists.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	dir, base := filepath.Split(filepath.Clean(path))
	if base == "" {
		return dir
	}
	return filepath.Join(realPath(filepath.Clean(dir)), base)
}

func (a *app) umountCmd() *cobra.Command {
	var lazy bool
	c := &cobra.Command{
		Use:     "umount MOUNTPOINT",
		Aliases: []string{"unmount"},
		GroupID: groupFiles,
		Short:   "End a mount",
		Long: `Umount ends the mount at MOUNTPOINT. If the mount is one of the store that --dir
or CAIRN_DIR names, it returns when the store is closed as well. With --lazy it
does not wait for that: the store stays open as long as the mount is in use.`,
		Example: example("cairn umount ~/cairn"),
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := mountPath(args[0])
			if err != nil {
				return err
			}
			if lazy {
				return mount.Unmount(path, true)
			}
			pid := a.servedBy(c.Context(), path)
			if err := mount.Unmount(path, false); err != nil {
				return err
			}
			return a.awaitClosed(c.Context(), pid)
		},
	}
	c.Flags().BoolVar(&lazy, "lazy", false, "detach it now even if it is in use")
	return c
}

// servedBy returns the process that serves the mount at path for the chosen
// store, 0 if there is none.
func (a *app) servedBy(ctx context.Context, path string) int {
	dir, err := a.dir()
	if err != nil {
		return 0
	}
	client, err := control.Dial(ctx, dir)
	if err != nil {
		return 0
	}
	defer client.Close()
	status, err := client.Status(ctx)
	if err != nil {
		return 0
	}
	for _, m := range status.Mounts {
		if m == realPath(path) {
			return status.PID
		}
	}
	return 0
}

// awaitClosed waits until process pid does not hold the store any more.
func (a *app) awaitClosed(ctx context.Context, pid int) error {
	dir, err := a.dir()
	if err != nil || pid == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, umountWait)
	defer cancel()
	for node.Holder(dir).PID == pid {
		select {
		case <-ctx.Done():
			return fail("umount", dir, fmt.Errorf("unmounted, but process %d has not closed the store yet", pid))
		case <-time.After(openPause):
		}
	}
	return nil
}
