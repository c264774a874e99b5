package main

import (
	"path/filepath"
	"testing"
)

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		before, now float64
		known       bool
		want        string
	}{{0, 0.9, false, "new"}, {0.9, 0.9, true, "holds"}, {0.9, 0.77, true, "holds"}, {0.9, 0.76, true, fell}, {0.9, 1.1, true, "rose"}} {
		if got := verdictOf(c.before, c.now, c.known, 0.15); got != c.want {
			t.Errorf("%v after %v: %s, want %s", c.now, c.before, got, c.want)
		}
	}
}

// TestBaseline: what is not measured keeps its ratio, and no file is an empty baseline.
func TestBaseline(t *testing.T) {
	b := baseline{Machine: "AMD EPYC(tm) 9", Path: "avx2", Workers: 2, Ratios: map[string]float64{"new": 0.12345}}
	path := filepath.Join(t.TempDir(), "a", b.fileName())
	if filepath.Base(path) != "amd-epyc-tm-9-avx2-2.json" {
		t.Errorf("file name %s", path)
	}
	empty, err := readBaseline(path)
	if err != nil || len(empty.Ratios) != 0 {
		t.Fatalf("%v, %v", empty, err)
	}
	if err := b.write(path, &baseline{Ratios: map[string]float64{"old": 1, "new": 2}}); err != nil {
		t.Fatal(err)
	}
	got, err := readBaseline(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.Machine != b.Machine || got.Ratios["old"] != 1 || got.Ratios["new"] != 0.123 {
		t.Errorf("%+v", got)
	}
}

// TestMetrics runs every loop once, so that each is known to work on every path.
func TestMetrics(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("some seconds, and minutes under the race detector")
	}
	for _, m := range metrics() {
		if ratio := m.measure(1); !(ratio > 0) {
			t.Errorf("%s: %v", m.name, ratio)
		}
	}
}
