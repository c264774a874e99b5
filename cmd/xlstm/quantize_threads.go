package main

import (
	goruntime "runtime"

	"xlstm/checkpoints"
)

// useThreads limits the cores that calibration uses, which has no other limit than the process's.
func useThreads(n int) (restore func()) {
	if n < 1 {
		return func() {}
	}
	before := goruntime.GOMAXPROCS(n)
	return func() { goruntime.GOMAXPROCS(before) }
}

// lateTotal is a progress function for work on files of known sizes.
func (a *app) lateTotal(what string, files []checkpoints.SourceFile) func(done int64) {
	var total int64
	for _, f := range files {
		total += f.Size
	}
	show := a.lateBar(what, bytesUnit)
	return func(done int64) { show(done, total) }
}
