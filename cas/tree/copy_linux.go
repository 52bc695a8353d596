package tree

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/cas/manifest"
)

// copyData writes the bytes of file to w; r reads the same bytes. The holes of a
// sparse file are not read.
func copyData(ctx context.Context, w *manifest.Writer, file *os.File, r io.Reader, info fs.FileInfo, progress func(int64)) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if ok && stat.Blocks*512 < info.Size() {
		return copySparse(ctx, w, file, info.Size(), progress)
	}
	_, err := w.ReadFrom(ctx, &counter{ctx, r, progress})
	return err
}

// copySparse writes the first size bytes of file to w, taking the places of holes
// from the file system. A file system that knows none says that all is data.
func copySparse(ctx context.Context, w *manifest.Writer, file *os.File, size int64, progress func(int64)) error {
	for off := int64(0); off < size; {
		data, err := file.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data = size // nothing but a hole is left
		} else if err != nil {
			return err
		}
		data = min(data, size)
		if err := w.WriteZeros(ctx, data-off); err != nil {
			return err
		}
		progress(data - off)
		if off = data; off == size {
			return nil
		}
		hole, err := file.Seek(off, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := file.Seek(off, io.SeekStart); err != nil {
			return err
		}
		hole = min(hole, size)
		n, err := w.ReadFrom(ctx, &counter{ctx, io.LimitReader(file, hole-off), progress})
		if err != nil {
			return err
		}
		if off += n; off < hole {
			return nil // it was cut off meanwhile
		}
	}
	return nil
}
