package cmd

import (
	"context"
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/cairnfs/cairn/node"
)

func (a *app) serveCmd() *cobra.Command {
	m := &mounter{app: a}
	c := &cobra.Command{
		Use:     "serve",
		GroupID: groupCluster,
		Short:   "Run the node without a mount",
		Long: `Serve runs the node: it keeps blocks and names for the cluster, and answers other
commands. It prints "serving DIR" when it is ready and ends on SIGINT or SIGTERM.`,
		Example: example("cairn serve", "cairn serve --listen :4102"),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := a.dir()
			if err != nil {
				return err
			}
			m.dir = dir
			return m.runNode(c.Context())
		},
	}
	m.online.flags(c)
	c.Flags().Var(&m.reserve, "reserve", "disk space to leave free (default the larger of 1 GiB and 2 % of the disk)")
	c.Flags().Lookup("reserve").DefValue = "0"
	return c
}

// runNode runs the node until a signal or a failure ends it.
func (m *mounter) runNode(ctx context.Context) error {
	return m.withNode(ctx, func(n *node.Node, signals <-chan os.Signal) error {
		m.notify(daemon.SdNotifyReady, statusLine("Serving "+printable(m.dir)))
		if _, err := fmt.Fprintf(m.Out, "serving %s\n", printable(m.dir)); err != nil {
			return err
		}
		select {
		case err := <-n.Failed():
			return fail("serve", m.dir, err)
		case <-signals:
		}
		m.notify(daemon.SdNotifyStopping)
		return nil
	})
}
