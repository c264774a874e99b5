package main

import "golang.org/x/sys/unix"

// seconds is the processor's time spent on this thread.
func seconds() float64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err) // the clock is there on every kernel that Go runs on
	}
	return float64(t.Sec) + 1e-9*float64(t.Nsec)
}
