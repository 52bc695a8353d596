package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/namespace/raft"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/host"
)

// What makes a store that of a member of a cluster are two files:
//
//	key      its identity: the seed of an ed25519 key, 64 hexadecimal digits
//	member   JSON: where it listens, its number in the group that orders changes,
//	         and, of a node that has joined, whom it knew then
//
// Whoever can read the key can be the node, so it is not used when others may.
const (
	keyName    = "key"
	memberName = "member"
)

// DefaultListen is where a member listens unless told otherwise.
const DefaultListen = "0.0.0.0:4101"

// ErrKeyMode says that a secret file may be read by others.
var ErrKeyMode = errors.New("file may be read by others than its owner")

// membership is the content of the file member.
type memberFile struct {
	Format  int    `json:"format"`
	Listen  string `json:"listen"`
	Name    string `json:"name,omitempty"` // for people; empty: that of the host
	Raft    uint64 `json:"raft"`           // 0: no cluster yet
	Cluster string `json:"cluster"`
	// Joined says that the names come from others; Peers are some of them.
	Joined bool       `json:"joined,omitempty"`
	Peers  []peerAddr `json:"peers,omitempty"`
	// Proven says that all that is named is known to be on two nodes: see
	// replica.Options.
	Proven bool `json:"proven,omitempty"`
	// Refused says why the node cannot be a member any more.
	Refused *raft.Refusal `json:"refused,omitempty"`
}

// peerAddr is a member and where it was when this node joined.
type peerAddr struct {
	ID    p2p.PeerID `json:"id"`
	Addrs []string   `json:"addrs"`
}

const memberFormat = 1

// readMember reads the file member; ok says whether there is one.
func readMember(fsys vfs.FS, dir string) (m memberFile, ok bool, err error) {
	data, err := readSmall(fsys, fsys.PathJoin(dir, memberName))
	if errors.Is(err, fs.ErrNotExist) {
		return memberFile{Format: memberFormat, Listen: DefaultListen}, false, nil
	}
	if err != nil {
		return m, false, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, false, fmt.Errorf("%w: %s: %v", ErrDamaged, memberName, err)
	}
	if m.Format > memberFormat {
		return m, false, fmt.Errorf("%w: format of %s is %d", ErrNewerFormat, memberName, m.Format)
	}
	return m, true, nil
}

func writeMember(fsys vfs.FS, dir string, m memberFile) error {
	return writeMemberAs(fsys, dir, memberName, m)
}

func writeMemberAs(fsys vfs.FS, dir, name string, m memberFile) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(fsys, dir, name, append(data, '\n'))
}

// readKey returns the seed of a key, nil if there is none.
func readKey(fsys vfs.FS, dir, name string) ([]byte, error) {
	path := fsys.PathJoin(dir, name)
	info, err := fsys.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); fsys == vfs.Default && mode&0o077 != 0 {
		return nil, fmt.Errorf("%s: %w (mode %04o): chmod 600 it, and think about who may have read it", path, ErrKeyMode, mode)
	}
	data, err := readSmall(fsys, path)
	if err != nil {
		return nil, err
	}
	var seed []byte
	if n, err := fmt.Sscanf(strings.TrimSpace(string(data)), "%x", &seed); n != 1 || err != nil || len(seed) != 32 {
		return nil, fmt.Errorf("%w: %s is not a key", ErrDamaged, path)
	}
	return seed, nil
}

// makeKey returns the seed of the node's key, which it makes if there is none.
func makeKey(fsys vfs.FS, dir string, random io.Reader) ([]byte, p2p.PeerID, error) {
	return makeKeyAs(fsys, dir, keyName, random)
}

func makeKeyAs(fsys vfs.FS, dir, name string, random io.Reader) ([]byte, p2p.PeerID, error) {
	seed, err := readKey(fsys, dir, name)
	if err != nil {
		return nil, "", err
	}
	if seed == nil {
		seed = make([]byte, 32)
		if _, err := io.ReadFull(random, seed); err != nil {
			return nil, "", err
		}
		if err := replaceFile(fsys, dir, name, fmt.Appendf(nil, "%x\n", seed)); err != nil {
			return nil, "", err
		}
	}
	id, err := host.PeerIDOf(seed)
	return seed, id, err
}

func readSmall(fsys vfs.FS, path string) ([]byte, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxConfig))
	return data, errors.Join(err, f.Close())
}
