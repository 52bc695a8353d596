package manifest

// A node is a dag-pb block read as UnixFS. This file is the only one that knows
// how its bytes look.
//
// Nodes are read by go-codec-dagpb and go-unixfsnode/data. They are written here,
// as boxo writes them byte for byte: links with an empty name and a Tsize,
// filesize 0 for the empty file, no fraction of a second if it is 0, and a mode
// even if it is the default one. The libraries' encoders take twenty times as
// long, which counts when a 4 KiB change or a hole writes a handful of nodes and
// little else, and drop a mode that is the default one.

import (
	"bytes"
	"math"
	"time"

	"github.com/ipfs/go-unixfsnode/data"
	dagpb "github.com/ipld/go-codec-dagpb"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/cairnfs/cairn/cas"
)

// Meta is the metadata that UnixFS 1.5 keeps with a file, directory or symlink.
type Meta struct {
	Mode    uint32 // permission, set-id and sticky bits: 0 to 07777
	HasMode bool   // whether a mode is known; if not, Mode does not count
	Mtime   time.Time
	// The zero Mtime is an unknown one.
}

// none reports whether there is nothing to store.
func (m Meta) none() bool { return !m.HasMode && m.Mtime.IsZero() }

// link refers from an inner node of a file to one of its children.
type link struct {
	cid   cas.CID
	size  int64 // bytes of content below
	tsize int64 // bytes of all blocks below, at most MaxInt64
}

// node is a decoded block.
type node struct {
	kind    int64   // data.Data_File, …
	data    []byte  // file: content before that of the links; symlink: target; shard: bitmap
	size    int64   // file: bytes of content
	links   []link  // file only
	ends    []int64 // ends[i] is the offset in the content at which links[i] ends
	entries []Entry // directory and shard only, as they stand in the block
	fanout  int64   // shard only
	meta    Meta
	tsize   int64 // bytes of this and all blocks below, at most MaxInt64
}

// isFile reports whether n is a file or a part of one.
func (n *node) isFile() bool { return n.kind == data.Data_File || n.kind == data.Data_Raw }

// memory returns about how many bytes n takes in memory.
func (n *node) memory() int64 { return int64(256 + len(n.data) + 64*len(n.links)) }

// addSizes adds sizes that are not negative; what does not fit is MaxInt64. That
// is associative, so the Tsize of a tree does not depend on how it was built.
func addSizes(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// decodeNode reads the dag-pb block b of CID c. Nothing in the node refers to b.
// The sizes of a file's links are not negative, add up to the node's, and there
// is one for each link. Errors are *FormatError.
func decodeNode(c cas.CID, b []byte) (*node, error) {
	builder := dagpb.Type.PBNode.NewBuilder()
	if err := dagpb.DecodeBytes(builder, b); err != nil {
		return nil, &FormatError{c, "not dag-pb", err}
	}
	pb := builder.Build().(dagpb.PBNode)
	if !pb.FieldData().Exists() {
		return nil, badNode(c, "dag-pb without UnixFS data")
	}
	ufs, err := data.DecodeUnixFSData(pb.FieldData().Must().Bytes())
	if err != nil {
		return nil, &FormatError{c, "not UnixFS", err}
	}
	n := &node{kind: ufs.FieldDataType().Int(), tsize: int64(len(b))}
	if f := ufs.FieldData(); f.Exists() {
		n.data = bytes.Clone(f.Must().Bytes())
	}
	if n.meta, err = decodeMeta(c, ufs); err != nil {
		return nil, err
	}
	switch n.kind {
	case data.Data_File, data.Data_Raw:
		err = n.decodeFile(c, pb.FieldLinks(), ufs)
	case data.Data_HAMTShard:
		if h := ufs.FieldHashType(); !h.Exists() || h.Must().Int() != murmur3x64 {
			return nil, badNode(c, "directory shard with a hash other than murmur3-x64-64")
		}
		if f := ufs.FieldFanout(); f.Exists() {
			n.fanout = f.Must().Int()
		}
		err = n.decodeEntries(c, pb.FieldLinks())
	case data.Data_Directory:
		err = n.decodeEntries(c, pb.FieldLinks())
	case data.Data_Symlink:
		if pb.FieldLinks().Length() > 0 {
			err = badNode(c, "symlink with links")
		}
	default:
		err = badNode(c, "unknown UnixFS type %d", n.kind)
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (n *node) decodeFile(c cas.CID, links dagpb.PBLinks, ufs data.UnixFSData) error {
	count, sizes := links.Length(), ufs.FieldBlockSizes()
	if sizes.Length() != count {
		return badNode(c, "%d links, but %d blocksizes", count, sizes.Length())
	}
	n.links, n.ends = make([]link, 0, count), make([]int64, 0, count)
	n.size = int64(len(n.data))
	for i := range count {
		pb := links.Lookup(i)
		l := link{size: sizes.Lookup(i).Int()}
		var err error
		if l.cid, l.tsize, err = decodeLink(c, pb); err != nil {
			return err
		}
		if l.size < 0 || l.size > math.MaxInt64-n.size {
			return badNode(c, "blocksizes exceed 2^63-1 bytes")
		}
		if l.cid.Codec() == cas.Raw {
			if pb.FieldTsize().Exists() && l.tsize != l.size {
				return badNode(c, "link %d to a raw leaf has blocksize %d, but tsize %d", i, l.size, l.tsize)
			}
			if l.tsize = l.size; l.size > cas.MaxBlockSize {
				return badNode(c, "link %d to a raw leaf has blocksize %d", i, l.size)
			}
		}
		n.size += l.size
		n.tsize = addSizes(n.tsize, l.tsize)
		n.links, n.ends = append(n.links, l), append(n.ends, n.size)
	}
	if f := ufs.FieldFileSize(); f.Exists() && f.Must().Int() != n.size {
		return badNode(c, "filesize %d, but the parts have %d bytes", f.Must().Int(), n.size)
	}
	return nil
}

func (n *node) decodeEntries(c cas.CID, links dagpb.PBLinks) error {
	n.entries = make([]Entry, 0, links.Length())
	for i := range links.Length() {
		pb := links.Lookup(i)
		if !pb.FieldName().Exists() {
			return badNode(c, "directory entry %d has no name", i)
		}
		e := Entry{Name: pb.FieldName().Must().String()}
		var err error
		if e.CID, e.DAGSize, err = decodeLink(c, pb); err != nil {
			return err
		}
		n.tsize = addSizes(n.tsize, e.DAGSize)
		n.entries = append(n.entries, e)
	}
	return nil
}

// decodeLink returns the CID and Tsize of a link in the node c; 0 for none.
func decodeLink(c cas.CID, pb dagpb.PBLink) (cas.CID, int64, error) {
	l, ok := pb.FieldHash().Link().(cidlink.Link)
	if !ok {
		return cas.CID{}, 0, badNode(c, "link without CID")
	}
	to, err := cas.FromIPLD(l.Cid)
	if err != nil {
		return cas.CID{}, 0, &FormatError{c, "link to a block that Cairn cannot hold", err}
	}
	if !pb.FieldTsize().Exists() {
		return to, 0, nil
	}
	tsize := pb.FieldTsize().Must().Int()
	if tsize < 0 {
		return cas.CID{}, 0, badNode(c, "tsize exceeds 2^63-1 bytes")
	}
	return to, tsize, nil
}

func decodeMeta(c cas.CID, ufs data.UnixFSData) (Meta, error) {
	var m Meta
	if f := ufs.FieldMode(); f.Exists() {
		m.Mode, m.HasMode = uint32(f.Must().Int())&0o7777, true
	}
	if f := ufs.FieldMtime(); f.Exists() {
		var nanos int64
		if ns := f.Must().FieldFractionalNanoseconds(); ns.Exists() {
			nanos = ns.Must().Int()
		}
		// The specification wants 0 left out, but go-unixfsnode writes it.
		if nanos < 0 || nanos >= int64(time.Second) {
			return Meta{}, badNode(c, "mtime with %d nanoseconds", nanos)
		}
		m.Mtime = time.Unix(f.Must().FieldSeconds().Int(), nanos).UTC()
	}
	return m, nil
}

// append encodes n to b, with links or entries, whichever it has. Entries must be
// in the order of their names. n.tsize need not be set.
func (n *node) append(b []byte) []byte {
	for i := range n.links {
		b = appendLink(b, n.links[i].cid, "", n.links[i].tsize)
	}
	for i := range n.entries {
		b = appendLink(b, n.entries[i].CID, n.entries[i].Name, n.entries[i].DAGSize)
	}
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	return protowire.AppendBytes(b, n.unixfs())
}

func appendLink(b []byte, c cas.CID, name string, tsize int64) []byte {
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(linkSize(name, tsize)))
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = c.Append(protowire.AppendVarint(b, uint64(cas.CIDSize)))
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendString(b, name)
	b = protowire.AppendTag(b, 3, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(tsize))
}

// linkSize returns the length of a link, without the tag and length before it.
// All tags are one byte long.
func linkSize(name string, tsize int64) int {
	return 1 + protowire.SizeBytes(cas.CIDSize) + 1 + protowire.SizeBytes(len(name)) +
		1 + protowire.SizeVarint(uint64(tsize))
}

// encodedSize returns the length of what append adds.
func (n *node) encodedSize() int {
	size := 1 + protowire.SizeBytes(len(n.unixfs()))
	for i := range n.links {
		size += 1 + protowire.SizeBytes(linkSize("", n.links[i].tsize))
	}
	for i := range n.entries {
		size += 1 + protowire.SizeBytes(linkSize(n.entries[i].Name, n.entries[i].DAGSize))
	}
	return size
}

// unixfs encodes the UnixFS part of n, its fields in the order of their numbers.
func (n *node) unixfs() []byte {
	varint := func(b []byte, field protowire.Number, v int64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), uint64(v))
	}
	b := varint(make([]byte, 0, 64+len(n.data)+6*len(n.links)), data.Data_DataTypeWireNum, n.kind)
	if len(n.data) > 0 {
		b = protowire.AppendTag(b, data.Data_DataWireNum, protowire.BytesType)
		b = protowire.AppendBytes(b, n.data)
	}
	if n.isFile() {
		b = varint(b, data.Data_FileSizeWireNum, n.size)
		for i := range n.links {
			b = varint(b, data.Data_BlockSizesWireNum, n.links[i].size)
		}
	}
	if n.kind == data.Data_HAMTShard {
		b = varint(b, data.Data_HashTypeWireNum, murmur3x64)
		b = varint(b, data.Data_FanoutWireNum, n.fanout)
	}
	if n.meta.HasMode {
		b = varint(b, data.Data_ModeWireNum, int64(n.meta.Mode&0o7777))
	}
	if !n.meta.Mtime.IsZero() {
		t := varint(nil, data.UnixTime_SecondsWireNum, n.meta.Mtime.Unix())
		if ns := n.meta.Mtime.Nanosecond(); ns != 0 {
			t = protowire.AppendTag(t, data.UnixTime_FractionalNanosecondsWireNum, protowire.Fixed32Type)
			t = protowire.AppendFixed32(t, uint32(ns))
		}
		b = protowire.AppendTag(b, data.Data_MtimeWireNum, protowire.BytesType)
		b = protowire.AppendBytes(b, t)
	}
	return b
}

// block encodes n into buf and hashes it. It returns the block, which refers to
// buf, and the size of all blocks from this one down.
func (n *node) block(buf []byte) (cas.Block, int64, error) {
	b := n.append(buf)
	blk, err := cas.NewBlock(cas.DagPB, b)
	if err != nil {
		return cas.Block{}, 0, err
	}
	tsize := int64(len(b))
	for i := range n.links {
		tsize = addSizes(tsize, n.links[i].tsize)
	}
	for i := range n.entries {
		tsize = addSizes(tsize, n.entries[i].DAGSize)
	}
	return blk, tsize, nil
}

// fileNode returns the inner node with the given children.
func fileNode(links []link) *node {
	n := &node{kind: data.Data_File, links: links}
	for i := range links {
		n.size += links[i].size
	}
	return n
}
