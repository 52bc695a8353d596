package mem_test

import (
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/cas/mem"
)

func TestStoreKeepsTheContract(t *testing.T) {
	castest.Run(t, func(testing.TB) cas.Store { return new(mem.Store) })
}

func TestLenCountsBlocksOnce(t *testing.T) {
	var s mem.Store
	b := castest.Block(t, 1, 10)
	if err := s.Put(t.Context(), b, b, castest.Block(t, 2, 10)); err != nil {
		t.Fatal(err)
	}
	if s.Len() != 2 {
		t.Errorf("Len = %d, want 2", s.Len())
	}
}
