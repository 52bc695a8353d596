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

Measurements:

` + measurements(bench.Names()),
		Example: example("cairn bench", "cairn bench --only 'add-*,get' --size 256M --json", "cairn bench --only '*.untar,*.rm'"),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Dir == "" {
				dir, err := a.dir()
				if err != nil {
					return err
				}
				o.Dir = filepath.Dir(dir)
			}
			o.Size, o.Out, o.Logger = int64(amount), a.Out, a.logger(a.Err)
			err := bench.Run(c.Context(), o)
			if errors.Is(err, bench.ErrUnknownName) {
				return &usageError{err, c.CommandPath()}
			}
			return fail("bench", o.Dir, err)
		},
	}
	flags := c.Flags()
	flags.BoolVar(&o.JSON, "json", false, "print one JSON object a line")
	flags.StringSliceVar(&o.Only, "only", nil, "measure only these: names or patterns, with commas between")
	flags.Var(&amount, "size", "bytes to measure throughput with; up to 18 times as much disk space is used")
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
