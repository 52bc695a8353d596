package cmd

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairnfs/cairn/bench"
)

func (a *app) benchCmd() *cobra.Command {
	o := bench.Options{}
	amount := size(bench.DefaultSize)
	c := &cobra.Command{
		Use:     "bench",
		GroupID: groupStore,
		Short:   "Measure this machine, and cairn on it",
		Long: `Bench measures what the machine can do at best, then adding, getting and the
mounted filesystem, each as a part of the limit that it has to pass through, and
last what programs do with files: on the disk itself, in a loopback mount over
it, and in a mount of cairn, which is compared with the others. It takes some
minutes and works on a store of its own, in a directory beside the data directory
that is removed at the end.

With --cluster it starts so many nodes on this machine instead, which talk over its
loopback interface, measures what they do together, and compares with one node and
with a bare stream between two.

Measurements:

` + measurements(bench.Names()) + `

Those of a cluster:

` + measurements(bench.ClusterNames()),
		Example: example("cairn bench", "cairn bench --only 'add-*,get' --size 256M --json", "cairn bench --only '*.untar,*.rm'", "cairn bench --cluster 3"),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Dir == "" {
				dir, err := a.dir()
				if err != nil {
					return err
				}
				o.Dir = filepath.Dir(dir)
			}
			o.Out, o.Logger = a.Out, a.logger(a.Err)
			if o.Cluster == 0 || c.Flag("size").Changed {
				o.Size = int64(amount)
			}
			err := bench.Run(c.Context(), o)
			if errors.Is(err, bench.ErrUnknownName) || errors.Is(err, bench.ErrClusterSize) {
				return &usageError{err, c.CommandPath()}
			}
			return fail("bench", o.Dir, err)
		},
	}
	flags := c.Flags()
	flags.BoolVar(&o.JSON, "json", false, "print one JSON object a line")
	flags.StringSliceVar(&o.Only, "only", nil, "measure only these: names or patterns, with commas between")
	flags.Var(&amount, "size", "bytes to measure throughput with; up to 18 times as much disk space is used")
	flags.IntVar(&o.Cluster, "cluster", 0, fmt.Sprintf("measure a cluster of `N` nodes instead, 2 to %d; --size is then %d MiB by default", bench.MaxCluster, bench.DefaultClusterSize>>20))
	flags.StringVar(&o.Dir, "in", "", "directory on the disk to measure (default: that of the data directory)")
	return c
}

// measurements lists names, those with the same word before a dot after that word.
func measurements(names []string) string {
	const width = 78
	var groups []string
	lines := make(map[string][]string) // of each group
	for _, name := range names {
		group, rest, dotted := strings.Cut(name, ".")
		if !dotted {
			group, rest = "", name
		} else {
			group += "."
		}
		of, known := lines[group]
		if !known {
			groups = append(groups, group)
			of = []string{fmt.Sprintf("  %-10s", group)}
		}
		if last := len(of) - 1; len(of[last])+1+len(rest) <= width {
			of[last] += " " + rest
		} else {
			of = append(of, fmt.Sprintf("  %-10s %s", "", rest))
		}
		lines[group] = of
	}
	var all []string
	for _, group := range groups {
		all = append(all, lines[group]...)
	}
	return strings.Join(all, "\n")
}
