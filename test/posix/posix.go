//go:build linux

package posix

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Traits are the properties in which file systems legitimately differ. Every
// field changes what a rule expects; none leaves a rule out silently.
type Traits struct {
	// MaxFileSize is the largest size of a file, in bytes.
	MaxFileSize int64
	// MaxLinks is how many names a file can have. Zero says that the limit
	// is too far away to be tried.
	MaxLinks int
	// MinTime and MaxTime are the first and the last second since 1970 that
	// a timestamp can hold. Others become the nearest that can be held.
	MinTime, MaxTime int64
	// Devices says that root can make device nodes. Otherwise it is EPERM.
	Devices bool
	// HoleSize is the size and alignment, in bytes, from which on SEEK_HOLE
	// must report a hole. Smaller ones may count as data.
	HoleSize int64
	// HoleEdge is how many bytes of a hole, at most, SEEK_HOLE and SEEK_DATA may
	// take for data where it begins and where it ends.
	HoleEdge int64
	// Reserves says that fallocate raises st_blocks at once.
	Reserves bool
	// ZeroRange says that fallocate knows FALLOC_FL_ZERO_RANGE. Otherwise it
	// is EOPNOTSUPP.
	ZeroRange bool
	// MovesRanges says that fallocate knows FALLOC_FL_COLLAPSE_RANGE and
	// FALLOC_FL_INSERT_RANGE. Otherwise they are EOPNOTSUPP.
	MovesRanges bool
	// AccessTimes says that reading sets atime as a mount with relatime does:
	// if it is not later than mtime and ctime. Otherwise reading never does.
	AccessTimes bool
	// BirthTime says that statx tells when a file was made.
	BirthTime bool
	// XattrSpace is how many bytes of extended attributes a file can have at
	// least. A value larger than that may be ENOSPC, up to the 64 KiB of the
	// kernel.
	XattrSpace int
	// MappedTails says that what a mapping stores beyond the end of the file
	// shows when the file grows, even after msync, because pages are nowhere
	// but in memory (mmap(2), BUGS).
	MappedTails bool
	// Whiteouts says that renameat2 knows RENAME_WHITEOUT. Otherwise it is
	// EINVAL.
	Whiteouts bool
}

// group is the rules about one operation.
type group struct {
	name     string
	sections []func(*rules)
}

// groups returns all rules there are.
func groups() []group {
	return []group{
		{"open", []func(*rules){openCreates, openExclusively, openTruncates, openAppends, openKinds, openPath, openFIFO, openTemporary, openTemporaryNames}},
		{"mknod", []func(*rules){mknodMakes, mknodRefuses, mknodSockets}},
		{"mkdir", []func(*rules){mkdirMakes, mkdirRefuses}},
		{"link", []func(*rules){linkNames, linkRefuses}},
		{"unlink", []func(*rules){unlinkRemoves, unlinkRefuses, unlinkOpenFiles}},
		{"rmdir", []func(*rules){rmdirRemoves, rmdirRefuses, rmdirOpenDirectories}},
		{"rename", []func(*rules){renameMoves, renameReplaces, renameRefuses, renameFlags, renameDirectories}},
		{"symlink", []func(*rules){symlinkMakes, symlinkRefuses, symlinkFollows}},
		{"path", []func(*rules){pathNames, pathLengths, pathSlashes, pathDirectories, pathHandles}},
		{"mounts", []func(*rules){mountPoints, readOnlyMounts}},
		{"permissions", []func(*rules){permissionFiles, permissionDirectories, permissionAccess, permissionChmod, permissionChown, permissionSetIDs, permissionSetgidDirectories, permissionSticky, permissionUmask}},
		{"times", []func(*rules){timesSet, timesWho, timesRange, timesOfFiles, timesOfDirectories, timesUntouched, timesOfAccess}},
		{"attributes", []func(*rules){attrInode, attrLinks, attrBlocks, attrStatx}},
		{"truncate", []func(*rules){truncateSizes, truncateRefuses, truncateTimes}},
		{"read and write", []func(*rules){rwOffsets, rwEnds, rwAppend, rwVectors, rwFlags, rwSparse, rwLimits, rwRefuses}},
		{"copy", []func(*rules){copyRanges, copyOffsets, copyShort, copyRefuses, copySendfile, copySplice}},
		{"fallocate", []func(*rules){fallocateGrows, fallocatePunches, fallocateZeroes, fallocateMoves, fallocateRefuses}},
		{"seek", []func(*rules){seekOffsets, seekData, seekHoles, seekPunched}},
		{"lock", []func(*rules){lockRanges, lockFiles}},
		{"mmap", []func(*rules){mmapShared, mmapPrivate, mmapEnds, mmapRefuses}},
		{"directories", []func(*rules){dirEntries, dirPositions, dirMany, dirChanging}},
		{"xattr", []func(*rules){xattrValues, xattrFlags, xattrRefuses, xattrNamespaces}},
		{"fsync", []func(*rules){fsyncDescriptors, fsyncWrites}},
		{"statfs", []func(*rules){statfsFigures}},
		{"exec", []func(*rules){execRuns, execBusy, execRefuses}},
		{"inotify", []func(*rules){inotifyEvents, inotifyMoves}},
		{"races", []func(*rules){raceCreation, raceRenames, raceAppends}},
	}
}

// Run checks every rule in dir, each in a directory of its own below it, and
// leaves nothing there. The test binary must call Child from its TestMain.
func Run(t *testing.T, dir string, traits Traits) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("posix.Run needs root: it changes users and mounts")
	}
	for _, g := range groups() {
		t.Run(g.name, func(t *testing.T) {
			r := &rules{run: func(name string, here bool, fn func(*check)) {
				t.Run(name, func(t *testing.T) {
					c := newCheck(t, dir, traits)
					if here {
						fn(c)
					} else {
						c.inChild(g.name, name)
					}
				})
			}}
			for _, section := range g.sections {
				section(r)
			}
		})
	}
}

// rules takes the rules of a group one after the other. run says whether a rule
// is checked here, in this process.
type rules struct {
	run func(name string, here bool, fn func(*check))
}

// rule states a rule: fn fails c if it does not hold.
func (r *rules) rule(name string, fn func(c *check)) { r.run(name, true, fn) }

// ruleApart states a rule that is checked by a process of its own. This is for
// rules that map files, start programs from the directory or set limits: the
// process of the test may be the one that serves the directory, and the kernel
// would let it wait for itself.
func (r *rules) ruleApart(name string, fn func(c *check)) { r.run(name, false, fn) }

// newCheck makes the directory of a rule, in which every user may write, and
// removes it when t ends.
func newCheck(t testing.TB, dir string, traits Traits) *check {
	t.Helper()
	c := &check{TB: t, traits: traits}
	var err error
	c.dir, err = os.MkdirTemp(dir, "rule-")
	c.ok(err)
	t.Cleanup(func() { c.ok(os.RemoveAll(c.dir)) })
	c.ok(unix.Chmod(c.dir, 0o777))
	return c
}
