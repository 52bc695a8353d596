package cmd

import (
	"cmp"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// When a progress bar appears, and how often it is drawn.
const (
	progressAfter = time.Second
	progressEvery = 200 * time.Millisecond
)

// progress shows on stderr how far a long operation is: bytes done, rate, time
// left. It stays silent if stderr is no terminal or the operation is quick.
type progress struct {
	done   atomic.Int64
	shown  atomic.Bool
	bar    *progressbar.ProgressBar // nil: not shown
	stopc  chan struct{}
	drawer sync.WaitGroup
}

// newProgress starts the clock. what names the operation; total is in bytes, 0 if
// it is not known, less than 0 if no bytes are counted.
func (a *app) newProgress(what string, total int64) *progress {
	p := &progress{stopc: make(chan struct{})}
	if !isTerminal(a.Err) {
		return p
	}
	known := total > 0
	p.bar = progressbar.NewOptions64(cmp.Or(max(total, 0), -1),
		progressbar.OptionSetWriter(a.Err),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(total >= 0),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetPredictTime(known),
		progressbar.OptionSetWidth(20),
		progressbar.OptionSetSpinnerChangeInterval(0),
	)
	p.bar.StartWithoutRender()
	p.drawer.Go(p.draw)
	return p
}

func (p *progress) draw() {
	next := time.NewTimer(progressAfter)
	defer next.Stop()
	for {
		select {
		case <-p.stopc:
			return
		case <-next.C:
			// Drawing is for the eye: an error of the terminal, or a file
			// that grew beyond its size, changes nothing.
			_ = p.bar.Set64(p.done.Load())
			p.shown.Store(true)
			next.Reset(progressEvery)
		}
	}
}

// add counts n more bytes done. It may be called from any goroutine.
func (p *progress) add(n int64) { p.done.Add(n) }

// clear takes the bar off the screen until it is drawn next, for a line of
// output.
func (p *progress) clear() {
	if p.bar != nil && p.shown.Swap(false) {
		_ = p.bar.Clear()
	}
}

// stop takes the bar off the screen for good.
func (p *progress) stop() {
	if p.bar == nil {
		return
	}
	close(p.stopc)
	p.drawer.Wait()
	p.clear()
}

func isTerminal(w io.Writer) bool {
	if out, ok := w.(*output); ok {
		w = out.Writer
	}
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
