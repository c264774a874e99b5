package convert

import (
	"fmt"
	"maps"

	"xlstm/format"
	"xlstm/quantize"
)

// FromFile reads the weights of a file whose tensors are fp32, fp16 or bf16, to be encoded anew. Rounding a rounded weight again
// would add errors that nobody sees: integer encodings are refused.
func FromFile(f *format.File) (*Source, error) {
	s := &Source{config: *f.Config(), tokenizer: f.Tokenizer(), tensors: map[string]tensor{}, provenance: f.Provenance()}
	s.provenance.Options = maps.Clone(s.provenance.Options)
	for _, t := range f.Tensors() {
		if k := t.Encoding.Kind; k != format.FP32 && k != format.FP16 && k != format.BF16 {
			return nil, fmt.Errorf("%s: tensor %s is %s, expected fp32, fp16 or bf16: encode the original instead", f.Path(), t.Name, t.Encoding)
		}
		rows, err := quantize.RowsOf(t.Data, t.Encoding, t.Rows, t.Cols)
		if err != nil {
			return nil, fmt.Errorf("%s: tensor %s: %w", f.Path(), t.Name, err)
		}
		s.tensors[t.Name] = &stored{f, t, rows}
	}
	return s, nil
}

// stored is a tensor of a file.
type stored struct {
	f    *format.File
	t    format.Tensor
	rows quantize.Rows
}

func (s *stored) step() int { return 1 }

func (s *stored) read(dst []float32, r0, r1 int) error {
	return quantize.DecodeRows(dst, s.t.Encoding, s.rows.Slice(s.t.Encoding, s.t.Cols, r0, r1), r1-r0, s.t.Cols)
}

func (s *stored) release(r0, r1 int) error {
	row := s.t.Encoding.ValueRowBytes(s.t.Cols)
	return s.f.Release(s.rows.Values[int64(r0)*row : int64(r1)*row])
}

func (s *stored) origin(int) string { return "" }
