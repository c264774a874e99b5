//go:build !linux

package main

import "time"

var start = time.Now()

// seconds is the time on the clock, where threads have none of their own.
func seconds() float64 { return time.Since(start).Seconds() }
