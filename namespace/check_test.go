package namespace

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/cairnfs/cairn/namespace/namespacepb"
	"github.com/cockroachdb/pebble/v2"
)

// damage changes one key; a nil value deletes it.
type damage struct {
	do   func(f *fixture) (key, value []byte)
	want string // part of what Check says
}

// The inodes of the namespace that is damaged, besides the root.
const damagedDir, damagedSub, damagedFile, damagedLink, damagedOrphan = 2, 3, 4, 5, 6

func (f *fixture) damageInode(ino Ino, change func(*record)) (key, value []byte) {
	f.t.Helper()
	r, _, err := loadInode(f.db, ino)
	if err != nil {
		f.t.Fatal(err)
	}
	change(&r)
	return inodeKey(nil, ino), new(encoder).encodeInode(&r)
}

func (f *fixture) damageEntry(parent Ino, name string, d dentry) (key, value []byte) {
	hash, _ := f.s.hashName(name)
	return dentryKey(nil, parent, hash, name), new(encoder).encodeDentry(d)
}

func damageToInodes() map[string]damage {
	const dir, sub, file, link = damagedDir, damagedSub, damagedFile, damagedLink
	return map[string]damage{
		"inode gone":    {func(*fixture) ([]byte, []byte) { return inodeKey(nil, file), nil }, "does not exist"},
		"inode garbage": {func(*fixture) ([]byte, []byte) { return inodeKey(nil, file), []byte{1, 255} }, "corrupt"},
		"inode version": {func(*fixture) ([]byte, []byte) { return inodeKey(nil, file), []byte{9} }, "version"},
		"inode key":     {func(*fixture) ([]byte, []byte) { return tagKey(nil, tagInode), []byte{1} }, "inode key"},
		"inode number": {func(f *fixture) ([]byte, []byte) {
			k, v := f.damageInode(file, func(*record) {})
			k[9] = 200
			return k, v
		}, "not given out"},
		"root gone":        {func(*fixture) ([]byte, []byte) { return inodeKey(nil, RootIno), nil }, "no root"},
		"links of a file":  {func(f *fixture) ([]byte, []byte) { return f.damageInode(file, func(r *record) { r.nlink++ }) }, "links"},
		"links of a dir":   {func(f *fixture) ([]byte, []byte) { return f.damageInode(dir, func(r *record) { r.nlink++ }) }, "links"},
		"entries of a dir": {func(f *fixture) ([]byte, []byte) { return f.damageInode(dir, func(r *record) { r.size++ }) }, "entries"},
		"parent of a dir":  {func(f *fixture) ([]byte, []byte) { return f.damageInode(sub, func(r *record) { r.parent = RootIno }) }, "found in"},
		"cycle":            {func(f *fixture) ([]byte, []byte) { return f.damageInode(dir, func(r *record) { r.parent = sub }) }, "below the root"},
		"content": {func(f *fixture) ([]byte, []byte) {
			return f.damageInode(file, func(r *record) { r.inline, r.contentLen = []byte("x"), 1 })
		}, "content"},
		"content of a dir": {func(f *fixture) ([]byte, []byte) {
			return f.damageInode(dir, func(r *record) { r.inline, r.contentLen = []byte("x"), 1 })
		}, "content in"},
		"target":          {func(f *fixture) ([]byte, []byte) { return f.damageInode(link, func(r *record) { r.target = "" }) }, "symbolic link"},
		"mode":            {func(f *fixture) ([]byte, []byte) { return f.damageInode(file, func(r *record) { r.mode = 0 }) }, "mode"},
		"from the future": {func(f *fixture) ([]byte, []byte) { return f.damageInode(file, func(r *record) { r.began = 999 }) }, "after"},
		"attribute sum":   {func(f *fixture) ([]byte, []byte) { return f.damageInode(file, func(r *record) { r.xattrValues++ }) }, "attributes"},
		"attribute lost":  {func(*fixture) ([]byte, []byte) { return xattrKey(nil, file, "user.a"), nil }, "attributes"},
		"attribute bad":   {func(*fixture) ([]byte, []byte) { return xattrKey(nil, file, "user.a"), []byte{7} }, "version"},
		"attribute of nobody": {func(*fixture) ([]byte, []byte) {
			return xattrKey(nil, 99, "a"), new(encoder).encodeXattr(nil, 1)
		}, "does not exist"},
	}
}

func damageToTheRest() map[string]damage {
	const dir, sub, file, orphan = damagedDir, damagedSub, damagedFile, damagedOrphan
	return map[string]damage{
		"entry gone":      {func(f *fixture) ([]byte, []byte) { k, _ := f.damageEntry(dir, "file", dentry{}); return k, nil }, "links"},
		"entry garbage":   {func(f *fixture) ([]byte, []byte) { k, _ := f.damageEntry(dir, "file", dentry{}); return k, []byte{} }, "corrupt"},
		"entry twice":     {func(f *fixture) ([]byte, []byte) { return f.damageEntry(dir, "again", dentry{sub, 1, TypeDir}) }, "2 names"},
		"entry in a file": {func(f *fixture) ([]byte, []byte) { return f.damageEntry(file, "x", dentry{file, 1, TypeRegular}) }, "no directory"},
		"entry type":      {func(f *fixture) ([]byte, []byte) { return f.damageEntry(dir, "file", dentry{file, 1, TypeFIFO}) }, "type"},
		"entry future":    {func(f *fixture) ([]byte, []byte) { return f.damageEntry(dir, "file", dentry{file, 999, TypeRegular}) }, "after"},
		"entry place": {func(f *fixture) ([]byte, []byte) {
			_, v := f.damageEntry(dir, "file", dentry{file, 1, TypeRegular})
			return dentryKey(nil, dir, 5, "file"), v
		}, "instead of"},
		"orphan forgotten": {func(*fixture) ([]byte, []byte) { return numberKey(nil, tagOrphan, orphan), nil }, "orphan"},
		"orphan with name": {func(*fixture) ([]byte, []byte) { return numberKey(nil, tagOrphan, file), []byte{} }, "orphan"},
		"orphan of nobody": {func(*fixture) ([]byte, []byte) { return numberKey(nil, tagOrphan, 99), []byte{} }, "does not exist"},
		"history unlisted": {func(f *fixture) ([]byte, []byte) { return f.first(tagEnded), nil }, "listed"},
		"history lost":     {func(f *fixture) ([]byte, []byte) { return f.first(tagHistory), nil }, "lists no value"},
		"history garbage":  {func(f *fixture) ([]byte, []byte) { return f.first(tagHistory), []byte{1, 255} }, "corrupt"},
		"history kept by nobody": {func(f *fixture) ([]byte, []byte) {
			ended, tail, _ := splitNumberKey(f.first(tagEnded))
			return keptKey(nil, tail, 55, ended), []byte{}
		}, "which does not exist"},
		"history overlaps": {func(f *fixture) ([]byte, []byte) {
			tail, _, _ := splitHistoryKey(f.first(tagHistory))
			return historyKey(nil, tail, 999), []byte{1}
		}, "from 0 to 999"},
		"pin":      {func(*fixture) ([]byte, []byte) { return pinKey(nil, tree(1).Root), []byte{9} }, "pin"},
		"pin key":  {func(*fixture) ([]byte, []byte) { return tagKey(nil, tagPin), marshalRecord(&namespacepb.Pin{}) }, "pin"},
		"snapshot": {func(*fixture) ([]byte, []byte) { return snapshotKey(nil, "s"), nil }, "snapshots"},
		"time":     {func(*fixture) ([]byte, []byte) { return numberKey(nil, tagTime, 1), []byte{1} }, "time"},
	}
}

func TestCheckFindsEveryKindOfDamage(t *testing.T) {
	const dir, file = damagedDir, damagedFile
	all := damageToInodes()
	maps.Copy(all, damageToTheRest())
	for name, c := range all {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, Options{})
			f.dir(RootIno, "dir")
			f.dir(dir, "sub")
			f.file(dir, "file")
			f.create(RootIno, "link", TypeSymlink)
			f.file(RootIno, "orphan")
			f.do(&SetXattr{Ino: file, Name: "user.a", Value: []byte("v")}, &Unlink{Parent: RootIno, Name: "orphan"})
			f.do(&Snapshot{Name: "s"}, &Pin{CID: tree(1).Root})
			f.check()
			key, value := c.do(f)
			var err error
			if value == nil {
				err = f.db.Delete(key, pebble.NoSync)
			} else {
				err = f.db.Set(key, value, pebble.NoSync)
			}
			if err != nil {
				t.Fatal(err)
			}
			var found []string
			if err := f.s.Check(context.Background(), func(p Problem) { found = append(found, p.String()) }); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(strings.Join(found, "\n"), c.want) {
				t.Errorf("found %q, want something about %q", found, c.want)
			}
		})
	}
}

// first returns the first key with a tag.
func (f *fixture) first(tag byte) (key []byte) {
	f.t.Helper()
	if err := scan(f.db, tagKey(nil, tag), func(k, _ []byte) (bool, error) {
		key = append(key, k...)
		return false, nil
	}); err != nil || key == nil {
		f.t.Fatal(err, "no key")
	}
	return key
}

func TestCheckCanBeCancelled(t *testing.T) {
	f := newFixture(t, Options{})
	for range 10 {
		ops := make([]Op, 200)
		for i := range ops {
			ops[i] = &Create{Parent: RootIno, Name: strings.Repeat("x", i%250+1) + string(rune('a'+f.index)), Mode: TypeFIFO}
		}
		f.do(ops...)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := f.s.Check(ctx, func(Problem) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled check: %v", err)
	}
}
