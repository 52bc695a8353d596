package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/chunker"
)

const testSize = 4 << 20

func TestEveryMeasurementYieldsOneLine(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	if err := Run(t.Context(), Options{Dir: dir, Size: testSize, JSON: true, Out: &out}); err != nil {
		t.Error(err)
	}
	var names []string
	for line := range bytes.Lines(out.Bytes()) {
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		name, _ := fields["name"].(string)
		names = append(names, name)
		want := []string{"cpuSeconds", "name", "peakRSS", "seconds"}
		unit := "bytes"
		if fields["ops"] != nil {
			unit = "ops"
		}
		want = append(want, unit)
		if fields["limit"] != nil {
			want = append(want, "limit", "ratio")
		}
		if strings.HasPrefix(name, "mount.") {
			want = append(want, "ratios")
		}
		if strings.HasSuffix(name, "-fsync") {
			want = append(want, "p50us")
		}
		slices.Sort(want)
		if got := slices.Sorted(maps.Keys(fields)); !slices.Equal(got, want) {
			t.Errorf("%s has the fields %v, want %v", name, got, want)
		}
		if ops, ok := testOps(name); ok && fields["ops"] != ops {
			t.Errorf("%s: %v operations, want %v", name, fields["ops"], ops)
		}
		for key, v := range fields {
			// A short measurement can cost less than a tick of the CPU clock.
			if n, ok := v.(float64); ok && n <= 0 && key != "cpuSeconds" {
				t.Errorf("%s: %s is %v", name, key, n)
			}
		}
	}
	if !slices.Equal(names, Names()) {
		t.Errorf("measured %v, want %v", names, Names())
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// testOps is how many operations the works are made of, with testSize.
func testOps(name string) (float64, bool) {
	_, work, _ := strings.Cut(name, ".")
	n, ok := map[string]float64{
		"untar": 64, "create": 64, "find-cold": 64, "find-warm": 64, "read-tree": 64, "rm": 64,
		"append-fsync": 16, "create-fsync": 16, "rand-read": 64, "rand-write": 64,
	}[work]
	return n, ok
}

func TestOurMountIsComparedWithEveryOtherPlace(t *testing.T) {
	for _, tt := range []struct {
		name  string
		peers []string
	}{
		{"mount.untar", []string{"native.untar", "loopback.untar", "floor.untar"}},
		{"mount.rm", []string{"native.rm", "loopback.rm"}},
		{"native.rm", nil},
	} {
		ms, err := choose(all(), []string{tt.name})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(ms[0].peers, tt.peers) {
			t.Errorf("%s is compared with %v, want %v", tt.name, ms[0].peers, tt.peers)
		}
	}
	known := map[string]Result{
		"throughput": {Bytes: 100, Seconds: 1},
		"median":     {Ops: 10, Seconds: 1, P50us: 300},
	}
	for _, tt := range []struct {
		r     Result
		peer  string
		ratio float64
	}{
		{Result{Bytes: 100, Seconds: 2}, "throughput", 0.5},
		{Result{Ops: 10, Seconds: 1, P50us: 600}, "median", 0.5},
	} {
		tt.r.compare(&measurement{peers: []string{tt.peer, "unmeasured"}}, known)
		if want := map[string]float64{tt.peer: tt.ratio}; !maps.Equal(tt.r.Ratios, want) {
			t.Errorf("ratios %v, want %v", tt.r.Ratios, want)
		}
	}
}

func TestMeasurementsOfOneWorkTakeTurns(t *testing.T) {
	var order []string
	fake := func(name, turns string, fails bool) measurement {
		return measurement{name: name, turns: turns, repeats: 2, run: func(context.Context, *rig) (sample, error) {
			order = append(order, name)
			if fails {
				return sample{}, errors.New("fails")
			}
			return sample{ops: 1, seconds: float64(len(order))}, nil
		}}
	}
	ms := []measurement{fake("a", "", false), fake("b", "", false), fake("x", "w", false), fake("y", "w", true), fake("z", "w", false)}
	for turn := range turns(ms) {
		samples, errs := best(t.Context(), nil, turn)
		for i, m := range turn {
			if failed := errs[i] != nil; failed != (m.name == "y") {
				t.Errorf("%s: error %v", m.name, errs[i])
			} else if !failed && int(samples[i].seconds) != slices.Index(order, m.name)+1 {
				t.Errorf("%s: the result is not of the fastest run", m.name)
			}
		}
	}
	if want := strings.Fields("a a b b x y z x z"); !slices.Equal(order, want) {
		t.Errorf("run in the order %v, want %v", order, want)
	}
}

func TestAnEarlyEndLeavesNothing(t *testing.T) {
	for _, place := range []string{placeNative, placeLoopback, placeFloor, placeMount} {
		dir := t.TempDir()
		ctx, cancel := context.WithCancel(t.Context())
		go func() { // ends while tar is at work, or a little before or after
			defer cancel()
			for ctx.Err() == nil {
				if found, _ := filepath.Glob(filepath.Join(dir, "*", "tree.tar")); len(found) > 0 {
					time.Sleep(50 * time.Millisecond)
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		err := Run(ctx, Options{Dir: dir, Size: 64 << 20, Out: io.Discard, Only: []string{place + ".untar"}})
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", place, err)
		}
		cancel()
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s left behind: %v, %v", place, left, err)
		}
	}
}

func TestRatioComparesWithTheSlowestKnownLimit(t *testing.T) {
	known := map[string]Result{
		"fast":   {Bytes: 100, Seconds: 1},
		"slow":   {Bytes: 100, Seconds: 2},
		"create": {Ops: 10, Seconds: 1},
	}
	for _, tt := range []struct {
		r      Result
		limits []string
		limit  string
		ratio  float64
	}{
		{Result{Bytes: 100, Seconds: 4}, []string{"fast", "slow"}, "slow", 0.5},
		{Result{Bytes: 200, Seconds: 4}, []string{"slow", "fast"}, "slow", 1},
		{Result{Bytes: 100, Seconds: 4}, []string{"fast", "unmeasured"}, "fast", 0.25},
		{Result{Ops: 10, Seconds: 4}, []string{"create"}, "create", 0.25},
		{Result{Ops: 10, Seconds: 4}, []string{"unmeasured"}, "", 0},
		{Result{Ops: 10, Seconds: 4}, nil, "", 0},
	} {
		r := tt.r
		r.compare(&measurement{limits: tt.limits}, known)
		if r.Limit != tt.limit || r.Ratio != tt.ratio {
			t.Errorf("%+v against %v: %v of %q, want %v of %q", tt.r, tt.limits, r.Ratio, r.Limit, tt.ratio, tt.limit)
		}
	}
}

func TestWhatAMeasurementIsComparedWithRunsBeforeIt(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range all() {
		for _, limit := range slices.Concat(m.limits, m.peers) {
			if !seen[limit] {
				t.Errorf("%s is compared with %s, which has not run by then", m.name, limit)
			}
		}
		seen[m.name] = true
	}
}

func TestOnlyChoosesByPattern(t *testing.T) {
	for _, tt := range []struct {
		only []string
		want []string
	}{
		{nil, Names()},
		{[]string{limitMemcpy}, []string{limitMemcpy}},
		{[]string{"limit.fuse-*", limitBLAKE3}, []string{limitBLAKE3, limitFUSEWrite, limitFUSERead, limitFUSECreate}},
		{[]string{"limit.?emcpy", "limit.m*"}, []string{limitMemcpy}},
		{[]string{"*.untar"}, []string{"native.untar", "loopback.untar", "floor.untar", "mount.untar"}},
	} {
		chosen, err := choose(all(), tt.only)
		var names []string
		for _, m := range chosen {
			names = append(names, m.name)
		}
		if err != nil || !slices.Equal(names, tt.want) {
			t.Errorf("%v chooses %v, %v; want %v", tt.only, names, err, tt.want)
		}
	}
	for _, only := range [][]string{{"limits"}, {limitMemcpy, "x*"}, {"[a"}} {
		if err := Run(t.Context(), Options{Dir: t.TempDir(), Only: only}); !errors.Is(err, ErrUnknownName) {
			t.Errorf("Only %v: error %v, want ErrUnknownName", only, err)
		}
	}
}

func TestNoSpaceIsSaidBeforeAnythingIsWritten(t *testing.T) {
	err := Run(t.Context(), Options{Dir: t.TempDir(), Size: 1 << 62})
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error %v, want ENOSPC", err)
	}
}

func TestAFailureIsNamedAndTheOthersGoOn(t *testing.T) {
	var out bytes.Buffer
	err := Run(t.Context(), Options{
		Dir: t.TempDir(), Size: minSize, JSON: true, Out: &out,
		Only: []string{limitFUSEWrite, limitMemcpy}, Client: []string{"true"},
	})
	if err == nil || !strings.Contains(err.Error(), limitFUSEWrite) || strings.Contains(err.Error(), limitMemcpy) {
		t.Errorf("error %v, want one of %s", err, limitFUSEWrite)
	}
	if s := out.String(); !strings.Contains(s, limitMemcpy) || strings.Contains(s, limitFUSEWrite) {
		t.Errorf("reported %s", s)
	}
}

func TestContentNeverRepeats(t *testing.T) {
	c, err := chunker.New(chunker.DefaultParams())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[cas.CID]bool{}
	for seed := range uint64(3) {
		var b bytes.Buffer
		if err := newContent(seed).writeTo(&b, 5<<20+123); err != nil {
			t.Fatal(err)
		}
		if b.Len() != 5<<20+123 {
			t.Errorf("content has %d bytes", b.Len())
		}
		for data := b.Bytes(); len(data) > 0; {
			n := c.Cut(data)
			cid := cas.Sum(cas.Raw, data[:n])
			if seen[cid] {
				t.Errorf("seed %d: a chunk of %d bytes was there before", seed, n)
			}
			seen[cid] = true
			data = data[n:]
		}
	}
}

// BenchmarkAll runs each measurement with a small size. Time is that of one
// measurement as it reports it, without setting up.
func BenchmarkAll(b *testing.B) {
	for _, m := range all() {
		b.Run(m.name, func(b *testing.B) {
			o := Options{Dir: b.TempDir(), Size: 64 << 20}
			o.setDefaults()
			r, err := newRig(o)
			if err != nil {
				b.Fatal(err)
			}
			defer func() {
				if err := r.close(); err != nil {
					b.Error(err)
				}
			}()
			var total sample
			for b.Loop() {
				s, err := m.run(b.Context(), r)
				if err != nil {
					b.Fatal(err)
				}
				total.bytes += s.bytes
				total.ops += s.ops
				total.seconds += s.seconds
				total.cpu += s.cpu
			}
			b.ReportMetric(total.seconds/float64(b.N)*1e9, "ns/op")
			if total.bytes > 0 {
				b.ReportMetric(float64(total.bytes)/total.seconds/1e6, "MB/s")
				b.ReportMetric(total.cpu/float64(total.bytes)*1e9, "cpu-s/GB")
			} else {
				b.ReportMetric(total.seconds/float64(total.ops)*1e6, "µs/operation")
				b.ReportMetric(total.cpu/float64(total.ops)*1e6, "cpu-µs/operation")
			}
		})
	}
}
