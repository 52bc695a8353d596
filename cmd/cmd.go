// Package cmd is the command line: flags, words and exit codes. What a command
// does is in the packages below; here is what it is called, and what it says
// when it fails.
//
// A command works on a control.Node and does not know whether that is a store
// it has opened itself or the node of a running mount.
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

	"github.com/spf13/cobra"

	"github.com/cairnfs/cairn/bench"
	"github.com/cairnfs/cairn/mount"
)

// IO is what a command reads from and writes to.
type IO struct {
	In       io.Reader
	Out, Err io.Writer
}

// app is one run of the program.
type app struct {
	IO
	dirFlag  string
	logLevel string
	running  bool // flags and arguments were understood
	offline  bool // a member of a cluster is opened alone
}

// programName is the name of the program. It has another one too, helperName.
const programName = "cairn"

// Main runs the command line args, which begins with the program's name, and
// returns the exit code. SIGINT, SIGTERM and SIGHUP end it in order, a second one
// at once.
func Main(args []string, std IO) int {
	name, args := filepath.Base(args[0]), args[1:]
	if len(args) == 1 && args[0] == bench.ClientArg {
		if err := bench.ServeClient(std.In, std.Out); err != nil {
			fmt.Fprintln(std.Err, "cairn: bench client:", err)
			return codeFailed
		}
		return codeDone
	}
	if len(args) > 0 && args[0] == mount.GuardArg {
		if err := mount.RunGuard(args[1:], std.In, std.Out); err != nil {
			fmt.Fprintln(std.Err, "cairn: guard of a mount:", err)
			return codeFailed
		}
		return codeDone
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop)
	// A reader that has gone makes writes fail instead of killing the
	// process, so that the store is closed in order.
	signal.Ignore(syscall.SIGPIPE)

	std.Out = &output{std.Out}
	a := &app{IO: std}
	root, codeOf := a.root(), exitCode
	if name == helperName {
		root, codeOf = a.mountHelper(), helperCode
	}
	root.SetArgs(args)
	done, err := root.ExecuteContextC(ctx)
	if err == nil {
		return codeDone
	}
	if !a.running {
		err = &usageError{err: err, see: done.CommandPath()}
	} else if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errInterrupted
	}
	code := codeOf(err)
	if text := message(err); code != codeDone && text != "" {
		fmt.Fprintln(std.Err, programName+": "+text)
	}
	return code
}

const rootLong = `Cairn keeps files in a deduplicating, content-addressed store. A store is
mounted as a filesystem, and whatever it holds is also reachable by the hash of
its content (its CID), without a mount. Stores of several machines join to one
directory that all of them read and write.

The store is in the directory that --dir names, else CAIRN_DIR, else
$XDG_DATA_HOME/cairn (~/.local/share/cairn). It is created by the first mount
or add. While it is mounted, commands talk to the mounting process.

` + exitCodesText

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "cairn",
		Short: "A deduplicating, content-addressed filesystem",
		Long:  rootLong,
		Example: `  cairn mount ~/cairn           # mount the store, ctrl-C to end
  cairn add -r photos           # store a directory, print its CID
  cairn get bafy… -o photos     # and get it back anywhere`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			var level slog.Level
			if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
				return fmt.Errorf("--log-level is debug, info, warn or error, not %q", a.logLevel)
			}
			a.running = true
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	flags := root.PersistentFlags()
	flags.StringVar(&a.dirFlag, "dir", "", "data directory of the store (default $CAIRN_DIR, else ~/.local/share/cairn)")
	flags.StringVar(&a.logLevel, "log-level", "warn", "what to log on stderr: debug, info, warn or error")
	root.AddGroup(
		&cobra.Group{ID: groupFiles, Title: "The filesystem:"},
		&cobra.Group{ID: groupContent, Title: "Content by CID:"},
		&cobra.Group{ID: groupStore, Title: "The store:"},
		&cobra.Group{ID: groupCluster, Title: "Several machines:"},
	)
	root.AddCommand(
		a.mountCmd(), a.umountCmd(),
		a.addCmd(), a.getCmd(), a.catCmd(), a.lsCmd(), a.pinCmd(),
		a.statusCmd(), a.doctorCmd(), a.checkCmd(), a.gcCmd(), a.benchCmd(),
		a.inviteCmd(), a.joinCmd(), a.serveCmd(), a.peersCmd(), a.configCmd(), a.recoverCmd(),
		a.versionCmd(), exitCodesTopic(),
	)
	root.SetHelpCommand(helpCmd(root))
	return root
}

// helpCmd is cobra's, but that a topic it does not know is a mistake.
func helpCmd(root *cobra.Command) *cobra.Command {
	var about *cobra.Command
	return &cobra.Command{
		Use:   "help [command]",
		Short: "Help about a command or topic",
		Args: func(_ *cobra.Command, args []string) error {
			found, rest, err := root.Find(args)
			if err == nil && len(rest) > 0 {
				err = fmt.Errorf("unknown command %q for %q", rest[0], found.CommandPath())
			}
			about = found
			return err
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var names []cobra.Completion
			if found, _, err := root.Find(args); err == nil {
				for _, c := range found.Commands() {
					if c.IsAvailableCommand() || c.IsAdditionalHelpTopicCommand() {
						names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(*cobra.Command, []string) error {
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// The groups that help shows commands in.
const (
	groupFiles   = "files"
	groupContent = "content"
	groupStore   = "store"
	groupCluster = "cluster"
)

// dir returns the absolute path of the data directory.
func (a *app) dir() (string, error) {
	dir := a.dirFlag
	if dir == "" {
		dir = os.Getenv("CAIRN_DIR")
	}
	if dir == "" {
		if data := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(data) {
			dir = filepath.Join(data, "cairn")
		}
	}
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("no data directory: %w; use --dir", err)
		}
		dir = filepath.Join(home, ".local", "share", "cairn")
	}
	return filepath.Abs(dir)
}

// logger returns the logger of this run, which writes to w.
func (a *app) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		level = slog.LevelWarn
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// example indents the lines of an example as help shows them.
func example(lines ...string) string {
	return "  " + strings.Join(lines, "\n  ")
}
