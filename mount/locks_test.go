//go:build linux

package mount

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// Advisory locks between processes, each expectation checked on a mount and on
// the system's disk.

// eachKind runs a test with each kind of lock, on a mount and on disk. take is
// the command for a lock of file x for oneself, takeWaiting the one that waits.
func eachKind(t *testing.T, test func(t *testing.T, dir, take, takeWaiting, free string)) {
	for kind, c := range map[string][3]string{
		"fcntl": {"lock x w 0 0", "lock! x w 0 0", "unlock x 0 0"},
		"ofd":   {"ofd x w 0 0", "ofd! x w 0 0", "ofd x u 0 0"},
		"flock": {"flock x ex", "flock! x ex", "flock x un"},
	} {
		t.Run(kind, func(t *testing.T) {
			onMountAndDisk(t, func(t *testing.T, dir string) { test(t, dir, c[0], c[1], c[2]) })
		})
	}
}

// lockersOf starts n processes that have the file open as x.
func lockersOf(t *testing.T, dir string, n int) []*locker {
	t.Helper()
	list := startLockers(t, dir, n)
	for _, l := range list {
		l.want("open x file rw", "ok")
	}
	return list
}

func TestTwoProcessesExcludeEachOther(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		l := lockersOf(t, dir, 2)
		a, b := l[0], l[1]
		a.want("get x w 0 0", "free")
		a.want("lock x w 10 10", "ok")
		a.want("get x w 0 0", "free") // his own is not in his way
		b.want("lock x r 19 1", "EAGAIN")
		b.want("lock x r 20 0", "ok")
		b.want("lock x w 0 10", "ok")
		b.want("get x r 0 0", fmt.Sprintf("w 10 10 of %d", a.cmd.Process.Pid))
		a.want("get x r 0 0", fmt.Sprintf("w 0 10 of %d", b.cmd.Process.Pid))
		a.want("get x w 11 0", fmt.Sprintf("r 20 0 of %d", b.cmd.Process.Pid))
		a.want("get x r 11 0", "free")
		a.want("unlock x 12 2", "ok")
		b.want("lock x w 12 2", "ok")
		b.want("lock x w 12 3", "EAGAIN")
		a.want("lock x r 10 2", "ok")
		b.want("lock x r 10 2", "ok")
		a.want("lock x w 10 2", "EAGAIN")
		a.want("lock x r 9223372036854775807 1", "ok")
		b.want("lock x w 9223372036854775807 1", "EAGAIN")
	})
}

func TestWaiterGetsTheLock(t *testing.T) {
	eachKind(t, func(t *testing.T, dir, take, takeWaiting, free string) {
		l := lockersOf(t, dir, 3)
		l[0].want(take, "ok")
		l[1].want(take, "EAGAIN")
		l[1].waits(takeWaiting)
		l[2].want(take, "EAGAIN")
		l[2].want("write file text", "ok") // nothing else waits
		l[0].want(free, "ok")
		l[1].wantAnswer("ok")
		l[0].want(take, "EAGAIN")
	})
}

func TestKilledHolderHoldsNothing(t *testing.T) {
	eachKind(t, func(t *testing.T, dir, take, takeWaiting, free string) {
		l := lockersOf(t, dir, 3)
		l[0].want(take, "ok")
		l[1].waits(takeWaiting)
		l[0].kill()
		l[1].wantAnswer("ok")
		l[1].kill()
		l[2].want(takeWaiting, "ok")
	})
}

func TestKilledWaiterWaitsForNothing(t *testing.T) {
	eachKind(t, func(t *testing.T, dir, take, takeWaiting, free string) {
		l := lockersOf(t, dir, 3)
		l[0].want(take, "ok")
		l[1].waits(takeWaiting)
		l[1].kill()
		l[0].want(free, "ok")
		l[2].want(take, "ok")
	})
}

func TestSignalEndsAWait(t *testing.T) {
	eachKind(t, func(t *testing.T, dir, take, takeWaiting, free string) {
		l := lockersOf(t, dir, 3)
		l[0].want(take, "ok")
		l[1].waits(takeWaiting)
		answer := make(chan string, 1)
		go func() { answer <- l[1].answer() }()
		for got := ""; got == ""; { // again, should it not have begun to wait
			ok(t, unix.Tgkill(l[1].cmd.Process.Pid, l[1].tid, unix.SIGUSR1))
			select {
			case got = <-answer:
				if got != "EINTR" {
					t.Fatalf("the wait ended with %s", got)
				}
			case <-time.After(10 * time.Millisecond):
			}
		}
		l[0].want(free, "ok")
		l[2].want(take, "ok")
	})
}

func TestDeadlockIsAnError(t *testing.T) {
	for _, n := range []int{2, 3} {
		t.Run(fmt.Sprint(n, " processes"), func(t *testing.T) {
			onMountAndDisk(t, func(t *testing.T, dir string) {
				l := startLockers(t, dir, n)
				for i := range l {
					l[i].want(fmt.Sprintf("open own file%d rw", i), "ok")
					l[i].want(fmt.Sprintf("open next file%d rw", (i+1)%n), "ok")
					l[i].want("lock own w 0 1", "ok")
				}
				for i := range n - 1 {
					l[i].waits("lock! next w 0 1")
				}
				l[n-1].want("lock! next w 0 1", "EDEADLK")
				for i := n - 1; i > 0; i-- {
					l[i].want("unlock own 0 1", "ok")
					l[i-1].wantAnswer("ok")
				}
			})
		})
	}
}

func TestClosingAnyDescriptorEndsTheProcessesLocks(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		l := lockersOf(t, dir, 2)
		a, b := l[0], l[1]
		for _, open := range []string{"open y file rw", "open y file r", "dup x y"} {
			a.want(open, "ok")
			a.want("lock x w 0 0", "ok")
			b.want("lock x w 0 0", "EAGAIN")
			b.want("open z file r", "ok")
			b.want("close z", "ok") // the process of b has none
			b.want("lock x w 0 0", "EAGAIN")
			a.want("close y", "ok")
			b.want("lock x w 0 0", "ok")
			b.want("unlock x 0 0", "ok")
		}
	})
}

func TestChildHasNoneOfTheLocksOfFcntl(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		l := lockersOf(t, dir, 2)
		l[0].want("fork x", "ok")
		l[0].want("lock x w 0 0", "ok")
		l[0].want("unfork", "ok") // the child closes x
		l[1].want("lock x w 0 0", "EAGAIN")
		l[0].want("fork x", "ok")
		l[0].want("lock x w 0 0", "ok")
		l[0].want("close x", "ok") // the child has not
		l[1].want("lock x w 0 0", "ok")
		l[0].want("unfork", "ok")
	})
}

func TestFlockAndOFDLocksAreOfTheOpenFile(t *testing.T) {
	for kind, c := range map[string][3]string{
		"flock": {"flock x ex", "flock y ex", "flock! x ex"},
		"ofd":   {"ofd x w 0 0", "ofd y w 0 0", "ofd! x w 0 0"},
	} {
		t.Run(kind, func(t *testing.T) {
			onMountAndDisk(t, func(t *testing.T, dir string) {
				l := lockersOf(t, dir, 2)
				a, b := l[0], l[1]
				a.want(c[0], "ok")
				a.want("open y file rw", "ok")
				a.want(c[1], "EAGAIN") // another open file of the same process
				a.want("close y", "ok")
				b.want(c[0], "EAGAIN")
				a.want("dup x y", "ok")
				a.want("close x", "ok")
				b.want(c[0], "EAGAIN")
				a.want(c[1], "ok") // the duplicate is the same open file
				a.want("fork y", "ok")
				a.want("close y", "ok")
				b.want(c[0], "EAGAIN")
				b.waits(c[2])
				a.want("unfork", "ok")
				b.wantAnswer("ok")
			})
		})
	}
}

// On a mount it takes as long as the news that a file is closed, so those who do
// not wait are left to TestLockThatIsAboutToGoIsWaitedFor of package volume, which
// has a clock of its own.
func TestClosingAFileFreesWhatItLocked(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		l := lockersOf(t, dir, 2)
		for range 30 {
			for _, lock := range []string{"flock! x ex", "ofd! x w 0 0", "lock x w 0 0"} {
				l[0].want(lock, "ok")
				l[0].want("close x", "ok")
				l[1].want(lock, "ok")
				l[1].want("close x", "ok")
				l[0].want("open x file rw", "ok")
				l[1].want("open x file rw", "ok")
			}
		}
	})
}

func TestFlockIsConverted(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		l := lockersOf(t, dir, 2)
		a, b := l[0], l[1]
		a.want("flock x ex", "ok")
		b.waits("flock! x sh")
		a.want("flock x sh", "ok")
		b.wantAnswer("ok")
		a.want("flock x ex", "EAGAIN") // and loses what it had
		b.want("flock x ex", "ok")
		a.want("flock x sh", "EAGAIN")
		b.want("flock x sh", "ok")
		a.want("flock x sh", "ok")
		a.waits("flock! x ex") // no deadlock, as it has none while it waits
		b.want("flock! x ex", "ok")
		b.want("flock x un", "ok")
		a.wantAnswer("ok")
	})
}

func TestKindsOfLocksThatConflict(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		l := lockersOf(t, dir, 2)
		a, b := l[0], l[1]
		a.want("flock x ex", "ok")
		b.want("lock x w 0 0", "ok")
		a.want("lock x r 5 1", "EAGAIN")
		a.want("ofd x r 5 1", "EAGAIN")
		a.want("ofdget x r 5 1", "w 0 0")
		b.want("ofdget x r 5 1", "w 0 0") // also to the process itself
		b.want("unlock x 0 0", "ok")
		a.want("ofd x w 0 10", "ok")
		a.want("lock x w 0 10", "EAGAIN") // the process is not the open file
		b.want("lock x r 5 1", "EAGAIN")
	})
}

func TestLockSurvivesTheName(t *testing.T) {
	eachKind(t, func(t *testing.T, dir, take, takeWaiting, free string) {
		l := lockersOf(t, dir, 3)
		l[0].want(take, "ok")
		l[2].want("rename file new", "ok")
		l[1].want("close x", "ok")
		l[1].want("open x new rw", "ok")
		l[1].want(take, "EAGAIN")
		l[2].want("open y file rw", "ok") // another file of the old name
		l[2].want("unlink new", "ok")
		l[1].want(take, "EAGAIN")
		l[2].want("close x", "ok")
		l[2].want("open x file rw", "ok")
		l[2].want(take, "ok")
		l[1].waits(takeWaiting)
		l[0].want("close x", "ok")
		l[1].wantAnswer("ok")
	})
}

func TestReadOnlyDescriptorTakesReadLocks(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		l := lockersOf(t, dir, 2)
		a, b := l[0], l[1]
		a.want("open ro file r", "ok")
		for _, kind := range []string{"lock", "ofd"} {
			a.want(kind+" ro w 0 0", "EBADF")
			a.want(kind+" ro r 0 0", "ok")
			b.want("lock x w 0 0", "EAGAIN")
			b.want("lock x r 0 0", "ok")
			b.want("unlock x 0 0", "ok")
			a.want(kind+" ro u 0 0", "ok")
			b.want("lock x w 0 0", "ok")
			b.want("unlock x 0 0", "ok")
		}
		a.want("flock ro ex", "ok")
		b.want("flock x sh", "EAGAIN")
		a.want("lock ro r 0 0", "ok")
		a.want("close ro", "ok")
		b.want("lock x w 0 0", "ok")
		b.want("flock! x sh", "ok")
	})
}

func TestCutConnectionEndsWaitsAndLocks(t *testing.T) {
	needRoot(t)
	needFUSE(t)
	vol, _ := openVolume(t, vfs.NewMem(), "node")
	s := mountVolume(t, vol, Options{})
	l := lockersOf(t, s.Mountpoint(), 3)
	l[0].want("lock x w 0 0", "ok")
	l[0].want("flock x ex", "ok")
	l[1].waits("lock! x w 0 0")
	l[2].waits("flock! x ex")
	wantErr(t, unix.Unmount(s.Mountpoint(), unix.MNT_FORCE), unix.EBUSY) // it cuts the connection nevertheless
	s.Wait()
	l[1].wantAnswer("ECONNABORTED")
	l[2].wantAnswer("ECONNABORTED")
	for _, l := range l {
		l.kill()
	}
	ok(t, Unmount(s.Mountpoint(), false))
	again := mountVolume(t, vol, Options{Mountpoint: filepath.Clean(s.Mountpoint())})
	d := lockersOf(t, again.Mountpoint(), 1)[0]
	d.want("lock x w 0 0", "ok")
	d.want("flock x ex", "ok")
}
