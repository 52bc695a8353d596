package manifest

import (
	"context"

	"github.com/cairnfs/cairn/cas"
)

// Links returns the CIDs that the block c refers to directly, in the order in
// which they stand in it, with repetitions: the children of an inner node of a
// file, the entries or shards of a directory. Raw blocks and symlinks have none. It
// reads the block c, unless that is raw, and no other. Whoever follows links from
// the roots finds every block that is in use. Errors: *FormatError, or the
// store's.
func Links(ctx context.Context, store cas.Getter, c cas.CID) ([]cas.CID, error) {
	if c.Codec() == cas.Raw {
		return nil, nil
	}
	n, err := getNode(ctx, store, c)
	if err != nil {
		return nil, err
	}
	cids := make([]cas.CID, 0, len(n.links)+len(n.entries))
	for _, l := range n.links {
		cids = append(cids, l.cid)
	}
	for _, e := range n.entries {
		cids = append(cids, e.CID)
	}
	return cids, nil
}
