package cmd

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairnfs/cairn/node/control"
)

func (a *app) gcCmd() *cobra.Command {
	var o control.CollectOptions
	c := &cobra.Command{
		Use:     "gc [--keep DURATION]",
		GroupID: groupStore,
		Short:   "Give back the space of what nothing refers to",
		Long: `Gc forgets the blocks that no file, no pin and no earlier version of a file refers
to, on all machines that share the directory, and prints how many blocks and bytes
that were. Files can be used meanwhile. It happens by itself once a day, and when
the disk is nearly full. This machine's disk has the space back when gc returns, those
of others some minutes later.

Earlier versions of files, and files that were removed, are kept for 24 hours. To
have their space sooner, say with --keep what is to be kept: 0s is nothing, and what
was removed or overwritten before cannot be read any more after that.

Nothing is collected if content that is in use cannot be read, and on a machine that
does not run; "cairn status" says so.`,
		Example: example("cairn gc", "cairn gc --keep 1h --dry-run", "cairn gc --keep 0s"),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Trim = c.Flags().Changed("keep"); o.Keep < 0 {
				return &usageError{fmt.Errorf("--keep %v lies in the future", o.Keep), c.CommandPath()}
			}
			do := func(n control.Node) error { return a.gc(c.Context(), n, o) }
			if o.DryRun {
				return a.inspect(c.Context(), do)
			}
			return a.with(c.Context(), false, do)
		},
	}
	c.Flags().DurationVar(&o.Keep, "keep", 24*time.Hour, "forget earlier versions that are older than this")
	c.Flags().BoolVarP(&o.DryRun, "dry-run", "n", false, "collect nothing, and count what could be on this machine")
	return c
}

func (a *app) gc(ctx context.Context, n control.Node, o control.CollectOptions) error {
	p := a.newProgress("collecting", -1)
	defer p.stop()
	all, err := n.Collect(ctx, o)
	if err != nil {
		return fail("gc", "store", err)
	}
	p.clear()
	if o.DryRun {
		_, err = fmt.Fprintf(a.Out, "%d blocks can be collected on this machine\n", all.Blocks)
		return err
	}
	if _, err := fmt.Fprintf(a.Out, "freed %d blocks, %s\n", all.Blocks, bytesText(all.Bytes)); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(all.Absent)) {
		fmt.Fprintf(a.Err, "cairn: gc: not on %s: %s\n", printable(name), all.Absent[name])
	}
	if all.Nodes == 0 {
		return fail("gc", "store", errNothingCollected)
	}
	return nil
}
