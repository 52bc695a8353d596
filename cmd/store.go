package cmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/node/control"
)

func (a *app) pinCmd() *cobra.Command {
	pin := &cobra.Command{
		Use:     "pin",
		GroupID: groupContent,
		Short:   "See and change what is kept",
		Long: `A pin keeps content in the store. Whatever is added is pinned under its name;
files in the mounted filesystem are kept without a pin.`,
		Example: example("cairn pin ls", "cairn pin rm bafybei…"),
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	var asJSON bool
	ls := &cobra.Command{
		Use:     "ls",
		Short:   "List the pins: CID and name",
		Example: example("cairn pin ls --json"),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), false, func(n control.Node) error {
				return n.Pins(c.Context(), func(p control.Pin) error {
					if asJSON {
						return json.NewEncoder(a.Out).Encode(p)
					}
					_, err := fmt.Fprintln(a.Out, p.CID, printable(p.Name))
					return err
				})
			})
		},
	}
	ls.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line: cid, name")
	rm := &cobra.Command{
		Use:   "rm CID…",
		Short: "Remove pins",
		Long: `Rm removes pins. What no other pin and no file refers to is collected later, or by
"cairn gc".`,
		Example: example("cairn pin rm bafybei…"),
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cids, err := parseCIDs("unpin", args)
			if err != nil {
				return err
			}
			return a.with(c.Context(), false, func(n control.Node) error {
				return fail("unpin", strings.Join(args, " "), n.Unpin(c.Context(), cids...))
			})
		},
	}
	pin.AddCommand(ls, rm)
	return pin
}

func (a *app) statusCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "status",
		GroupID: groupStore,
		Short:   "Show what the store holds",
		Long: `Status shows how many blocks, files and pins the store holds and how much space
they take. The deduplication ratio is the size of all files and pins over the
size of the blocks that hold them.`,
		Example: example("cairn status", "cairn status --json"),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.inspect(c.Context(), func(n control.Node) error {
				status, err := n.Status(c.Context())
				if err != nil {
					return err
				}
				if asJSON {
					out := json.NewEncoder(a.Out)
					out.SetIndent("", "  ")
					return out.Encode(status)
				}
				return a.printStatus(status)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return c
}

func (a *app) printStatus(s control.Status) error {
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, name+"\t"+format+"\n", args...) }
	row("store", "%s", s.Dir)
	row("id", "%s", s.ID)
	for _, m := range s.Mounts {
		row("mounted", "%s (process %d)", printable(m), s.PID)
	}
	row("blocks", "%d, %s, stored as %s", s.Store.Blocks, bytesText(s.Store.RawBytes), bytesText(s.Store.StoredBytes))
	row("files", "%d in %d directories, %s", s.Namespace.Files, s.Namespace.Dirs, bytesText(s.Namespace.LogicalBytes))
	if n := s.Namespace.PatchBytes; n > 0 {
		row("patches", "%s, small changes that are not blocks yet", bytesText(n))
	}
	row("pins", "%d, %s", s.Pins.Count, bytesText(s.Pins.LogicalBytes))
	row("dedup ratio", "%.2f", s.DedupRatio)
	a.gcRow(s.GC, row)
	a.clusterRows(s, row)
	return w.Flush()
}

// gcRow says when unused blocks were last collected, or why they are not.
func (a *app) gcRow(s control.GCStatus, row func(name, format string, args ...any)) {
	switch {
	case s.Held != "":
		row("unused blocks", "not collected: %s", oneLine(s.Held))
	case s.Phase != "idle":
		row("unused blocks", "are being collected (%s)", s.Phase)
	case s.LastCompleted != "":
		row("unused blocks", "collected %s, %s freed here", s.LastCompleted, bytesText(s.FreedBytes))
	default:
		row("unused blocks", "never collected yet")
	}
}

// clusterRows adds what a member knows of its cluster.
func (a *app) clusterRows(s control.Status, row func(name, format string, args ...any)) {
	if s.Cluster == nil {
		return
	}
	row("cluster", "%s, %d nodes, %d copies of each block", s.Cluster.ID, len(s.Peers)+1, s.Cluster.Copies)
	if r := s.Cluster.Refused; r != nil {
		row("refused", "%s; see `cairn doctor`", r.Reason)
	}
	if s.Node == nil {
		row("node", "does not run")
		return
	}
	row("node", "%s (%s), %s", shortID(s.Node.ID), printable(s.Node.Name), s.Node.Role)
	leader := "no leader: nothing can be changed; see `cairn doctor`"
	switch {
	case s.Raft.Leader == s.Node.ID:
		leader = "leader"
	case s.Raft.Leader != "":
		leader = s.Raft.Role + " of " + shortID(s.Raft.Leader)
	}
	row("changes", "%s, term %d, applied %d", leader, s.Raft.Term, s.Raft.AppliedIndex)
	alive := 0
	for _, p := range s.Peers {
		if p.State == "alive" || p.State == "draining" {
			alive++
		}
	}
	row("peers", "%d of %d answer", alive, len(s.Peers))
	surplus := ""
	if s.Blocks.Droppable > 0 {
		surplus = fmt.Sprintf(", %d here are to be dropped", s.Blocks.Droppable)
	}
	row("copies", "%d blocks lack some, %d are on their way%s", s.Blocks.UnderReplicated, s.Blocks.PendingReplication, surplus)
}

func (a *app) checkCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "check",
		GroupID: groupStore,
		Short:   "Read everything the store holds and verify it",
		Long: `Check reads every block and compares it with its hash, and sees that every file
and pin has all its blocks. Damage is printed as "damaged CID REASON", or "damaged
namespace REASON" for that of names and attributes; the exit code is then 4.`,
		Example: example("cairn check"),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.inspect(c.Context(), func(n control.Node) error { return a.check(c.Context(), n) })
		},
	}
}

func (a *app) check(ctx context.Context, n control.Node) error {
	p := a.newProgress("checking", -1)
	defer p.stop()
	damaged := 0
	err := n.Check(ctx, func(cid cas.CID, err error) error {
		damaged++
		p.clear()
		var block *cas.BlockError
		if errors.As(err, &block) {
			err = block.Err
		}
		what := cid.String()
		if !cid.Defined() {
			what = "namespace"
		}
		_, err = fmt.Fprintln(a.Out, "damaged", what, oneLine(err.Error()))
		return err
	})
	if err != nil && !(damaged > 0 && errors.Is(err, errReaderGone)) {
		return fail("check", "store", err)
	}
	// Also when nobody reads all the findings: the exit code tells of them.
	if damaged > 0 {
		return fail("check", fmt.Sprintf("%d findings", damaged), errDamage)
	}
	p.clear()
	status, err := n.Status(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Out, "%d blocks and %d files are as they should be\n", status.Store.Blocks, status.Namespace.Files)
	return err
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		GroupID: groupStore,
		Short:   "Print the version of this program",
		Example: example("cairn version"),
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.Out, versionText())
			return err
		},
	}
}

// versionText returns the version that the build was made from.
func versionText() string {
	version, revision := "(devel)", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" {
			version = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = " " + s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return fmt.Sprintf("cairn %s%s %s %s/%s", version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
