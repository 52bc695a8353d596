package manifest_test

// Interoperation with the libraries of IPFS: what we write, they read, and what
// they write, we read.

import (
	"bytes"
	"testing"

	"github.com/ipfs/go-unixfsnode/data"
	"github.com/ipfs/go-unixfsnode/data/builder"
	dagpb "github.com/ipld/go-codec-dagpb"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/fluent/qp"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"

	"github.com/cairnfs/cairn/cas"
)

// pbLink is a link of a dag-pb node.
type pbLink struct {
	cid   cas.CID
	name  string
	tsize uint64
}

// encodePB encodes a dag-pb node with the IPLD library.
func encodePB(t testing.TB, links []pbLink, unixfs []byte) []byte {
	t.Helper()
	n, err := qp.BuildMap(dagpb.Type.PBNode, 2, func(m datamodel.MapAssembler) {
		qp.MapEntry(m, "Links", qp.List(int64(len(links)), func(list datamodel.ListAssembler) {
			for _, l := range links {
				qp.ListEntry(list, qp.Map(3, func(m datamodel.MapAssembler) {
					qp.MapEntry(m, "Hash", qp.Link(cidlink.Link{Cid: l.cid.IPLD()}))
					qp.MapEntry(m, "Name", qp.String(l.name))
					qp.MapEntry(m, "Tsize", qp.Int(int64(l.tsize)))
				}))
			}
		}))
		qp.MapEntry(m, "Data", qp.Bytes(unixfs))
	})
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := dagpb.Encode(n, &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// encodeUnixFS encodes a File with go-unixfsnode.
func encodeUnixFS(t testing.TB, size uint64, sizes []uint64) []byte {
	t.Helper()
	n, err := builder.BuildUnixFS(func(b *builder.Builder) {
		builder.DataType(b, data.Data_File)
		builder.FileSize(b, size)
		builder.BlockSizes(b, sizes)
	})
	if err != nil {
		t.Fatal(err)
	}
	return data.EncodeUnixFSData(n)
}
