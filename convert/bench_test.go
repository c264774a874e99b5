package convert_test

import (
	"os"
	"path/filepath"
	"testing"

	"xlstm/checkpoints"
	"xlstm/convert"
)

// BenchmarkConvert converts one block of the 7B's widths with a small vocabulary; MB/s are of its float32 weights. The weights are
// generated as they are read, which is part of the time.
func BenchmarkConvert(b *testing.B) {
	c := checkpoints.Config7B()
	c.NumBlocks, c.VocabSize = 1, 1024
	seed := uint64(1)
	for name, o := range map[string]convert.Options{
		"fp32": {Recipe: "fp32"}, "fp16": {Recipe: "fp16"}, "bf16": {Recipe: "bf16"}, "int8-plain": {Recipe: "int8", PlainScales: true},
		"fp16-rotated": {Recipe: "fp16", Rotate: &seed},
	} {
		b.Run(name, func(b *testing.B) {
			o.Workers = 1
			o.Progress = func(_, total int64) { b.SetBytes(total) }
			path := filepath.Join(b.TempDir(), "model.xlstm")
			for b.Loop() {
				if err := convert.Convert(b.Context(), checkpoints.Synthetic(c, 1), path, o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkConvert7B converts a synthetic model of the 7B's size, 27.5 GB of float32, to fp16 in the directory XLSTM_BENCH_DIR, where
// 13.8 GB have to be free. Peak memory is what /usr/bin/time -v says of the test's process.
func BenchmarkConvert7B(b *testing.B) {
	dir := os.Getenv("XLSTM_BENCH_DIR")
	if dir == "" {
		b.Skip("XLSTM_BENCH_DIR is not set")
	}
	path := filepath.Join(dir, "convert-7b.xlstm")
	defer os.Remove(path)
	for b.Loop() {
		o := convert.Options{Recipe: "fp16", Progress: func(_, total int64) { b.SetBytes(total) }}
		if err := convert.Convert(b.Context(), checkpoints.Synthetic(checkpoints.Config7B(), 1), path, o); err != nil {
			b.Fatal(err)
		}
	}
}
