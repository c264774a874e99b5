//go:build race

package oracle_test

// raceEnabled: the race detector makes the oracle some fifty times slower; fewer tokens show races as well.
const raceEnabled = true
