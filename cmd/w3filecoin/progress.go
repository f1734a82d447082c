package main

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// progressDelay is how long something may take before it is worth a bar.
const progressDelay = 300 * time.Millisecond

// progress draws how much of total bytes has been written to w, on stderr, if that is a terminal and it takes a while. A total of zero or less
// is one that is not known. done removes the bar; it has to be called, and may be called again.
func (a *app) progress(total int64, label string) (w io.Writer, done func()) {
	if !a.terminal {
		return io.Discard, func() {}
	}
	return newBar(a.stderr, total, label, progressDelay)
}

func newBar(out io.Writer, total int64, label string, delay time.Duration) (io.Writer, func()) {
	late := make(chan struct{})
	timer := time.AfterFunc(delay, func() { close(late) })
	p := mpb.New(mpb.WithOutput(out), mpb.WithAutoRefresh(), mpb.WithWidth(64), mpb.WithRenderDelay(late))
	size, rate := decor.CountersKibiByte("% .1f / % .1f"), decor.AverageETA(decor.ET_STYLE_GO)
	if total <= 0 {
		size, rate = decor.CurrentKibiByte("% .1f"), decor.AverageSpeed(decor.SizeB1024(0), "% .1f")
	}
	bar := p.AddBar(total, mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(label, decor.WCSyncSpaceR), size), mpb.AppendDecorators(rate))
	return barWriter{bar}, sync.OnceFunc(func() {
		timer.Stop()
		bar.Abort(true)
		p.Wait()
	})
}

// counting draws how many bytes have been written to w, of a total that nobody knows, beside a text that changes. It is else like progress.
func (a *app) counting(label string) (w io.Writer, say func(string), done func()) {
	if !a.terminal {
		return io.Discard, func(string) {}, func() {}
	}
	return newCounter(a.stderr, label, progressDelay)
}

func newCounter(out io.Writer, label string, delay time.Duration) (io.Writer, func(string), func()) {
	var text atomic.Value
	text.Store(label)
	late := make(chan struct{})
	timer := time.AfterFunc(delay, func() { close(late) })
	p := mpb.New(mpb.WithOutput(out), mpb.WithAutoRefresh(), mpb.WithWidth(64), mpb.WithRenderDelay(late))
	bar := p.New(0, mpb.NopStyle(), mpb.BarRemoveOnComplete(), mpb.PrependDecorators(
		decor.Any(func(decor.Statistics) string { return text.Load().(string) + "  " }), decor.CurrentKibiByte("% .1f"),
		decor.Name("  "), decor.AverageSpeed(decor.SizeB1024(0), "% .1f")))
	return barWriter{bar}, func(s string) { text.Store(s) }, sync.OnceFunc(func() {
		timer.Stop()
		bar.Abort(true)
		p.Wait()
	})
}

// barWriter counts what is written to it.
type barWriter struct{ bar *mpb.Bar }

func (w barWriter) Write(b []byte) (int, error) {
	w.bar.IncrBy(len(b))
	return len(b), nil
}

// terminalSize returns the columns and rows of w, and whether it is a terminal at all.
func terminalSize(w io.Writer) (width, height int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	width, height, err := term.GetSize(int(f.Fd()))
	return width, height, err == nil && width > 0 && height > 0
}
