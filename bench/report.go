package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Result is a figure as JSON output has it. The package documentation says how
// each is measured.
type Result struct {
	Name       string  `json:"name"`
	Bytes      int64   `json:"bytes,omitempty"` // either Bytes or Ops
	Ops        int64   `json:"ops,omitempty"`
	Seconds    float64 `json:"seconds"`
	CPUSeconds float64 `json:"cpuSeconds"`
	PeakRSS    int64   `json:"peakRSS"`         // bytes
	Limit      string  `json:"limit,omitempty"` // the measurement that Ratio compares with
	Ratio      float64 `json:"ratio,omitempty"`

	P50us  float64            `json:"p50us,omitempty"` // microseconds
	P99us  float64            `json:"p99us,omitempty"`
	Ratios map[string]float64 `json:"ratios,omitempty"` // with the same work in other places

	WireBytes   int64  `json:"wireBytes,omitempty"`   // that nodes have sent one another
	StoredBytes int64  `json:"storedBytes,omitempty"` // by all nodes
	Note        string `json:"note,omitempty"`
}

func (s sample) result(name string) Result {
	return Result{
		Name: name, Bytes: s.bytes, Ops: s.ops, Seconds: s.seconds, CPUSeconds: s.cpu, PeakRSS: s.rss,
		P50us: s.p50 * 1e6, P99us: s.p99 * 1e6, WireBytes: s.wire, StoredBytes: s.stored, Note: s.note,
	}
}

// each returns the seconds per byte or operation, those of the median if it is
// known.
func (r *Result) each() float64 {
	return sample{bytes: r.Bytes, ops: r.Ops, seconds: r.Seconds, p50: r.P50us / 1e6}.each()
}

// compare sets Limit and Ratio from the slowest of the limits of m that are known,
// and Ratios from its peers that are.
func (r *Result) compare(m *measurement, known map[string]Result) {
	for _, name := range m.peers {
		if peer, ok := known[name]; ok {
			if r.Ratios == nil {
				r.Ratios = make(map[string]float64)
			}
			r.Ratios[name] = peer.each() / r.each()
		}
	}
	slowest := 0.0
	for _, name := range m.limits {
		if l, ok := known[name]; ok && l.each() > slowest {
			slowest = l.each()
			r.Limit, r.Ratio = name, slowest/r.each()
		}
	}
}

// reporter writes results as they come.
type reporter struct {
	out   io.Writer
	json  *json.Encoder // nil for a table
	lines int
}

func newReporter(out io.Writer, asJSON bool) *reporter {
	r := &reporter{out: out}
	if asJSON {
		r.json = json.NewEncoder(out)
	}
	return r
}

func (r *reporter) write(res Result) error {
	if r.json != nil {
		return r.json.Encode(res)
	}
	if r.lines == 0 {
		fmt.Fprintf(r.out, "%-26s %14s %14s %10s  %s\n", "", "speed", "CPU", "peak RSS", "compared")
	}
	r.lines++
	speed := fmt.Sprintf("%.2f GB/s", float64(res.Bytes)/res.Seconds/1e9)
	cpu := fmt.Sprintf("%.3f s/GB", res.CPUSeconds/float64(res.Bytes)*1e9)
	if res.Ops > 0 {
		speed = fmt.Sprintf("%.2f µs/op", res.Seconds/float64(res.Ops)*1e6)
		cpu = fmt.Sprintf("%.2f µs/op", res.CPUSeconds/float64(res.Ops)*1e6)
	}
	if res.P50us > 0 {
		speed = fmt.Sprintf("%.2f µs p50", res.P50us)
	}
	_, err := fmt.Fprintf(r.out, "%-26s %14s %14s %6d MiB  %s\n", res.Name, speed, cpu, res.PeakRSS>>20, res.remarks())
	return err
}

// remarks are what the result compares with, and its note.
func (r *Result) remarks() string {
	var parts []string
	if r.Limit != "" {
		parts = append(parts, fmt.Sprintf("%4.0f %% of %s", 100*r.Ratio, r.Limit))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Ratios)) {
		place, _, _ := strings.Cut(name, ".")
		parts = append(parts, fmt.Sprintf("%4.0f %% of %s", 100*r.Ratios[name], place))
	}
	if r.P99us > 0 {
		parts = append(parts, fmt.Sprintf("%.2f µs p99", r.P99us))
	}
	if r.WireBytes > 0 && r.Bytes > 0 {
		parts = append(parts, fmt.Sprintf("%.3f B on the wire for each", float64(r.WireBytes)/float64(r.Bytes)))
	}
	if r.Ops > 0 && r.WireBytes+r.StoredBytes > 0 {
		each := func(n int64) float64 { return float64(n) / float64(r.Ops) / 1e3 }
		parts = append(parts, fmt.Sprintf("%.1f kB on the wire and %.1f kB stored for each", each(r.WireBytes), each(r.StoredBytes)))
	}
	if r.Note != "" {
		parts = append(parts, r.Note)
	}
	return strings.Join(parts, ", ")
}
