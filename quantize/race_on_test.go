//go:build race

package quantize

// The race detector slows the exhaustive sweeps tenfold and has nothing to find in them.
const raceEnabled = true
