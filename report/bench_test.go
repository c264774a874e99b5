package report

import (
	"path/filepath"
	"testing"

	"xlstm/checkpoints"
	"xlstm/convert"
	"xlstm/format"
)

// BenchmarkWeightErrors compares an int4 file with its fp32 original, a file too, so that making up weights is not measured.
func BenchmarkWeightErrors(b *testing.B) {
	c := checkpoints.Config7B()
	c.VocabSize, c.NumBlocks, c.EmbeddingDim, c.QKDim, c.VDim, c.NumHeads, c.FFNDim, c.BOS, c.ForceBOS = 4096, 4, 512, 256, 512, 4, 1408, -1, false
	synthetic, err := convert.FromCheckpoint(checkpoints.Synthetic(c, 1))
	if err != nil {
		b.Fatal(err)
	}
	seed := uint64(1)
	write := func(recipe string, rotate *uint64) *format.File {
		path := filepath.Join(b.TempDir(), "model.xlstm")
		if err := synthetic.Write(b.Context(), path, convert.Options{Recipe: recipe, Rotate: rotate}); err != nil {
			b.Fatal(err)
		}
		f, err := format.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { f.Close() })
		return f
	}
	original, err := convert.FromFile(write("fp32", nil))
	if err != nil {
		b.Fatal(err)
	}
	for name, rotate := range map[string]*uint64{"plain": nil, "rotated": &seed} {
		f := write("int4", rotate)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				all, err := WeightErrors(b.Context(), original, []*format.File{f}, WeightOptions{Workers: 1})
				if err != nil {
					b.Fatal(err)
				}
				n := int64(0)
				for _, k := range all[0].Kinds {
					n += k.Weights
				}
				b.SetBytes(4 * n)
			}
		})
	}
}
