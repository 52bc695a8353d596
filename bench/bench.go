// Package bench measures the machine and this program on it: first what the
// machine can do at best, each limit by a measurement of its own, then the
// program's paths, each as a part of the limit that it has to pass through, and
// last what programs do with files, in our mount and in other places.
//
// # What is measured
//
// Content is incompressible and new to the store unless said otherwise. GB are
// 10^9 bytes. "By a client" means by another process, as applications are.
//
//	limit.memcpy       copy between two buffers of 16 MiB
//	limit.blake3       hash pieces of 64 KiB that are in the cache
//	limit.disk-write   write a fresh file beside the store, and fdatasync it
//	limit.fuse-write   by a client: write and fsync a file of a mount that keeps no bytes
//	limit.fuse-read    by a client: read a file of it that the kernel has not cached
//	limit.fuse-create  by a client: create and close empty files in it
//	chunk              read a file from the kernel's cache, cut it, hash the chunks
//	add-new            what "cairn add" does with a file, until it is durable
//	add-duplicate      the same with a file that the store has
//	get                what "cairn get" does, into a file, verifying every block
//	mount-write        by a client: write and fsync a file of the mount
//	mount-read-cold    by a client: read it when the kernel has not cached it
//	mount-read-warm    by a client: read it when the kernel has
//	mount-random-read  by a client: read 4 KiB at a time, here and there, not cached
//	mount-create       by a client: create and close empty files
//	mount-stat         by a client: attributes of files that the kernel has cached
//
// The same work is done by a client in several places, which are named before the
// dot:
//
//	native.X    a directory of the disk
//	loopback.X  a mount that shows one by go-fuse's loopback file system, with the
//	            defaults of that library: names and attributes stay in the kernel
//	            for a second, and, for root, the kernel itself reads and writes
//	            the files below (passthrough)
//	floor.X     a mount with the options of ours that keeps names and sizes in
//	            memory and drops what is written: what FUSE alone costs
//	mount.X     our mount
//
// and the work after it:
//
//	untar         tar -x of a source tree, as it is in the tree's tar file, which
//	              is cached; operations are entries, here and below
//	create        create and close empty files
//	find-cold     attributes of every entry of the tree, directory by directory,
//	              just after the place was mounted anew
//	find-warm     the same again
//	read-tree     read every file of the tree, not cached
//	rm            remove the tree, entry by entry, just after find
//	append-fsync  append 4 KiB to a file, and fsync it; p50us is the median
//	create-fsync  create a file, write 4 KiB, fsync and close it; p50us is the median
//	seq-write     write a file in pieces of 1 MiB, and fsync it
//	seq-read      read it, not cached
//	rand-read     read 4 KiB at a time of it, here and there, not cached
//	rand-write    write 4 KiB at a time to it, here and there, and fsync it
//
// The tree is made up but always the same, of up to 8192 entries and 70 MB, with
// sizes and directories as those of the Go toolchain have, of which it has half
// as many; its content is text and new each time. The file is of 2 * Size, at most
// 2 GiB. If there is no program tar, the client extracts the tree itself, and the
// result says so.
//
// Not cached means by the kernel: the place is mounted anew, and the pages of the
// files of the disk that hold its bytes are dropped, for our mount those of the
// whole store. Names and attributes of files of the disk cannot be dropped
// without dropping those of the whole machine: native.find-cold is a warm one, and
// the other places find theirs in the cache of the disk too. What this process has
// in memory stays.
//
// With Options.Cluster several nodes are measured instead; see cluster.go.
//
// # How
//
// seconds is wall time. Throughput is bytes / seconds. cpuSeconds is user and
// system time of this process, of the client and of what that runs. peakRSS is of
// this process, which does the node's work: the kernel's high-water mark, reset
// for each measurement after a garbage collection.
//
// ratio compares with a limit so that 1 is perfect and more is better: our
// throughput divided by the limit's, or, where operations are counted, the
// limit's time for one divided by ours. Where a path has to pass through several
// limits, the slowest of them counts and is named. A limit that was not measured
// in the same run is not compared with. Hashing is measured on one core, and may
// be exceeded where a path uses several.
//
// ratios of mount.X compare in the same way with that work in each other place,
// by the median if there is one. Places take turns, so that a machine that
// becomes faster or slower does so for all of them, and what was written before is
// on the disk before the next begins.
//
// Machines are shared and noisy, so what does not take long is repeated, up to
// three times, and the fastest time (or median) counts. Across machines, CPU-seconds per GB
// say more than throughput.
//
// # The client
//
// A process that makes system calls on a mount that it serves itself competes
// with itself for the runtime's threads, and at worst deadlocks: a page fault or
// a call that the runtime takes for a short one occupies the last thread that
// could answer. So all calls on mounts are made by a child process, which is this
// program again, started with ClientArg as its only argument. The program must
// then call ServeClient and nothing else.
package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"path"
	"slices"
	"time"
)

// DefaultSize is how much the throughput measurements move, in bytes.
const DefaultSize = 1 << 30

// minSize makes even the counts of operations that follow from it usable.
const minSize = 1 << 20

// Options say what to measure. Dir and Out are required.
type Options struct {
	// Dir is a directory on the file system to measure. All files are in a
	// new directory in it, which is removed. They take up to 18 * Size.
	Dir string
	// Size is how many bytes throughput is measured with, and the number of
	// operations follows from it; default DefaultSize, at least 1 MiB.
	Size int64
	// Cluster, unless it is 0, has a cluster of so many nodes measured instead
	// (cluster.go), 2 to MaxCluster. Size is then DefaultClusterSize by default.
	Cluster int
	// Only are names of measurements, or patterns in the syntax of path.Match.
	// If empty, everything is measured.
	Only []string
	// JSON writes one JSON object a line instead of a table.
	JSON bool
	// Out gets each figure as soon as it is there.
	Out io.Writer
	// Client is the command that runs ServeClient; default this program with
	// ClientArg.
	Client []string
	// Program is the file of the program that runs as a node of a cluster; default
	// this one.
	Program string
	// Logger gets what the node under measurement logs; default nowhere.
	Logger *slog.Logger
}

func (o *Options) setDefaults() {
	size := int64(DefaultSize)
	if o.Cluster > 0 {
		size = DefaultClusterSize
	}
	o.Size = max(cmp.Or(o.Size, size), minSize)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// ErrUnknownName says that Options.Only has a pattern that matches no measurement.
var ErrUnknownName = errors.New("no such measurement")

// ErrClusterSize says that Options.Cluster is out of range.
var ErrClusterSize = errors.New("a cluster has 2 to 16 nodes")

// measurement is one line of the report.
type measurement struct {
	name string
	// limits are the measurements of the machine that bound this one.
	limits []string
	// peers are the measurements of the same work in other places.
	peers []string
	// turns is what measurements in a row have in common that take turns; empty
	// if this one does not.
	turns string
	// repeats is how often it runs, if that does not take longer than
	// repeatTime.
	repeats int
	run     func(context.Context, *rig) (sample, error)
}

// repeatTime is for how long a measurement is begun a third time. Those that take
// turns have it together.
const repeatTime = 4 * time.Second

// all returns every measurement, in the order in which they run.
func all() []measurement {
	return slices.Concat(limits(), paths(), comparisons())
}

// Names returns the names of all measurements in the order in which they run.
func Names() []string { return namesOf(all()) }

func namesOf(ms []measurement) []string {
	var names []string
	for _, m := range ms {
		names = append(names, m.name)
	}
	return names
}

// Run measures and reports. One measurement that fails does not stop the others:
// the error that Run returns at the end joins all of theirs, with their names.
// It returns early if Options.Only is wrong (ErrUnknownName) or Options.Cluster is
// (ErrClusterSize), if there is no space, and when ctx ends. It takes some minutes with DefaultSize.
func Run(ctx context.Context, o Options) (err error) {
	o.setDefaults()
	ms := all()
	if o.Cluster != 0 {
		if o.Cluster < 2 || o.Cluster > MaxCluster {
			return fmt.Errorf("%w, not %d", ErrClusterSize, o.Cluster)
		}
		ms = clusterPaths(o.Cluster)
	}
	chosen, err := choose(ms, o.Only)
	if err != nil {
		return err
	}
	r, err := newRig(o)
	if err != nil {
		return fmt.Errorf("bench in %s: %w", o.Dir, err)
	}
	defer func() { err = errors.Join(err, r.close()) }()

	rep := newReporter(o.Out, o.JSON)
	known := make(map[string]Result)
	var failed []error
	for turn := range turns(chosen) {
		samples, errs := best(ctx, r, turn)
		if err := ctx.Err(); err != nil {
			return err
		}
		for i, m := range turn {
			if errs[i] != nil {
				failed = append(failed, fmt.Errorf("%s: %w", m.name, errs[i]))
				continue
			}
			result := samples[i].result(m.name)
			result.compare(&m, known)
			known[m.name] = result
			if err := rep.write(result); err != nil {
				return err
			}
		}
	}
	return errors.Join(failed...)
}

// turns yields the measurements that take turns with one another, in order.
func turns(ms []measurement) iter.Seq[[]measurement] {
	return func(yield func([]measurement) bool) {
		for len(ms) > 0 {
			n := 1
			for n < len(ms) && ms[0].turns != "" && ms[n].turns == ms[0].turns {
				n++
			}
			if !yield(ms[:n]) {
				return
			}
			ms = ms[n:]
		}
	}
}

// choose returns those of ms that a pattern matches, all if there are none.
func choose(ms []measurement, patterns []string) ([]measurement, error) {
	if len(patterns) == 0 {
		return ms, nil
	}
	var chosen []measurement
	used := make([]bool, len(patterns))
	for _, m := range ms {
		hit := false
		for i, p := range patterns {
			if ok, err := path.Match(p, m.name); err != nil {
				return nil, fmt.Errorf("%w: %q: %v", ErrUnknownName, p, err)
			} else if ok {
				used[i], hit = true, true
			}
		}
		if hit {
			chosen = append(chosen, m)
		}
	}
	if i := slices.Index(used, false); i >= 0 {
		return nil, fmt.Errorf("%w: %q", ErrUnknownName, patterns[i])
	}
	return chosen, nil
}

// best runs ms in turns, each at least twice, if at all more than once, and again
// while there is time. It returns the fastest run of each, or its error, after
// which the others go on. On a virtual machine whose host takes back idle memory
// the first run may pay for getting it again, several times what it measures.
func best(ctx context.Context, r *rig, ms []measurement) ([]sample, []error) {
	samples, errs := make([]sample, len(ms)), make([]error, len(ms))
	start := time.Now()
	for i := range ms[0].repeats {
		for j, m := range ms {
			if errs[j] != nil {
				continue
			}
			var s sample
			if s, errs[j] = m.run(ctx, r); errs[j] == nil && (i == 0 || s.each() < samples[j].each()) {
				samples[j] = s
			}
		}
		if i > 0 && time.Since(start) > repeatTime {
			break
		}
	}
	return samples, errs
}
