package bench

import (
	"encoding/json"
	"fmt"
	"io"
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
}

func (s sample) result(name string) Result {
	return Result{Name: name, Bytes: s.bytes, Ops: s.ops, Seconds: s.seconds, CPUSeconds: s.cpu, PeakRSS: s.rss}
}

// each returns the seconds per byte or operation.
func (r *Result) each() float64 { return r.Seconds / float64(r.Bytes+r.Ops) }

// compare sets Limit and Ratio from the slowest of the limits that are known.
func (r *Result) compare(limits []string, known map[string]Result) {
	slowest := 0.0
	for _, name := range limits {
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
		fmt.Fprintf(r.out, "%-18s %14s %14s %10s  %s\n", "", "speed", "CPU", "peak RSS", "of limit")
	}
	r.lines++
	speed := fmt.Sprintf("%.2f GB/s", float64(res.Bytes)/res.Seconds/1e9)
	cpu := fmt.Sprintf("%.3f s/GB", res.CPUSeconds/float64(res.Bytes)*1e9)
	if res.Ops > 0 {
		speed = fmt.Sprintf("%.2f µs/op", res.Seconds/float64(res.Ops)*1e6)
		cpu = fmt.Sprintf("%.2f µs/op", res.CPUSeconds/float64(res.Ops)*1e6)
	}
	of := ""
	if res.Limit != "" {
		of = fmt.Sprintf("%4.0f %% of %s", 100*res.Ratio, res.Limit)
	}
	_, err := fmt.Fprintf(r.out, "%-18s %14s %14s %6d MiB  %s\n", res.Name, speed, cpu, res.PeakRSS>>20, of)
	return err
}
