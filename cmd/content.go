package cmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/tree"
	"github.com/cairnfs/cairn/node/control"
)

// parallel is how many blocks of a file are fetched at the same time: enough to
// keep two processes busy if the store is another's.
const parallel = 8

// parseCIDs reads CIDs given as arguments.
func parseCIDs(what string, args []string) ([]cas.CID, error) {
	cids := make([]cas.CID, len(args))
	for i, arg := range args {
		c, err := cas.ParseCID(arg)
		if err != nil {
			return nil, fail(what, arg, err)
		}
		cids[i] = c
	}
	return cids, nil
}

func (a *app) getCmd() *cobra.Command {
	var out string
	var force bool
	c := &cobra.Command{
		Use:     "get CID [-o OUT]",
		GroupID: groupContent,
		Short:   "Write stored content to a file or directory",
		Long: `Get writes the file, directory or symbolic link that a CID names to OUT, by
default to the CID's own name in the current directory. Every byte is checked
against its hash before OUT appears: it is complete, or it is not there.
What exists is replaced with --force only, devices and pipes not even then.

Permissions and modification times come back where they were stored. The
set-user-ID and set-group-ID bits do not: stored content has no owner, so they
would lend the rights of whoever runs get to anybody's program.`,
		Example: example(
			"cairn get bafkr4i… -o report.pdf",
			"cairn get bafybei… -o photos --force"),
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cids, err := parseCIDs("get", args)
			if err != nil {
				return err
			}
			switch out {
			case "":
				out = cids[0].String()
			case "-":
				return &usageError{errors.New("get does not write to standard output, `cairn cat` does"), c.CommandPath()}
			}
			return a.with(c.Context(), false, func(n control.Node) error {
				return fail("get", args[0], a.get(c.Context(), n, cids[0], out, force))
			})
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "where to write (default: the CID in the current directory)")
	c.Flags().BoolVarP(&force, "force", "f", false, "replace what exists")
	return c
}

// checkOut sees whether get may write to out. Devices, sockets and named pipes are
// not replaced: who names /dev/null does not want a file in its place.
func checkOut(out string, force bool) error {
	info, err := os.Lstat(out)
	switch {
	case err != nil:
		return nil // what is wrong will show, and say more
	case info.Mode()&(fs.ModeDevice|fs.ModeSocket|fs.ModeNamedPipe|fs.ModeIrregular) != 0:
		return fmt.Errorf("%s is neither file, directory nor link, and is not replaced", out)
	case !force:
		return fmt.Errorf("%s: %w", out, errOutExists)
	}
	return nil
}

func (a *app) get(ctx context.Context, n control.Node, cid cas.CID, out string, force bool) error {
	info, err := manifest.Stat(ctx, n, cid)
	if err != nil {
		return err
	}
	if err := checkOut(out, force); err != nil {
		return err
	}
	total := info.Size
	if info.Kind == manifest.KindDirectory {
		total = info.DAGSize // a little more
	}
	p := a.newProgress("writing", total)
	defer p.stop()
	err = tree.Get(ctx, n, cid, out, tree.GetOptions{Force: force, Parallel: parallel, Progress: p.add})
	if !force && errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", out, errOutExists) // since the check
	}
	if path, ok := err.(*fs.PathError); ok {
		return fmt.Errorf("%s: %w", out, path.Err)
	}
	return err
}

func (a *app) catCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "cat CID…",
		GroupID: groupContent,
		Short:   "Write the bytes of stored files to standard output",
		Long: `Cat writes the bytes of the files that the CIDs name to standard output, one
after the other. Each block is checked against its hash before it is written.`,
		Example: example("cairn cat bafybei… | tar t"),
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cids, err := parseCIDs("cat", args)
			if err != nil {
				return err
			}
			return a.with(c.Context(), false, func(n control.Node) error {
				for i, cid := range cids {
					if err := a.cat(c.Context(), n, cid); err != nil {
						return fail("cat", args[i], err)
					}
				}
				return nil
			})
		},
	}
}

func (a *app) cat(ctx context.Context, n control.Node, cid cas.CID) error {
	info, err := manifest.Stat(ctx, n, cid)
	if err != nil {
		return err
	}
	if info.Kind != manifest.KindFile {
		return errors.New("it is no file; `cairn ls` lists a directory, `cairn get` writes it to disk")
	}
	out := a.Out
	if !isTerminal(out) {
		p := a.newProgress("reading", info.Size)
		defer p.stop()
		out = &countingWriter{out, p}
	}
	r := manifest.NewReader(n, manifest.Root{CID: cid, Size: info.Size}, manifest.ReaderOptions{Parallel: parallel})
	_, err = r.WriteTo(ctx, out)
	return err
}

func (a *app) lsCmd() *cobra.Command {
	var long, asJSON bool
	c := &cobra.Command{
		Use:     "ls CID",
		GroupID: groupContent,
		Short:   "List a stored directory",
		Long: `Ls prints "CID SIZE NAME" for each entry of the directory that a CID names, in
the order of the names, or for the file itself. A directory's name ends in /.`,
		Example: example("cairn ls -l bafybei…"),
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cids, err := parseCIDs("ls", args)
			if err != nil {
				return err
			}
			return a.with(c.Context(), false, func(n control.Node) error {
				return fail("ls", args[0], a.ls(c.Context(), n, cids[0], long, asJSON))
			})
		},
	}
	c.Flags().BoolVarP(&long, "long", "l", false, "also print permissions and modification time")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return c
}

// listed is an entry as ls --json prints it.
type listed struct {
	Name   string     `json:"name"`
	CID    cas.CID    `json:"cid"`
	Type   string     `json:"type"` // file, dir or symlink
	Size   int64      `json:"size"` // of a file, in bytes
	Mode   string     `json:"mode,omitempty"`
	Mtime  *time.Time `json:"mtime,omitempty"`
	Target string     `json:"target,omitempty"` // of a symlink
}

func (a *app) ls(ctx context.Context, n control.Node, cid cas.CID, long, asJSON bool) error {
	show := a.printListed
	switch {
	case asJSON:
		show = func(l listed) error { return json.NewEncoder(a.Out).Encode(l) }
	case long:
		show = a.printLong
	}
	info, err := manifest.Stat(ctx, n, cid)
	if err != nil {
		return err
	}
	if info.Kind != manifest.KindDirectory {
		return show(listing(cid.String(), cid, info))
	}
	return manifest.List(ctx, n, cid, func(e manifest.Entry) error {
		info, err := manifest.Stat(ctx, n, e.CID)
		if err != nil {
			return fmt.Errorf("%s: %w", printable(e.Name), err)
		}
		return show(listing(e.Name, e.CID, info))
	})
}

func listing(name string, cid cas.CID, info manifest.Info) listed {
	l := listed{Name: name, CID: cid, Type: "file", Size: info.Size, Target: info.Target}
	var kind fs.FileMode
	switch info.Kind {
	case manifest.KindDirectory:
		l.Type, kind = "dir", fs.ModeDir
	case manifest.KindSymlink:
		l.Type, kind = "symlink", fs.ModeSymlink
	}
	if info.Meta.HasMode {
		l.Mode = (fs.FileMode(info.Meta.Mode)&fs.ModePerm | kind).String()
	}
	if !info.Meta.Mtime.IsZero() {
		l.Mtime = &info.Meta.Mtime
	}
	return l
}

// label returns the name of l as ls prints it.
func (l listed) label() string {
	switch l.Type {
	case "dir":
		return printable(l.Name) + "/"
	case "symlink":
		return printable(l.Name) + " -> " + printable(l.Target)
	}
	return printable(l.Name)
}

func (a *app) printListed(l listed) error {
	_, err := fmt.Fprintf(a.Out, "%v %d %s\n", l.CID, l.Size, l.label())
	return err
}

func (a *app) printLong(l listed) error {
	mode, mtime := "-", "-"
	if l.Mode != "" {
		mode = l.Mode
	}
	if l.Mtime != nil {
		mtime = l.Mtime.Local().Format("2006-01-02T15:04:05")
	}
	_, err := fmt.Fprintf(a.Out, "%-10s %-19s %v %d %s\n", mode, mtime, l.CID, l.Size, l.label())
	return err
}

// countingWriter tells a progress bar what has been written.
type countingWriter struct {
	io.Writer
	progress *progress
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.progress.add(int64(n))
	return n, err
}
