// Package golden reads what an original implementation computed for a checkpoint, for tests: expected.safetensors beside the
// fixtures' weights and the demo model's own golden values.
package golden

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"

	"github.com/nlpodyssey/safetensors"
)

// Values are the tensors of one file, by name.
type Values struct {
	floats map[string][]float32
	ints   map[string][]int32
	shapes map[string][]int
}

// Read reads the F32 and I64 tensors of a safetensors file.
func Read(path string) (*Values, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	st, err := safetensors.Deserialize(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	v := &Values{floats: map[string][]float32{}, ints: map[string][]int32{}, shapes: map[string][]int{}}
	for _, t := range st.Tensors() {
		for _, d := range t.TensorView.Shape() {
			v.shapes[t.Name] = append(v.shapes[t.Name], int(d))
		}
		switch t.TensorView.DType() {
		case safetensors.F32:
			v.floats[t.Name] = decode(t.TensorView.Data(), 4, func(b []byte) float32 { return math.Float32frombits(binary.LittleEndian.Uint32(b)) })
		case safetensors.I64:
			v.ints[t.Name] = decode(t.TensorView.Data(), 8, func(b []byte) int32 { return int32(binary.LittleEndian.Uint64(b)) })
		default:
			return nil, fmt.Errorf("%s: tensor %s is %s, expected F32 or I64", path, t.Name, t.TensorView.DType())
		}
	}
	return v, nil
}

func decode[T any](b []byte, size int, one func([]byte) T) []T {
	out := make([]T, len(b)/size)
	for i := range out {
		out[i] = one(b[i*size:])
	}
	return out
}

// Shape is a tensor's shape, nil where it is absent.
func (v *Values) Shape(name string) []int { return v.shapes[name] }

// Floats is row b (along the first dimension) of an F32 tensor, nil where it is absent.
func (v *Values) Floats(name string, b int) []float32 { return row(v.floats[name], v.shapes[name], b) }

// Tokens is row b of an I64 tensor, nil where it is absent.
func (v *Values) Tokens(name string, b int) []int32 { return row(v.ints[name], v.shapes[name], b) }

func row[T any](data []T, shape []int, b int) []T {
	if data == nil {
		return nil
	}
	n := len(data) / shape[0]
	return data[b*n : (b+1)*n]
}
