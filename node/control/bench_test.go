package control_test

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
)

// oneBlock is a node that costs nothing: it has one block, and keeps none.
type oneBlock struct {
	*fakeNode
	block cas.Block
}

func (n *oneBlock) Get(_ context.Context, c cas.CID, _ []byte) (cas.Block, error) {
	if c != n.block.CID() {
		return cas.Block{}, errors.New("another block")
	}
	return n.block, nil
}

func (n *oneBlock) Put(context.Context, ...cas.Block) error { return nil }

// BenchmarkGet measures what both sides pay for a block of 64 KiB, with as many
// asked for at a time as the name says.
func BenchmarkGet(b *testing.B) {
	for name, parallel := range map[string]int{"1": 1, "4": 4, "16": 16} {
		b.Run(name, func(b *testing.B) {
			n := &oneBlock{newFake(b), castest.Block(b, 1, 64<<10)}
			c := dial(b, serve(b, n))
			b.SetBytes(64 << 10)
			b.ReportAllocs()
			var g errgroup.Group
			for i := range parallel {
				g.Go(func() error {
					buf := make([]byte, cas.MaxBlockSize)
					for j := i; j < b.N; j += parallel {
						if _, err := c.Get(b.Context(), n.block.CID(), buf); err != nil {
							return err
						}
					}
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkPut measures what both sides pay for 1 MiB in blocks of 64 KiB.
func BenchmarkPut(b *testing.B) {
	n := &oneBlock{newFake(b), castest.Block(b, 1, 64<<10)}
	c := dial(b, serve(b, n))
	var blocks []cas.Block
	for i := range uint64(16) {
		blocks = append(blocks, castest.Block(b, i, 64<<10))
	}
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Put(b.Context(), blocks...); err != nil {
			b.Fatal(err)
		}
	}
}
