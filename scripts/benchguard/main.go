// Program benchguard measures how much of what the machine can do the CPU engine's loops reach, and compares that with what was
// reached when the baseline was committed: go run ./scripts/benchguard. It ends with an error only where a ratio has fallen
// below its baseline by more than the tolerance.
//
// Every metric is a ratio of two loops that ran by turns on all cores, in time that the processor has spent on the thread, so
// that what else runs on the machine matters little. It is the median over many turns.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/klauspost/cpuid/v2"

	"xlstm/kernels/cpu/simd"
)

// baseline is what was reached on one kind of machine.
type baseline struct {
	Machine string             `json:"machine"`
	Path    string             `json:"path"` // of package simd
	Workers int                `json:"workers"`
	Ratios  map[string]float64 `json:"ratios"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "benchguard:", err)
		os.Exit(1)
	}
}

func run() error {
	dir := flag.String("baselines", "kernels/cpu/testdata/baselines", "directory of the baselines, one file a machine")
	tolerance := flag.Float64("tolerance", 0.15, "part of a ratio that may be lost")
	only := flag.String("only", "", "metrics to measure: a regular expression")
	turns := flag.Int("turns", 31, "turns that a metric is the median of")
	update := flag.Bool("update", false, "write what is measured as this machine's baseline")
	flag.Parse()
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	if *turns < 1 {
		return fmt.Errorf("%d turns, expected at least 1", *turns)
	}
	now := baseline{Machine: cpuid.CPU.BrandName, Path: simd.Active().Name(), Workers: runtime.GOMAXPROCS(0), Ratios: map[string]float64{}}
	path := filepath.Join(*dir, now.fileName())
	old, err := readBaseline(path)
	if err != nil {
		return err
	}
	fmt.Printf("%s, %s, %d workers; baseline %s\n", now.Machine, now.Path, now.Workers, path)
	fmt.Printf("%-16s %8s %8s  %s\n", "metric", "baseline", "now", "verdict")
	fallen := 0
	for _, m := range metrics() {
		if !pattern.MatchString(m.name) {
			continue
		}
		ratio := m.measure(*turns)
		now.Ratios[m.name] = ratio
		before, known := old.Ratios[m.name]
		verdict := verdictOf(before, ratio, known, *tolerance)
		if verdict == fell {
			fallen++
		}
		fmt.Printf("%-16s %8.3f %8.3f  %-8s %s\n", m.name, before, ratio, verdict, m.what)
	}
	if *update {
		return now.write(path, old)
	}
	if fallen > 0 {
		return fmt.Errorf("%d ratios are more than %.0f%% below their baseline", fallen, 100**tolerance)
	}
	return nil
}

const fell = "fell"

// verdictOf compares a ratio with its baseline, where there is one.
func verdictOf(before, now float64, known bool, tolerance float64) string {
	switch {
	case !known:
		return "new"
	case now < before*(1-tolerance):
		return fell
	case now > before*(1+tolerance):
		return "rose"
	}
	return "holds"
}

var notPlain = regexp.MustCompile(`[^a-z0-9]+`)

// fileName tells machines apart by their processor, the instructions used and the number of workers.
func (b *baseline) fileName() string {
	plain := strings.Trim(notPlain.ReplaceAllString(strings.ToLower(b.Machine), "-"), "-")
	return fmt.Sprintf("%s-%s-%d.json", plain, b.Path, b.Workers)
}

// readBaseline gives an empty baseline where there is no file.
func readBaseline(path string) (*baseline, error) {
	b := &baseline{}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

// write keeps the old ratios of what was not measured.
func (b *baseline) write(path string, old *baseline) error {
	for name, ratio := range old.Ratios {
		if _, ok := b.Ratios[name]; !ok {
			b.Ratios[name] = ratio
		}
	}
	for name, ratio := range b.Ratios {
		b.Ratios[name] = float64(int(1000*ratio+0.5)) / 1000
	}
	data, err := json.MarshalIndent(b, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o666)
}
