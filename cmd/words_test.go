package cmd

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestSizesInWords(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 1 << 20: "1.0 MiB",
		5 << 30: "5.0 GiB", 1<<63 - 1: "8.0 EiB",
	} {
		if got := bytesText(n); got != want {
			t.Errorf("%d bytes are %q, want %q", n, got, want)
		}
	}
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "1B": 1, "1K": 1 << 10, "1.5KiB": 1536, "3M": 3 << 20, "2GiB": 2 << 30, "1T": 1 << 40,
	} {
		if got, err := parseBytes(text); err != nil || got != want {
			t.Errorf("%q is %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "K", "-1", "1k", "1 G", "1e3", "..", "9999999999999T", "much"} {
		if got, err := parseBytes(text); err == nil {
			t.Errorf("%q is %d, want an error", text, got)
		}
	}
}

func TestNamesAreSafeToPrint(t *testing.T) {
	for name, want := range map[string]string{
		"plain": "plain", "with blank": "with blank", "ümlaut": "ümlaut",
		"a\nb": `"a\nb"`, "\x1b[2J": `"\x1b[2J"`, "\xff": `"\xff"`,
	} {
		if got := printable(name); got != want {
			t.Errorf("%q is printed as %s, want %s", name, got, want)
		}
	}
}

func TestInputReadsWhatItsReaderHas(t *testing.T) {
	want := make([]byte, 3*inputBuffer+17)
	for i := range want {
		want[i] = byte(i * i >> 8)
	}
	failed := errors.New("failed")
	r, w := io.Pipe()
	go func() {
		_, err := w.Write(want)
		w.CloseWithError(errors.Join(err, failed))
	}()
	in := newInput(t.Context(), r)
	got, err := io.ReadAll(iotest.HalfReader(in))
	if string(got) != string(want) || !errors.Is(err, failed) {
		t.Errorf("%d bytes, %v, want %d", len(got), err, len(want))
	}
	if n, err := in.Read(make([]byte, 1)); n != 0 || !errors.Is(err, failed) {
		t.Errorf("after the end: %d, %v", n, err)
	}
}

func TestInputEndsWithItsContext(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	in := newInput(ctx, r)
	cancel()
	if _, err := in.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
