package namespace

import (
	"encoding/binary"
	"fmt"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/index"
)

const space = index.SpaceNamespace

// Keys. Each begins with the byte of the key space and a tag; numbers are 8
// bytes, most significant first, so that keys sort as the numbers do.
//
//	i ino                        inode
//	d parent hash name           directory entry; hash is the cookie
//	x ino name                   extended attribute
//	P ino number                 patch of the inode's content
//	o ino                        orphan; no value
//	p codec hash                 pin
//	s name                       snapshot
//	t time                       index of the first command of that minute of log time
//	h key 00 ended               value that key had until the command ended
//	e ended key                  the same, in the order in which history is trimmed; no value
//	k snapshot ended key         the same, once only that snapshot keeps it; no value
//	g snapshot                   snapshot dropped, its k keys not yet looked through; no value
//	c                            the cluster, once there is one
//	C                            the configuration of the group that orders commands
//	n peer                       member
//	v id                         invitation
//	S session                    session
//	r session seq                result of a session's command
//	l ino                        locks, and the queue for the content
//	w session id                 wait for a lock
//	G                            how far the collection of blocks is
//	m                            counters and positions, rewritten by every command
//	f                            version of the namespace (version.go) and hash key
//
// "key" is an inode, entry, attribute or patch key from its tag on. No name contains
// a NUL, so the 00 in a history key is found from the end and no history key is
// a prefix of another key's.
const (
	tagInode    = 'i'
	tagDentry   = 'd'
	tagXattr    = 'x'
	tagPatch    = 'P'
	tagOrphan   = 'o'
	tagPin      = 'p'
	tagSnapshot = 's'
	tagTime     = 't'
	tagHistory  = 'h'
	tagEnded    = 'e'
	tagKept     = 'k'
	tagDropped  = 'g'
	tagCluster  = 'c'
	tagGroup    = 'C'
	tagMember   = 'n'
	tagInvite   = 'v'
	tagSession  = 'S'
	tagOutcome  = 'r'
	tagLocks    = 'l'
	tagCollect  = 'G'
	tagWait     = 'w'
	tagMeta     = 'm'
	tagFormat   = 'f'
)

func tagKey(b []byte, tag byte) []byte { return append(b, space, tag) }

func numberKey(b []byte, tag byte, n uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, space, tag), n)
}

func inodeKey(b []byte, ino Ino) []byte { return numberKey(b, tagInode, uint64(ino)) }

func dentryKey(b []byte, parent Ino, hash uint64, name string) []byte {
	b = numberKey(b, tagDentry, uint64(parent))
	b = binary.BigEndian.AppendUint64(b, hash)
	return append(b, name...)
}

func xattrKey(b []byte, ino Ino, name string) []byte {
	return append(numberKey(b, tagXattr, uint64(ino)), name...)
}

func pinKey(b []byte, c cas.CID) []byte {
	hash := c.Hash()
	return append(append(b, space, tagPin, byte(c.Codec())), hash[:]...)
}

func pinCID(key []byte) (cas.CID, error) {
	if len(key) != 3+cas.HashSize {
		return cas.CID{}, fmt.Errorf("%w: pin key %x", ErrCorrupt, key)
	}
	return cas.NewCID(cas.Codec(key[2]), [cas.HashSize]byte(key[3:])), nil
}

func snapshotKey(b []byte, name string) []byte { return append(tagKey(b, tagSnapshot), name...) }

// historyKey is where the value of key until the command ended is kept. tail is
// the key without the key space.
func historyKey(b, tail []byte, ended uint64) []byte {
	b = append(append(b, space, tagHistory), tail...)
	return binary.BigEndian.AppendUint64(append(b, 0), ended)
}

func endedKey(b, tail []byte, ended uint64) []byte {
	return append(numberKey(b, tagEnded, ended), tail...)
}

func keptKey(b, tail []byte, snapshot, ended uint64) []byte {
	b = numberKey(b, tagKept, snapshot)
	return append(binary.BigEndian.AppendUint64(b, ended), tail...)
}

// splitKeptKey takes apart what keptKey made.
func splitKeptKey(key []byte) (snapshot uint64, tail []byte, ended uint64, ok bool) {
	snapshot, rest, ok := splitNumberKey(key)
	if !ok || len(rest) < 8+1 {
		return 0, nil, 0, false
	}
	return snapshot, rest[8:], binary.BigEndian.Uint64(rest), true
}

// splitHistoryKey takes apart what historyKey made.
func splitHistoryKey(key []byte) (tail []byte, ended uint64, ok bool) {
	if len(key) < 2+1+9 || key[len(key)-9] != 0 {
		return nil, 0, false
	}
	return key[2 : len(key)-9], binary.BigEndian.Uint64(key[len(key)-8:]), true
}

// splitDentryTail takes apart an entry's key from its tag on.
func splitDentryTail(tail []byte) (parent Ino, hash uint64, name []byte, ok bool) {
	if len(tail) < 1+16 || tail[0] != tagDentry {
		return 0, 0, nil, false
	}
	return Ino(binary.BigEndian.Uint64(tail[1:])), binary.BigEndian.Uint64(tail[9:]), tail[17:], true
}

// splitXattrTail takes apart an attribute's key from its tag on.
func splitXattrTail(tail []byte) (ino Ino, name []byte, ok bool) {
	if len(tail) < 1+8 || tail[0] != tagXattr {
		return 0, nil, false
	}
	return Ino(binary.BigEndian.Uint64(tail[1:])), tail[9:], true
}

// splitNumberKey takes apart what numberKey made.
func splitNumberKey(key []byte) (n uint64, rest []byte, ok bool) {
	if len(key) < 2+8 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint64(key[2:]), key[10:], true
}

func stringKey(tag byte, s string) []byte { return append(tagKey(nil, tag), s...) }

func outcomeKey(b []byte, session SessionID, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(numberKey(b, tagOutcome, uint64(session)), seq)
}

// after returns the first key that does not begin with prefix, which must not
// end in 0xff bytes only.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}
