package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// bar is a progress bar on stderr. Where stderr is no terminal it does nothing.
type bar struct{ p *progressbar.ProgressBar }

// newBar begins a bar. Units are bytes, or things of the given name.
func (a *app) newBar(what string, total int64, unit string) *bar {
	b := &bar{}
	if !a.terminal() {
		return b
	}
	options := []progressbar.Option{
		progressbar.OptionSetWriter(a.errs), progressbar.OptionSetDescription(what), progressbar.OptionSetWidth(30),
		progressbar.OptionThrottle(100 * time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(true),
		progressbar.OptionShowCount(),
	}
	if unit == bytesUnit {
		options = append(options, progressbar.OptionShowBytes(true))
	} else {
		options = append(options, progressbar.OptionShowIts(), progressbar.OptionSetItsString(unit))
	}
	b.p = progressbar.NewOptions64(total, options...)
	b.p.StartWithoutRender() // else its clock starts with the first progress, and the first rate is beyond belief
	a.bars = append(a.bars, b)
	return b
}

const bytesUnit = "bytes"

// lateBar is a progress function for work whose size shows only as it goes. It may be called by
// several goroutines at once.
func (a *app) lateBar(what, unit string) func(done, total int64) {
	var once sync.Once
	var b *bar
	return func(done, total int64) {
		once.Do(func() { b = a.newBar(what, total, unit) })
		b.set(done)
	}
}

// set moves the bar to n. A bar that cannot be drawn is not worth an error.
func (b *bar) set(n int64) {
	if b.p != nil {
		_ = b.p.Set64(n)
	}
}

// add moves the bar by n.
func (b *bar) add(n int64) {
	if b.p != nil {
		_ = b.p.Add64(n)
	}
}

// describe changes the words beside the bar.
func (b *bar) describe(format string, args ...any) {
	if b.p != nil {
		b.p.Describe(fmt.Sprintf(format, args...))
	}
}

// done takes the bar away.
func (b *bar) done() {
	if b.p != nil {
		_ = b.p.Clear()
		_ = b.p.Exit()
		b.p = nil
	}
}

// closeBars leaves an empty line where bars were.
func (a *app) closeBars() {
	for _, b := range a.bars {
		b.done()
	}
	a.bars = nil
}
