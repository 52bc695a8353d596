package cache

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
)

func TestWhileThereIsRoomNothingLeaves(t *testing.T) {
	c := open(t, vfs.NewMem(), 4<<20)
	defer closeCache(t, c)
	if room := c.Room(); room < 3<<20 || room > 4<<20 {
		t.Errorf("an empty cache of 4 MiB has room for %d bytes", room)
	}
	var all []cas.Block
	for i := uint64(0); c.Room() > 20_000; i++ {
		b := castest.Block(t, i, 20_000)
		put(t, c, b)
		if all = append(all, b); len(all) > 300 {
			t.Fatalf("%d blocks are held, and there is room for %d bytes", len(all), c.Room())
		}
	}
	if len(all) < 100 {
		t.Errorf("after %d blocks there is no room any more", len(all))
	}
	for _, b := range all {
		if !holds(t, c, b) {
			t.Fatal("a block has left")
		}
	}
	for i := range uint64(300) {
		put(t, c, castest.Block(t, 1000+i, 20_000))
	}
	if room := c.Room(); room > 20_000+c.fileSize {
		t.Errorf("a full cache has room for %d bytes", room)
	}
}
