package manifest_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"testing"

	"github.com/ipfs/go-unixfsnode/data"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
)

// expected reports whether err is nil or one of those that bad trees give.
func expected(err error) bool {
	if err == nil || err == io.EOF {
		return true
	}
	for _, e := range []error{cas.ErrCorrupt, cas.ErrNotFound, manifest.ErrNotFile, manifest.ErrNotDirectory, manifest.ErrNoEntry, manifest.ErrFileTooLarge} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// useAll does with c, whatever it is, all that the package can do, and checks
// that the answers fit together.
func useAll(t *testing.T, s manifest.Store, c cas.CID) {
	t.Helper()
	f := small(t)
	info, err := manifest.Stat(ctx, s, c)
	if !expected(err) {
		t.Errorf("Stat: %v", err)
	}
	if _, err := manifest.Links(ctx, s, c); !expected(err) {
		t.Errorf("Links: %v", err)
	}
	var names []string
	err = manifest.List(ctx, s, c, func(e manifest.Entry) error {
		names = append(names, e.Name)
		got, err := manifest.Lookup(ctx, s, c, e.Name)
		if err != nil || got != e {
			t.Errorf("Lookup %q = %v, %v, listed is %v", e.Name, got, err, e)
		}
		return nil
	})
	if !expected(err) || len(names) > 0 && info.Kind != manifest.KindDirectory {
		t.Errorf("List: %v", err)
	}
	if _, err := manifest.Lookup(ctx, s, c, "a"); !expected(err) {
		t.Errorf("Lookup: %v", err)
	}
	for _, size := range []int64{info.Size, 1} {
		root := manifest.Root{CID: c, Size: size}
		rd := manifest.NewReader(s, root, manifest.ReaderOptions{})
		p := make([]byte, min(size, 5000))
		if _, err := rd.ReadAt(ctx, p, 0); !expected(err) {
			t.Errorf("ReadAt: %v", err)
		}
		if _, err := rd.ReadAt(ctx, p, max(0, size-int64(len(p)))); !expected(err) {
			t.Errorf("ReadAt the end: %v", err)
		}
		if _, err := manifest.WithMeta(ctx, s, root, manifest.Meta{Mode: 1, HasMode: true}); !expected(err) {
			t.Errorf("WithMeta: %v", err)
		}
		if size > 1<<16 {
			continue // it might be true, thanks to nodes that stand in many places
		}
		var out bytes.Buffer
		n, err := rd.WriteTo(ctx, &out)
		if !expected(err) || err == nil && n != size || int64(out.Len()) != n {
			t.Errorf("WriteTo = %d, %v, of %d bytes", n, err, size)
		}
		p = make([]byte, size)
		if _, readErr := rd.ReadAt(ctx, p, 0); err == nil && (readErr != nil && readErr != io.EOF || !bytes.Equal(p, out.Bytes())) {
			t.Errorf("ReadAt: %v, differs from WriteTo", readErr)
		}
		if _, err := manifest.AppendTo(ctx, s, f, root); !expected(err) {
			t.Errorf("AppendTo: %v", err)
		}
		edit := manifest.Edit{Off: size / 2, Len: 3}
		got, rewriteErr := manifest.Rewrite(ctx, s, f, root, size+3, []manifest.Edit{edit})
		if !expected(rewriteErr) {
			t.Errorf("Rewrite: %v", rewriteErr)
		}
		if err == nil && rewriteErr == nil {
			want := append(out.Bytes(), 0, 0, 0)
			clear(want[size/2 : size/2+3])
			if !bytes.Equal(read(t, s, got), want) {
				t.Error("the rewritten file is not the old one with the edit")
			}
		}
	}
}

// FuzzNode reads arbitrary bytes as a node.
func FuzzNode(f *testing.F) {
	var s mem.Store
	leaf := putBlock(f, &s, cas.Raw, fixed(1, 100))
	for _, links := range [][]pbLink{nil, {{leaf, "", 100}}, {{leaf, "", 100}, {leaf, "", 100}}} {
		sizes := make([]uint64, len(links))
		for i := range sizes {
			sizes[i] = 100
		}
		f.Add(encodePB(f, links, encodeUnixFS(f, data.Data_File, nil, uint64(100*len(links)), sizes)))
		f.Add(encodePB(f, links, encodeUnixFS(f, data.Data_File, []byte("abc"), uint64(100*len(links)+3), sizes)))
		for i := range links {
			links[i].name = string(rune('a' + i))
		}
		f.Add(encodePB(f, links, []byte{8, byte(data.Data_Directory), 0x38, 0o55, 0x42, 7, 8, 1, 0x15, 1, 0, 0, 0}))
	}
	f.Add(encodePB(f, []pbLink{{leaf, "85a", 100}}, []byte{8, 5, 0x12, 17, 32, 16: 0, 20: 0x28, 0x22, 0x30, 0x80, 2}))
	f.Add(encodePB(f, nil, []byte{8, byte(data.Data_Symlink), 0x12, 3, '.', '.', '/'}))
	f.Fuzz(func(t *testing.T, block []byte) {
		if len(block) > cas.MaxBlockSize {
			return
		}
		var s mem.Store
		putBlock(t, &s, cas.Raw, fixed(1, 100))
		useAll(t, &s, putBlock(t, &s, cas.DagPB, block))
	})
}

// FuzzTree builds trees from blocks that are well-formed, each on its own, and
// says of their sizes what it likes. Every byte of plan is a decision.
func FuzzTree(f *testing.F) {
	f.Add([]byte{0, 5, 0, 7, 1, 2, 0, 0, 1, 0})
	f.Add([]byte{0, 200, 1, 3, 0, 0, 0, 0, 0, 0, 1, 2, 1, 0, 1, 0})
	f.Add([]byte{0, 9, 1, 1, 0, 1, 2, 1, 1, 2, 3, 1, 0, 1, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, plan []byte) {
		next := func() int {
			if len(plan) == 0 {
				return 0
			}
			b := plan[0]
			plan = plan[1:]
			return int(b)
		}
		type part struct {
			cid       cas.CID
			size, dag uint64
		}
		var s mem.Store
		parts := []part{{putBlock(t, &s, cas.Raw, nil), 0, 0}}
		lie := func(truth uint64, how int) uint64 {
			switch how {
			case 250:
				return truth + 1
			case 251:
				return truth - 1
			case 252:
				return 0
			case 253:
				return math.MaxInt64
			case 254:
				return 1 << 63
			}
			return truth
		}
		for len(plan) > 0 && len(parts) < 50 {
			if next()%2 == 0 {
				b := fixed(byte(next()), next()*4)
				parts = append(parts, part{putBlock(t, &s, cas.Raw, b), uint64(len(b)), uint64(len(b))})
				continue
			}
			var links []pbLink
			var sizes []uint64
			inline := fixed(1, max(0, next()-200))
			sum := part{size: uint64(len(inline))}
			for range next() % 8 {
				p := parts[next()%len(parts)]
				if p.size > math.MaxInt64-sum.size || p.dag > math.MaxInt64-sum.dag {
					continue
				}
				sum.size, sum.dag = sum.size+p.size, sum.dag+p.dag
				links = append(links, pbLink{p.cid, "", min(lie(p.dag, next()), math.MaxInt64)})
				sizes = append(sizes, lie(p.size, next()))
			}
			block := encodePB(t, links, encodeUnixFS(t, data.Data_File, inline, lie(sum.size, next()), sizes))
			sum.cid = putBlock(t, &s, cas.DagPB, block)
			sum.dag += uint64(len(block))
			parts = append(parts, sum)
		}
		useAll(t, &s, parts[len(parts)-1].cid)
	})
}

// FuzzRewrite makes edits of a file and compares with writing the result.
func FuzzRewrite(f *testing.F) {
	f.Add([]byte("some content of the file"), []byte{1, 10, 20, 30, 2, 40, 50, 60}, uint16(3000))
	f.Fuzz(func(t *testing.T, content, plan []byte, size uint16) {
		var s mem.Store
		format := small(t)
		var b []byte
		for i := 0; i < 4 && len(content) > 0; i++ { // so that there is something to cut
			b = append(b, content...)
			b = append(b, fixed(byte(i), 700)...)
			b = append(b, make([]byte, 600)...)
		}
		b = b[:min(len(b), 60_000)]
		root := write(t, &s, format, b)
		want := make([]byte, size)
		copy(want, b)
		var edits []manifest.Edit
		at := 0
		for ; len(plan) >= 4; plan = plan[4:] {
			at = min(at+int(plan[0])<<4, len(want))
			n := min(int(plan[1])<<(plan[3]%8), len(want)-at)
			e := manifest.Edit{Off: int64(at), Len: int64(n)}
			if plan[3] < 64 {
				clear(want[at : at+n])
			} else {
				copy(want[at:at+n], fixed(plan[2], n))
				e.Data = bytes.NewReader(want)
			}
			edits = append(edits, e)
			at += n
		}
		got, err := manifest.Rewrite(ctx, &s, format, root, int64(size), edits)
		if expect := reference(t, &mem.Store{}, format, want); err != nil || got != expect {
			t.Fatalf("Rewrite = %v, %v, want %v", got, err, expect)
		}
	})
}
