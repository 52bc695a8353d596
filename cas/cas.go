// Package cas is the vocabulary of content-addressed storage: what a CID and a
// Block are, what a Store does, and how it can fail.
//
// A Block can only be made by hashing its bytes (NewBlock) or by checking them
// against a CID (Verify), so whoever holds a Block holds the right bytes,
// whichever disk or peer they came from. That is why a local store, a cache, a
// remote peer and a whole cluster can all be the same Store.
package cas

import (
	"context"
	"errors"
	"fmt"
)

// MaxBlockSize is the largest block, in bytes. Larger ones are neither made nor
// accepted, which bounds every buffer that a block is read into. It is also the
// limit that other IPFS nodes put on blocks that travel over Bitswap.
const MaxBlockSize = 1 << 20

// Errors that a Store returns, usually inside a *BlockError that names the block.
// Compare with errors.Is.
var (
	// ErrNotFound says that the store does not hold the block.
	ErrNotFound = errors.New("block not found")
	// ErrCorrupt says that bytes were found, but not those that the CID names.
	ErrCorrupt = errors.New("block is corrupt")
	// ErrTooLarge says that a block exceeds MaxBlockSize.
	ErrTooLarge = fmt.Errorf("block is larger than %d bytes", MaxBlockSize)
	// ErrNoSpace says that the store has reached its limit; nothing was stored.
	// Reads and deletes go on.
	ErrNoSpace = errors.New("no space left for blocks")
	// ErrBadCID says that a text or byte string is not a CID that Cairn uses:
	// CIDv1, codec raw or dag-pb, multihash BLAKE3 of 32 bytes.
	ErrBadCID = errors.New("not a Cairn CID")
)

// BlockError says what failed on which block. It unwraps to the cause.
type BlockError struct {
	Op    string // "get", "put", "verify", ...
	CID   CID
	Where string // the segment, peer or file concerned; may be empty
	Err   error
}

func (e *BlockError) Error() string {
	if e.Where == "" {
		return fmt.Sprintf("%s %v: %v", e.Op, e.CID, e.Err)
	}
	return fmt.Sprintf("%s %v: %s: %v", e.Op, e.CID, e.Where, e.Err)
}

func (e *BlockError) Unwrap() error { return e.Err }

// Block is immutable bytes together with the CID they hash to. The zero Block
// is no block.
type Block struct {
	cid  CID
	data []byte
}

// NewBlock hashes data. The block refers to data, which must not change while
// the block is in use. The only error is ErrTooLarge.
func NewBlock(codec Codec, data []byte) (Block, error) {
	if len(data) > MaxBlockSize {
		return Block{}, fmt.Errorf("%w: %d", ErrTooLarge, len(data))
	}
	return Block{Sum(codec, data), data}, nil
}

// Verify makes a block of data if data hashes to c, else it returns a
// *BlockError with ErrCorrupt. The block refers to data.
func Verify(c CID, data []byte) (Block, error) {
	if len(data) > MaxBlockSize {
		return Block{}, &BlockError{Op: "verify", CID: c, Err: ErrTooLarge}
	}
	if Sum(c.codec, data) != c {
		return Block{}, &BlockError{Op: "verify", CID: c, Err: ErrCorrupt}
	}
	return Block{c, data}, nil
}

// CID returns the block's address.
func (b Block) CID() CID { return b.cid }

// Data returns the block's bytes; the caller must not change them.
func (b Block) Data() []byte { return b.data }

// Copy returns the block with its bytes copied to buf, if its capacity allows, or to
// memory of their own.
func (b Block) Copy(buf []byte) Block { return Block{b.cid, append(buf[:0], b.data...)} }

// Getter reads blocks.
type Getter interface {
	// Get returns the block that c names. The store may put the bytes into
	// buf if its capacity allows, so the block is valid until the caller
	// uses buf again; a nil buf gives a block of its own.
	//
	// Errors: ErrNotFound; ErrCorrupt, when what is stored is not what c
	// names; otherwise the I/O or context error.
	Get(ctx context.Context, c CID, buf []byte) (Block, error)
}

// Putter writes blocks.
type Putter interface {
	// Put stores the blocks it does not hold yet. On return they can be read
	// back; they are durable after the next Sync. The store keeps no
	// reference to their bytes. On error any subset may have been stored.
	//
	// Errors: ErrNoSpace, otherwise the I/O or context error.
	Put(ctx context.Context, blocks ...Block) error
}

// Store is a set of blocks. Its methods may be called at the same time from any
// number of goroutines. The contract is spelled out as tests in cas/castest.
type Store interface {
	Getter
	Putter
	// Has says, for each CID, whether the store holds the block. It does not
	// read the block, so it does not notice corruption.
	Has(ctx context.Context, cids ...CID) ([]bool, error)
	// Sync returns when every block whose Put returned before Sync was called
	// survives a power loss.
	Sync(ctx context.Context) error
}
