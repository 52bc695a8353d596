//go:build linux

package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// What requests cost, beside the time: processor time of both sides, this
// process being both the caller and the server.

func cpuMicros(t testing.TB) float64 {
	t.Helper()
	var u unix.Rusage
	ok(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e3
}

func benchmark(b *testing.B, op func(i int)) {
	b.Helper()
	before := cpuMicros(b)
	for i := 0; b.Loop(); i++ {
		op(i)
	}
	b.ReportMetric((cpuMicros(b)-before)/float64(b.N), "cpu-µs/op")
}

// benchMount mounts a volume on the disk of the system.
func benchMount(b *testing.B) string {
	b.Helper()
	needFUSE(b)
	vol, _ := openVolume(b, vfs.Default, b.TempDir())
	return mountVolume(b, vol, Options{}).Mountpoint()
}

func BenchmarkCachedStat(b *testing.B) {
	dir := benchMount(b)
	path := filepath.Join(dir, "file")
	write(b, path, "x")
	var st unix.Stat_t
	benchmark(b, func(int) { ok(b, unix.Stat(path, &st)) })
}

func BenchmarkCreateClose(b *testing.B) {
	for _, size := range []int{0, 100, 100_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			dir, p := benchMount(b), make([]byte, size)
			benchmark(b, func(i int) {
				if i%1000 == 0 {
					ok(b, os.Mkdir(filepath.Join(dir, fmt.Sprint(i/1000)), 0o755))
				}
				fd := open(b, filepath.Join(dir, fmt.Sprint(i/1000), fmt.Sprint(i)), unix.O_CREAT|unix.O_WRONLY, 0o644)
				if size > 0 {
					p[i%size]++
					_, err := unix.Write(fd, p)
					ok(b, err)
				}
				ok(b, unix.Close(fd))
			})
		})
	}
}

func BenchmarkOpenReadClose(b *testing.B) {
	dir := benchMount(b)
	path := filepath.Join(dir, "file")
	write(b, path, "x")
	p := make([]byte, 100)
	benchmark(b, func(int) {
		fd := open(b, path, unix.O_RDONLY, 0)
		_, err := unix.Pread(fd, p, 0)
		ok(b, err)
		ok(b, unix.Close(fd))
	})
}

func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			dir, p := benchMount(b), make([]byte, size)
			for i := range p {
				p[i] = byte(i * i >> 8)
			}
			fd := open(b, filepath.Join(dir, "file"), unix.O_CREAT|unix.O_WRONLY, 0o644)
			b.SetBytes(int64(size))
			benchmark(b, func(i int) {
				p[i%size]++
				_, err := unix.Write(fd, p)
				ok(b, err)
			})
			ok(b, unix.Close(fd))
		})
	}
}

func BenchmarkColdRead(b *testing.B) {
	dir := benchMount(b)
	path := filepath.Join(dir, "file")
	const size = 64 << 20
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(i * i >> 8)
	}
	fd := open(b, path, unix.O_CREAT|unix.O_RDWR, 0o644)
	for off := range size >> 20 {
		p[off] ^= 0xff
		_, err := unix.Write(fd, p)
		ok(b, err)
	}
	b.SetBytes(size)
	benchmark(b, func(int) {
		ok(b, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
		for off := int64(0); off < size; off += 1 << 20 {
			_, err := unix.Pread(fd, p, off)
			ok(b, err)
		}
	})
	ok(b, unix.Close(fd))
}
