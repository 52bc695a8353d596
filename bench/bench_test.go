package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/chunker"
)

// TestMain makes this program usable as its own client.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == ClientArg {
		if err := ServeClient(os.Stdin, os.Stdout); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
}

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
