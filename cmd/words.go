package cmd

import (
	"fmt"
	"strconv"
	"unicode"
)

// printable returns name as it is safe to print on a terminal: quoted, if it
// holds characters that would move the cursor or end the line.
func printable(name string) string {
	for _, r := range name {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return strconv.Quote(name)
		}
	}
	return name
}

// bytesText returns n bytes in words, e.g. "1.5 GiB".
func bytesText(n int64) string {
	const step = 1 << 10
	if n < step {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n)/step, "KMGTPE"
	for v >= step-0.05 && len(units) > 1 {
		v, units = v/step, units[1:]
	}
	return fmt.Sprintf("%.1f %ciB", v, units[0])
}

// parseBytes reads a size: a number with an optional unit, K, M, G or T, each
// 1024 times the one before, with or without "iB" behind.
func parseBytes(s string) (int64, error) {
	i := 0
	for i < len(s) && (s[i] >= '0' && s[i] <= '9' || s[i] == '.') {
		i++
	}
	shift, ok := map[string]int{
		"": 0, "B": 0,
		"K": 10, "KiB": 10, "M": 20, "MiB": 20, "G": 30, "GiB": 30, "T": 40, "TiB": 40,
	}[s[i:]]
	v, err := strconv.ParseFloat(s[:i], 64)
	if !ok || err != nil || v*float64(int64(1)<<shift) >= 1<<62 {
		return 0, fmt.Errorf("%q is not a size: give a number and K, M, G or T", s)
	}
	return int64(v * float64(int64(1)<<shift)), nil
}

// size is a flag that holds a number of bytes.
type size int64

func (s *size) String() string { return bytesText(int64(*s)) }
func (s *size) Type() string   { return "SIZE" }

// Set reads a size.
func (s *size) Set(text string) error {
	n, err := parseBytes(text)
	*s = size(n)
	return err
}
