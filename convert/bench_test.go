package convert_test

import (
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
			path := filepath.Join(b.TempDir(), "model.xlstm")
			for b.Loop() {
				bytes := int64(0)
				o.Progress = func(_, total int64) { bytes = total }
				o.Workers = 1
				if err := convert.Convert(b.Context(), checkpoints.Synthetic(c, 1), path, o); err != nil {
					b.Fatal(err)
				}
				b.SetBytes(bytes)
			}
		})
	}
}
