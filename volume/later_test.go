package volume

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/namespace"
)

func TestAFileThatIsCopiedIsTwoCommands(t *testing.T) {
	for _, size := range []int{100, 100 << 10, 3 << 20} {
		fs := vfs.NewCrashableMem()
		r := openRig(t, fs, 0)
		before := r.state.Applied()
		h := r.create("file")
		r.write(h, pattern(size, 1), 0)
		for _, s := range []SetAttr{
			{Valid: SetUID | SetGID, UID: 5, GID: 6, KillPriv: true},
			{Valid: SetMode, Mode: 0o4711},
			{Valid: SetAtime | SetMtime, Atime: 7, Mtime: 8},
		} {
			_, err := r.SetAttr(t.Context(), h.Ino(), s)
			r.must(err)
		}
		r.must(h.Flush(t.Context()))
		if n := r.state.Applied() - before; n != 2 {
			t.Errorf("a file of %d bytes took %d commands", size, n)
		}
		r.must(r.Sync(t.Context()))
		r, _ = r.powerLoss(fs)
		a, err := r.GetAttr(t.Context(), h.Ino())
		r.must(err)
		if a.Mode != syscall.S_IFREG|0o4711 || a.UID != 5 || a.GID != 6 || a.Atime != 7 || a.Mtime != 8 || a.Size != int64(size) {
			t.Errorf("a file of %d bytes came back as %+v", size, a)
		}
		r.expect(h.Ino(), pattern(size, 1))
		r.close()
	}
}

// TestAttributesAreWhatWasSetLast sets attributes of a file between writes, syncs
// and closes, and compares after each step: what was set shows at once and stays,
// and ctime moves only when something changes.
func TestAttributesAreWhatWasSetLast(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 0))
			fs := vfs.NewCrashableMem()
			r := openRig(t, fs, 0)
			clock := int64(1e18)
			r.Volume.now = func() int64 { clock += 1000; return clock }
			h := r.create("file")
			want, err := r.GetAttr(t.Context(), h.Ino())
			r.must(err)
			set := func(s SetAttr) {
				_, err := r.SetAttr(t.Context(), h.Ino(), s)
				r.must(err)
			}
			wroteAt := int64(0) // 0: the mtime is want.Mtime
			for step := range 120 {
				start, changes := clock, true
				what := rnd.IntN(12)
				switch what {
				case 0, 1, 2:
					r.write(h, pattern(1+rnd.IntN(9000), byte(step)), rnd.Int64N(9000))
					wroteAt = start
				case 3:
					set(SetAttr{Valid: SetSize, Size: rnd.Int64N(9000)})
					wroteAt = start
				case 4:
					want.Mode = syscall.S_IFREG | rnd.Uint32N(0o10000)
					set(SetAttr{Valid: SetMode, Mode: want.Mode & 0o7777})
				case 5:
					want.UID, want.GID = rnd.Uint32N(9), rnd.Uint32N(9)
					want.Mode = namespace.KillPriv(want.Mode)
					set(SetAttr{Valid: SetUID | SetGID, UID: want.UID, GID: want.GID, KillPriv: true})
				case 6:
					want.Atime, want.Mtime, wroteAt = rnd.Int64N(2e18), rnd.Int64N(2e18), 0
					set(SetAttr{Valid: SetAtime | SetMtime, Atime: want.Atime, Mtime: want.Mtime})
				case 7:
					changes = want.Mode&0o7000 != 0 && namespace.KillPriv(want.Mode) != want.Mode
					want.Mode = namespace.KillPriv(want.Mode)
					r.must(r.KillPriv(t.Context(), h.Ino()))
				case 8:
					r.must(h.Flush(t.Context()))
					changes = false
				case 9:
					r.must(h.Fsync(t.Context(), false))
					changes = false
				case 10:
					if rnd.IntN(2) == 0 {
						r.must(r.SetXattr(t.Context(), h.Ino(), "user.a", []byte("b"), 0, false))
					} else {
						changes = false
					}
				case 11:
					if rnd.IntN(4) == 0 {
						r.must(h.Fsync(t.Context(), false))
						ino := h.Ino()
						r, fs = r.powerLoss(fs)
						r.Volume.now = func() int64 { clock += 1000; return clock }
						h, err = r.Open(t.Context(), ino, syscall.O_RDWR)
						r.must(err)
					}
					changes = false
				}
				got, err := r.GetAttr(t.Context(), h.Ino())
				r.must(err)
				if got.Mode != want.Mode || got.UID != want.UID || got.GID != want.GID || got.Atime != want.Atime {
					t.Fatalf("step %d, %d: %+v, want %+v", step, what, got, want)
				}
				if wroteAt == 0 && got.Mtime != want.Mtime || wroteAt > 0 && (got.Mtime < wroteAt || got.Mtime > clock) {
					t.Fatalf("step %d, %d: mtime %d, want %d or from %d on", step, what, got.Mtime, want.Mtime, wroteAt)
				}
				if changed := got.Ctime != want.Ctime; changed != changes || got.Ctime < want.Ctime {
					t.Fatalf("step %d, %d: ctime %d after %d", step, what, got.Ctime, want.Ctime)
				}
				want.Ctime = got.Ctime
				if wroteAt > 0 {
					want.Mtime = got.Mtime
				}
			}
			h.Release()
			r.close()
		})
	}
}

func TestAttributesSetDuringATruncateAreNamed(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	h := r.create("file")
	r.write(h, []byte("content"), 0)
	_, err := r.SetAttr(t.Context(), h.Ino(), SetAttr{Valid: SetMode, Mode: 0o600})
	r.must(err)
	h.f.mu.Lock()
	h.f.cut(0)
	h.f.mu.Unlock()
	r.must(h.Flush(t.Context()))
	h.Release()
	r.expectNothingHeld()
	if n, err := r.state.Inode(h.Ino()); err != nil || n.Mode != syscall.S_IFREG|0o600 {
		t.Errorf("mode %#o, %v", n.Mode, err)
	}
	r.close()
}

// Who writes takes setuid away from the mode that was set last, also at the moment
// at which that is being named.
func TestPrivilegesAreTakenFromTheModeThatIsBeingNamed(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	h := r.create("file")
	r.write(h, []byte("content"), 0)
	_, err := r.SetAttr(t.Context(), h.Ino(), SetAttr{Valid: SetMode, Mode: 0o4711})
	r.must(err)
	killed := make(chan error)
	h.f.mu.Lock()
	go func() { killed <- r.setAttr(t.Context(), h.Ino(), SetAttr{KillPriv: true}) }()
	for range 1000 {
		runtime.Gosched()
	}
	_, err = r.propose(t.Context(), &namespace.SetAttr{Ino: h.Ino(), Mask: namespace.AttrMode, Mode: 0o4711})
	h.f.later = later{n: h.f.later.n}
	h.f.mu.Unlock()
	r.must(err)
	r.must(<-killed)
	r.must(h.Flush(t.Context()))
	h.Release()
	if a, err := r.GetAttr(t.Context(), h.Ino()); err != nil || a.Mode != syscall.S_IFREG|0o711 {
		t.Errorf("mode %#o, %v", a.Mode, err)
	}
	r.close()
}

// What is written to a file that was closed to others must not come back open to
// them.
func TestAModeIsNamedBeforeWhatIsWrittenAfterItIsSpilled(t *testing.T) {
	fs := vfs.NewCrashableMem()
	r := openRig(t, fs, 0)
	h := r.create("file")
	r.write(h, []byte("public"), 0)
	_, err := r.SetAttr(t.Context(), h.Ino(), SetAttr{Valid: SetMode, Mode: 0o600})
	r.must(err)
	r.write(h, []byte("secret"), 0)
	r.mem.Add(memoryMax)
	r.write(h, []byte("more"), 10)
	r.mem.Add(-memoryMax)
	r.must(r.journal.Sync(t.Context()))
	r, _ = r.powerLoss(fs)
	r.expect(h.Ino(), []byte("secret"))
	if a, err := r.GetAttr(t.Context(), h.Ino()); err != nil || a.Mode != syscall.S_IFREG|0o600 {
		t.Errorf("mode %#o, %v", a.Mode, err)
	}
	r.close()
}

// What cannot be stored when the volume is closed comes back with the mode that it had.
func TestAModeIsNamedBeforeACloseOnAFullDiskKeepsWhatWasWritten(t *testing.T) {
	fs := vfs.NewCrashableMem()
	r := openRig(t, fs, 0)
	h := r.create("file")
	ino, want := h.Ino(), pattern(20<<10, 1)
	r.write(h, want, 0)
	_, err := r.SetAttr(t.Context(), ino, SetAttr{Valid: SetMode, Mode: 0o600})
	r.must(err)
	r.full.on.Store(true)
	h.Release()
	r = r.closeFull(fs)
	r.expect(ino, want)
	if a, err := r.GetAttr(t.Context(), ino); err != nil || a.Mode != syscall.S_IFREG|0o600 {
		t.Errorf("mode %#o, %v", a.Mode, err)
	}
	r.close()
}

// A name that a file gets after its mode was set is not found without that.
func TestAModeIsNamedBeforeTheNextNameOfTheFile(t *testing.T) {
	const root = namespace.RootIno
	for what, give := range map[string]func(*rig, *Handle) error{
		"rename": func(r *rig, _ *Handle) error { return r.Rename(t.Context(), root, "file", root, "new", 0) },
		"exchange": func(r *rig, _ *Handle) error {
			r.create("new").Release()
			return r.Rename(t.Context(), root, "new", root, "file", RenameExchange)
		},
		"link": func(r *rig, h *Handle) error { _, err := r.Link(t.Context(), h.Ino(), root, "new"); return err },
	} {
		fs := vfs.NewCrashableMem()
		r := openRig(t, fs, 0)
		h := r.create("file")
		r.write(h, pattern(20<<10, 1), 0)
		r.must(h.Fsync(t.Context(), false)) // by the journal
		_, err := r.SetAttr(t.Context(), h.Ino(), SetAttr{Valid: SetMode, Mode: 0o600})
		r.must(err)
		r.must(give(r, h))
		r.must(r.SyncDir(t.Context(), root))
		r, _ = r.powerLoss(fs)
		a, err := r.Lookup(t.Context(), root, "new")
		r.must(err)
		if a.Mode != syscall.S_IFREG|0o600 {
			t.Errorf("after %s: mode %#o", what, a.Mode)
		}
		r.expect(a.Ino, pattern(20<<10, 1))
		r.close()
	}
}
