package cpu_test

import (
	"fmt"
	"testing"

	"xlstm/format"
	"xlstm/internal/converted"
	"xlstm/kernels"
	"xlstm/kernels/cpu"
)

// BenchmarkDecode generates with the demo model, some sequences together, and reports the tokens of all of them.
func BenchmarkDecode(b *testing.B) {
	for _, recipe := range []string{"fp16", "int8", "int4"} {
		f := converted.Demo(b, recipe)
		for _, n := range []int{1, 4, 16} {
			b.Run(fmt.Sprintf("%s/%d", recipe, n), func(b *testing.B) { benchmarkDecode(b, f, n) })
		}
	}
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
