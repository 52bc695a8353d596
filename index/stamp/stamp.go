// Package stamp writes and checks the small file that says what a directory of
// a store holds: which kind of data, in which version of its format, and which
// store it is.
//
// The stamp is read before anything else in the directory is touched, so that a
// store of a newer version is refused as it was found, and it is made durable
// before anything else is written there, so that a directory which holds data
// but no stamp is not one of ours.
//
// The file is named FORMAT and holds one line of text, for people with an editor
// as much as for programs:
//
//	cairn KIND VERSION ID CRC
//
// VERSION is decimal, ID is 32 hex digits, CRC is the CRC32C of everything before
// it in 8 hex digits.
package stamp

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	fileName = "FORMAT"
	tempName = "FORMAT.tmp"
	// maxSize bounds what is read of a file that claims to be a stamp.
	maxSize = 256
)

// Errors about the stamp of a directory. Compare with errors.Is.
var (
	// ErrForeign says that the directory holds files but no stamp of the
	// expected kind: it is not one of ours, or the stamp was deleted.
	ErrForeign = errors.New("directory does not hold the expected kind of store")
	// ErrDamaged says that there is a stamp, but it does not read as one.
	ErrDamaged = errors.New("format stamp is damaged")
)

// ID tells one store from another. It is drawn at random when a store is made.
type ID [16]byte

// VersionError says that a directory was written by a version of Cairn that
// this one does not understand. Nothing in the directory was changed.
type VersionError struct {
	Dir, Kind        string
	Found, Supported int
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s: %s format is version %d, this program understands version %d",
		e.Dir, e.Kind, e.Found, e.Supported)
}

// Open returns the ID of the store of the given kind and version in dir. If dir
// does not exist or is empty it is made, with an ID read from random, and is
// durable on return, as are its parents.
//
// Errors: *VersionError, ErrForeign, ErrDamaged, else the I/O error.
func Open(vf vfs.FS, dir, kind string, version int, random io.Reader) (ID, error) {
	names, err := vf.List(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ID{}, err
	}
	empty := true
	for _, name := range names {
		if name == fileName {
			return read(vf, dir, kind, version)
		}
		empty = empty && name == tempName
	}
	if !empty {
		return ID{}, fmt.Errorf("%s: %w (%s)", dir, ErrForeign, kind)
	}
	var id ID
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return ID{}, err
	}
	return id, write(vf, dir, line(kind, version, id))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func line(kind string, version int, id ID) string {
	return withSum(fmt.Sprintf("cairn %s %d %x ", kind, version, id))
}

func withSum(s string) string {
	return fmt.Sprintf("%s%08x\n", s, crc32.Checksum([]byte(s), castagnoli))
}

func read(vf vfs.FS, dir, kind string, version int) (ID, error) {
	f, err := vf.Open(vf.PathJoin(dir, fileName))
	if err != nil {
		return ID{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return ID{}, err
	}
	foundKind, foundVersion, id, ok := parse(string(text))
	switch {
	case !ok:
		return ID{}, fmt.Errorf("%s: %w", vf.PathJoin(dir, fileName), ErrDamaged)
	case foundKind != kind:
		return ID{}, fmt.Errorf("%s: %w (%s, not %s)", dir, ErrForeign, foundKind, kind)
	case foundVersion != version:
		return ID{}, &VersionError{Dir: dir, Kind: kind, Found: foundVersion, Supported: version}
	case id == ID{}:
		return ID{}, fmt.Errorf("%s: %w", vf.PathJoin(dir, fileName), ErrDamaged)
	}
	return id, nil
}

// parse is the inverse of line. An ID it cannot read is zero, not an error: of a
// stamp of another version only the first three words and the CRC are known.
func parse(text string) (kind string, version int, id ID, ok bool) {
	words := strings.Fields(text)
	if len(words) < 4 || words[0] != "cairn" {
		return "", 0, ID{}, false
	}
	body := strings.TrimSuffix(strings.TrimRight(text, "\n"), words[len(words)-1])
	sum, err := strconv.ParseUint(words[len(words)-1], 16, 32)
	if err != nil || uint32(sum) != crc32.Checksum([]byte(body), castagnoli) {
		return "", 0, ID{}, false
	}
	version, err = strconv.Atoi(words[2])
	if err != nil || version < 1 {
		return "", 0, ID{}, false
	}
	raw, err := hex.DecodeString(words[3])
	if err == nil && len(raw) == len(id) {
		copy(id[:], raw)
	}
	return words[1], version, id, true
}

// write makes dir with its stamp. The stamp gets its name only when its bytes
// are durable; then dir is synced and every directory above that has a new entry.
func write(vf vfs.FS, dir, text string) error {
	changed := []string{dir}
	for d := dir; ; {
		if _, err := vf.Stat(d); err == nil || vf.PathDir(d) == d {
			break
		}
		d = vf.PathDir(d)
		changed = append(changed, d)
	}
	if err := vf.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	temp := vf.PathJoin(dir, tempName)
	f, err := vf.Create(temp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(text))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := vf.Rename(temp, vf.PathJoin(dir, fileName)); err != nil {
		return err
	}
	for _, d := range changed {
		if err := syncDir(vf, d); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(vf vfs.FS, dir string) error {
	d, err := vf.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
