package cmd

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/cairnfs/cairn/node"
	"github.com/cairnfs/cairn/node/control"
)

// How long a command waits for a store that another process has locked without
// answering: a node that is starting or stopping, or another short command.
const (
	openTime  = 5 * time.Second
	openPause = 25 * time.Millisecond
)

// open opens the store, or connects to the process that has it open. The caller
// closes it. It is created if there is none and create is set.
func (a *app) open(ctx context.Context, create bool) (control.Node, error) {
	dir, err := a.dir()
	if err != nil {
		return nil, err
	}
	p := a.newProgress("opening the store", -1)
	defer p.stop()
	deadline := time.Now().Add(openTime)
	for {
		n, err := node.Open(ctx, a.nodeOptions(dir, create))
		if err == nil {
			return n, nil
		}
		var inUse *node.InUseError
		if !errors.As(err, &inUse) {
			return nil, fail("open store", dir, err)
		}
		client, dialErr := control.Dial(ctx, dir)
		if dialErr == nil {
			return client, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(dialErr, control.ErrProtocol) {
			return nil, fail("open store", dir, dialErr)
		}
		if time.Now().After(deadline) {
			return nil, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(openPause):
		}
	}
}

// inspect is with, for commands that change nothing and ask no other node: a member
// that does not run stays so.
func (a *app) inspect(ctx context.Context, do func(control.Node) error) error {
	a.offline = true
	return a.with(ctx, false, do)
}

// nodeOptions returns how this command opens the store in dir.
func (a *app) nodeOptions(dir string, create bool) node.Options {
	return node.Options{
		Dir:     dir,
		Create:  create,
		Offline: a.offline,
		Command: "cairn " + strings.Join(os.Args[1:], " "),
		Logger:  a.logger(a.Err),
	}
}

// with opens the store, calls do with it and closes it.
func (a *app) with(ctx context.Context, create bool, do func(control.Node) error) error {
	n, err := a.open(ctx, create)
	if err != nil {
		return err
	}
	if err = do(n); errors.Is(err, errReaderGone) {
		err = nil // but closing may still fail
	}
	return errors.Join(err, n.Close())
}
