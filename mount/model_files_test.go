//go:build linux

package mount

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Calls of the random test on open files.

const maxOpen = 8

func (w *twins) openFile() {
	if len(w.files) == maxOpen {
		w.closeFile()
		return
	}
	flags := []int{
		unix.O_RDWR, unix.O_RDWR, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR | unix.O_APPEND, unix.O_RDWR | unix.O_DSYNC,
	}[w.rnd.IntN(6)]
	flags |= []int{0, unix.O_CREAT, unix.O_CREAT, unix.O_CREAT | unix.O_EXCL, unix.O_TRUNC, unix.O_CREAT | unix.O_TRUNC}[w.rnd.IntN(6)]
	flags |= []int{unix.O_NOFOLLOW, unix.O_NOFOLLOW, 0}[w.rnd.IntN(3)]
	path := w.pathFor(false)
	if w.rnd.IntN(3) == 0 {
		path = "a" // so that files are open more than once
	}
	w.open(path, flags, 0o666)
}

// openTemporary opens a file without a name.
func (w *twins) openTemporary() {
	if len(w.files) == maxOpen {
		w.closeFile()
		return
	}
	w.open(filepath.Dir(w.path()), unix.O_RDWR|unix.O_TMPFILE|[]int{0, unix.O_EXCL}[w.rnd.IntN(2)], 0o640)
}

// open opens path in both trees. Nothing waits for the other end of a pipe.
func (w *twins) open(path string, flags int, mode uint32) {
	fds := [2]int{-1, -1}
	w.same(fmt.Sprintf("open %s flags %#x", path, flags), func(root string, which int) string {
		fd, err := unix.Open(join(root, path), flags|unix.O_CLOEXEC|unix.O_NONBLOCK, mode)
		fds[which] = fd
		return fmt.Sprint(err)
	})
	if fds[0] >= 0 {
		w.files = append(w.files, fds)
	}
}

func (w *twins) closeFile() {
	if len(w.files) == 0 {
		return
	}
	i := w.rnd.IntN(len(w.files))
	fds := w.files[i]
	w.files = slices.Delete(w.files, i, i+1)
	w.same(fmt.Sprint("close ", fds), func(_ string, which int) string { return fmt.Sprint(unix.Close(fds[which])) })
}

// onFile makes a call on one of the open files.
func (w *twins) onFile(what string, call func(fd int) string) {
	w.t.Helper()
	if len(w.files) == 0 {
		return
	}
	fds := w.files[w.rnd.IntN(len(w.files))]
	w.same(fmt.Sprint(what, " on ", fds), func(_ string, which int) string { return call(fds[which]) })
}

func (w *twins) writeFile() {
	off, p := int64(w.size()), make([]byte, w.size())
	for i := range p {
		p[i] = byte(w.step + i>>4)
	}
	w.onFile(fmt.Sprintf("pwrite %d at %d", len(p), off), func(fd int) string {
		n, err := unix.Pwrite(fd, p, off)
		return fmt.Sprint(n, err)
	})
}

func (w *twins) readFile() {
	off, n := int64(w.size()), w.size()
	w.onFile(fmt.Sprintf("pread %d at %d", n, off), func(fd int) string {
		p := make([]byte, n)
		n, err := unix.Pread(fd, p, off)
		return fmt.Sprint(n, err, crc32.ChecksumIEEE(p[:max(n, 0)]))
	})
}

func (w *twins) truncateFile() {
	size := int64(w.size())
	w.onFile(fmt.Sprint("ftruncate ", size), func(fd int) string { return fmt.Sprint(unix.Ftruncate(fd, size)) })
}

func (w *twins) syncFile() {
	w.onFile("fsync", func(fd int) string { return fmt.Sprint(unix.Fsync(fd)) })
}

func (w *twins) dropPages() {
	w.onFile("drop pages", func(fd int) string { return fmt.Sprint(unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)) })
}

func (w *twins) statFile() {
	w.onFile("fstat", func(fd int) string {
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		return fmt.Sprint(err, " ", attributes(&st))
	})
}

func (w *twins) allocate() {
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	mode := []uint32{0, keep, punch | keep, punch, zero, zero | keep}[w.rnd.IntN(6)]
	off, n := int64(w.size()), int64(w.size())
	w.onFile(fmt.Sprintf("fallocate mode %#x: %d at %d", mode, n, off), func(fd int) string {
		return fmt.Sprint(unix.Fallocate(fd, mode, off, n))
	})
}

// copyFile copies from one open file to another, or within one.
func (w *twins) copyFile() {
	if len(w.files) == 0 {
		return
	}
	src, dst := w.files[w.rnd.IntN(len(w.files))], w.files[w.rnd.IntN(len(w.files))]
	from, to, n := int64(w.size()), int64(w.size()), w.size()
	w.same(fmt.Sprintf("copy_file_range %d from %v at %d to %v at %d", n, src, from, dst, to), func(_ string, which int) string {
		from, to, rest := from, to, n
		for {
			n, err := unix.CopyFileRange(src[which], &from, dst[which], &to, rest, 0)
			if rest -= max(n, 0); n <= 0 || rest == 0 {
				return fmt.Sprint(rest, " left ", err)
			}
		}
	})
}

// seekFile asks for data and holes. File systems may differ in what they call a
// hole, but there must not be bytes in it.
func (w *twins) seekFile() {
	off := int64(w.size())
	w.onFile(fmt.Sprint("data and holes from ", off), func(fd int) string {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			return fmt.Sprint("no file ", err)
		}
		hole, err := unix.Seek(fd, off, unix.SEEK_HOLE)
		if off >= st.Size || err != nil {
			_, dataErr := unix.Seek(fd, off, unix.SEEK_DATA)
			return fmt.Sprint(err, dataErr)
		}
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			data, err = st.Size, nil
		}
		if err != nil || hole < off || data < off || hole > st.Size || data > st.Size || (hole == off) != (data > off) {
			return fmt.Sprintf("hole at %d, data at %d, %v", hole, data, err)
		}
		p := make([]byte, data-off)
		n, err := unix.Pread(fd, p, off) // EBADF if it is open for writing only
		if n > 0 && len(bytes.Trim(p[:n], "\x00")) > 0 {
			return fmt.Sprintf("bytes in a hole from %d to %d", off, data)
		}
		return fmt.Sprint(err == nil || err == unix.EBADF)
	})
}

// lockFile takes or releases a lock, or asks who has one, without waiting.
func (w *twins) lockFile() {
	if w.rnd.IntN(3) == 0 {
		how := []int{unix.LOCK_SH, unix.LOCK_EX, unix.LOCK_UN}[w.rnd.IntN(3)]
		w.onFile(fmt.Sprint("flock ", how), func(fd int) string { return fmt.Sprint(unix.Flock(fd, how|unix.LOCK_NB)) })
		return
	}
	lock := unix.Flock_t{
		Type:  []int16{unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK}[w.rnd.IntN(3)],
		Start: w.rnd.Int64N(5), Len: w.rnd.Int64N(4),
	}
	cmd := []int{unix.F_OFD_SETLK, unix.F_OFD_SETLK, unix.F_SETLK}[w.rnd.IntN(3)]
	ask := w.rnd.IntN(3) == 0
	if ask {
		cmd = []int{unix.F_OFD_GETLK, unix.F_GETLK}[w.rnd.IntN(2)]
	}
	w.onFile(fmt.Sprintf("fcntl %d %+v", cmd, lock), func(fd int) string {
		lock := lock
		err := unix.FcntlFlock(uintptr(fd), cmd, &lock)
		if ask { // which of several locks is named is not settled
			return fmt.Sprint(err, " free: ", lock.Type == unix.F_UNLCK)
		}
		return fmt.Sprint(err)
	})
}

// linkFile gives an open file a name. It may be one that has none.
func (w *twins) linkFile() {
	if len(w.files) == 0 {
		return
	}
	fds, path := w.files[w.rnd.IntN(len(w.files))], w.pathFor(false)
	w.same(fmt.Sprintf("link %v to %s", fds, path), func(root string, which int) string {
		fd := fmt.Sprint("/proc/self/fd/", fds[which])
		return fmt.Sprint(unix.Linkat(unix.AT_FDCWD, fd, unix.AT_FDCWD, join(root, path), unix.AT_SYMLINK_FOLLOW))
	})
}
