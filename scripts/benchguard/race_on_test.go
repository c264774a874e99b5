//go:build race

package main

// raceEnabled: the race detector makes arithmetic in Go some fifty times slower; make test runs the slowest tests once more without it.
const raceEnabled = true
