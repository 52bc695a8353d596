//go:build linux

package posix

import (
	"math"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The rules are tested on the system's own file systems, which keep them.

func TestMain(m *testing.M) {
	Child()
	os.Exit(m.Run())
}

// known returns the traits of file systems that others are compared with.
func known(st unix.Statfs_t) (traits Traits, name string) {
	traits = Traits{Devices: true, HoleSize: 4096, Reserves: true, BirthTime: true, Whiteouts: true}
	traits.AccessTimes = st.Flags&unix.ST_NOATIME == 0
	switch int64(st.Type) {
	case unix.EXT4_SUPER_MAGIC:
		traits.MaxFileSize, traits.MaxLinks = (1<<32-1)*4096, 65000
		traits.MinTime, traits.MaxTime = math.MinInt32, 1<<34-1<<31-1
		traits.ZeroRange, traits.MovesRanges = true, true
		traits.XattrSpace = 3500
		return traits, "ext4"
	case unix.TMPFS_MAGIC:
		traits.MaxFileSize = math.MaxInt64
		traits.MinTime, traits.MaxTime = math.MinInt64, math.MaxInt64
		traits.XattrSpace = 1<<16 + 1000
		traits.MappedTails = true
		return traits, "tmpfs"
	}
	return traits, ""
}

func TestLocalFileSystems(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CAIRN_REQUIRE_FUSE") == "1" {
			t.Fatal("CAIRN_REQUIRE_FUSE=1, but this test needs root")
		}
		t.Skip("this test needs root (CAIRN_REQUIRE_FUSE=1 makes that a failure)")
	}
	tested := make(map[string]bool)
	for _, parent := range []string{os.TempDir(), "/var/tmp", "/dev/shm"} {
		var st unix.Statfs_t
		if err := unix.Statfs(parent, &st); err != nil {
			continue
		}
		traits, name := known(st)
		if name == "" || tested[name] {
			continue
		}
		tested[name] = true
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp(parent, "posix-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Remove(dir) })
			Run(t, dir, traits)
			left, err := os.ReadDir(dir)
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
	if len(tested) == 0 {
		t.Error("neither the temporary directory nor /dev/shm is on a file system whose traits are known")
	}
}
