package cpu_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"xlstm/checkpoints"
	"xlstm/checkpoints/demo"
	"xlstm/convert"
	"xlstm/format"
	"xlstm/kernels"
	"xlstm/kernels/cpu"
)

// BenchmarkDecode generates with the demo model, some sequences together, and reports the tokens of all of them.
func BenchmarkDecode(b *testing.B) {
	for _, recipe := range []string{"fp16", "int8", "int4"} {
		f := demoFile(b, recipe)
		for _, n := range []int{1, 4, 16} {
			b.Run(fmt.Sprintf("%s/%d", recipe, n), func(b *testing.B) { benchmarkDecode(b, f, n) })
		}
	}
}

// demoFile converts the demo model.
func demoFile(b *testing.B, recipe string) *format.File {
	b.Helper()
	c, err := checkpoints.OpenFS(demo.FS(), "demo")
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "demo.xlstm")
	if err := convert.Convert(b.Context(), c, path, convert.Options{Recipe: recipe}); err != nil {
		b.Fatal(err)
	}
	f, err := format.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return f
}

func benchmarkDecode(b *testing.B, f *format.File, n int) {
	e, v := engine(b, f, cpu.Options{}), f.Config().VocabSize
	batch := make([]kernels.Step, n)
	for i := range batch {
		batch[i] = kernels.Step{State: newState(b, e), Tokens: []int32{int32(i)}, Logits: make([]float32, v)}
	}
	size := int64(0)
	for _, t := range f.Tensors() {
		if t.Name != format.TensorEmbed {
			size += int64(len(t.Data))
		}
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Forward(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
}
