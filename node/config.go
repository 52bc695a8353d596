package node

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/zeebo/blake3"

	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/chunker"
)

// configName is the file that makes a directory a store. It is written once, as
// the last step of creating the store:
//
//	{
//	  "format": 1,
//	  "id": "…", "created": "…",
//	  "chunker": {"algorithm": "…", "min": …, "avg": …, "max": …},
//	  "sum": "…"
//	}
//
// format is the version of everything in the directory. sum is the BLAKE3 hash
// of the file's JSON without sum and without white space: other chunk sizes than
// those the store was filled with would be valid, and end deduplication silently.
const configName = "config"

// formatVersion is the version of the stored formats that this code writes, and
// the only one it reads.
const formatVersion = 1

// maxConfig bounds the size of the file, in bytes.
const maxConfig = 64 << 10

// Errors about a data directory. Compare with errors.Is.
var (
	// ErrNoStore says that the directory holds no store.
	ErrNoStore = errors.New("no store here")
	// ErrNotEmpty says that no store is created in a directory that holds
	// something else.
	ErrNotEmpty = errors.New("directory holds other files")
	// ErrNewerFormat says that a newer version of the program made the store.
	// Nothing in it was touched.
	ErrNewerFormat = errors.New("store was made by a newer version of cairn")
	// ErrUnknownChunker says that this program cannot cut files as the store
	// does. Nothing in it was touched.
	ErrUnknownChunker = errors.New("store uses a chunker that this version of cairn does not have")
	// ErrDamaged says that the store itself, not a block, is damaged.
	ErrDamaged = errors.New("store is damaged")
)

// config is the content of the config file.
type config struct {
	Format  int       `json:"format"`
	ID      string    `json:"id"` // 128 random bits, in hexadecimal
	Created time.Time `json:"created"`
	Chunker cutting   `json:"chunker"`
	Sum     string    `json:"sum,omitempty"`
}

// cutting is chunker.Params with the names it has in the file.
type cutting struct {
	Algorithm string `json:"algorithm"`
	Min       int    `json:"min"`
	Avg       int    `json:"avg"`
	Max       int    `json:"max"`
}

// format returns the format that files are stored in: ErrUnknownChunker.
func (c config) format() (manifest.Format, error) {
	cutter, err := chunker.New(chunker.Params(c.Chunker))
	if err != nil {
		return manifest.Format{}, fmt.Errorf("%w: %w", ErrUnknownChunker, err)
	}
	return manifest.Format{Chunker: cutter}, nil
}

// sum returns what Sum must be.
func (c config) sum() (string, error) {
	c.Sum = ""
	data, err := json.Marshal(c)
	h := blake3.Sum256(data)
	return hex.EncodeToString(h[:]), err
}

// newConfig returns the config of a store that is being created.
func newConfig(random io.Reader, now time.Time, p chunker.Params) (config, error) {
	var id [16]byte
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return config{}, err
	}
	c := config{
		Format:  formatVersion,
		ID:      hex.EncodeToString(id[:]),
		Created: now.UTC().Truncate(time.Second),
		Chunker: cutting(p),
	}
	var err error
	c.Sum, err = c.sum()
	return c, err
}

// parseConfig reads the content of a config file. It fails with ErrNewerFormat
// or ErrDamaged.
func parseConfig(data []byte) (config, error) {
	var version struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return config{}, fmt.Errorf("%w: %s: %v", ErrDamaged, configName, err)
	}
	if version.Format > formatVersion {
		return config{}, fmt.Errorf("%w: its format is %d, this one knows %d", ErrNewerFormat, version.Format, formatVersion)
	}
	var c config
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return config{}, fmt.Errorf("%w: %s: %v", ErrDamaged, configName, err)
	}
	if sum, err := c.sum(); err != nil || sum != c.Sum {
		return config{}, fmt.Errorf("%w: %s does not match its checksum", ErrDamaged, configName)
	}
	return c, nil
}

// readConfig reads the config file of the store in dir: ErrNoStore if there is
// none. It writes nothing.
func readConfig(fsys vfs.FS, dir string) (config, error) {
	f, err := fsys.Open(fsys.PathJoin(dir, configName))
	if errors.Is(err, fs.ErrNotExist) {
		return config{}, ErrNoStore
	}
	if err != nil {
		return config{}, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err = errors.Join(err, f.Close()); err != nil {
		return config{}, err
	}
	return parseConfig(data)
}

// writeConfig makes dir a store, durably and at once.
func writeConfig(fsys vfs.FS, dir string, c config) error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(fsys, dir, configName, append(data, '\n'))
}

// replaceFile gives a file of the data directory another content, durably and at
// once. Only its owner may read it.
func replaceFile(fsys vfs.FS, dir, name string, data []byte) error {
	path := fsys.PathJoin(dir, name)
	f, err := fsys.Create(path+".tmp", vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if fsys == vfs.Default {
		err = os.Chmod(path+".tmp", 0o600)
	}
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(fsys, dir)
}

func syncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
