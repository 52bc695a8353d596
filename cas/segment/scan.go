package segment

import (
	"bufio"
	"bytes"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
)

// scanner reads the records of a segment in order and verifies them. Behind bytes
// that are no record it goes on with the next ones that are.
type scanner struct {
	file   vfs.File
	r      *bufio.Reader
	seed   uint32
	offset int64
	raw    []byte // reused to decompress
}

// scanBuffer is larger than any record, so that not every record costs a read. For
// a segment that is shorter, its length will do.
const scanBuffer = 2 * (headerSize + cas.MaxBlockSize)

// newScanner begins at the given offset of a file of the given size.
func newScanner(f vfs.File, seed uint32, offset, size int64) *scanner {
	s := &scanner{file: f, seed: seed, r: bufio.NewReaderSize(nil, int(min(size, scanBuffer)))}
	s.seek(offset)
	return s
}

func (s *scanner) seek(offset int64) {
	s.r.Reset(io.NewSectionReader(s.file, offset, 1<<62))
	s.offset = offset
}

// span is what scanner.next found: a valid record, or bytes that are none.
type span struct {
	offset, end int64
	valid       bool
	header      header
	record      []byte // the stored bytes of a valid record; valid until the next call
}

// next returns what begins at s.offset, up to the next record that has a valid
// header; ok is false at the end of the file. The error is one of reading.
func (s *scanner) next() (found span, ok bool, err error) {
	found.offset = s.offset
	b, err := s.peek(headerSize)
	if err != nil || len(b) == 0 {
		return found, false, err
	}
	h, isHeader := parseHeader(b, s.seed, s.offset)
	if !isHeader {
		err := s.search()
		found.end = s.offset
		return found, true, err
	}
	b, err = s.peek(int(h.size()))
	if err != nil {
		return found, false, err
	}
	if len(b) == int(h.size()) {
		s.raw, found.valid = h.verify(b[headerSize:], s.raw)
	}
	found.header, found.record = h, b
	if _, err := s.r.Discard(len(b)); err != nil {
		return found, false, err
	}
	s.offset += int64(len(b))
	found.end = s.offset
	return found, true, nil
}

// search moves on to the next valid header after s.offset, or to the end.
func (s *scanner) search() error {
	skip := 1
	for {
		if _, err := s.r.Discard(skip); err != nil {
			return err
		}
		s.offset += int64(skip)
		b, err := s.peek(scanBuffer)
		if err != nil || len(b) == 0 {
			return err
		}
		if _, ok := parseHeader(b, s.seed, s.offset); ok {
			return nil
		}
		// To the next place where a header may begin; at the end of b it may
		// be cut in two.
		if skip = bytes.Index(b[1:], []byte(recordMagic)) + 1; skip == 0 {
			skip = max(1, len(b)-headerSize+1)
		}
	}
}

// peek returns the next n bytes, fewer at the end of the file.
func (s *scanner) peek(n int) ([]byte, error) {
	b, err := s.r.Peek(n)
	if err == io.EOF || err == bufio.ErrBufferFull {
		err = nil
	}
	return b, err
}
