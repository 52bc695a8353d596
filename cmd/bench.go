package cmd

import (
	"errors"
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
mounted filesystem, each as a part of the limit that it has to pass through. It
takes a minute and works on a store of its own, in a directory beside the data
directory that is removed at the end.

Measurements: ` + strings.Join(bench.Names(), ", ") + `.`,
		Example: example("cairn bench", "cairn bench --only 'add-*,get' --size 256M --json"),
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
	flags.Var(&amount, "size", "bytes to measure throughput with; up to 8 times as much disk space is used")
	flags.StringVar(&o.Dir, "in", "", "directory on the disk to measure (default: that of the data directory)")
	return c
}
