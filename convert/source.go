// Package convert turns checkpoints into .xlstm files: it folds norm weights, caps and scales into the matrices, fuses those that
// read the same input, optionally rotates, and streams the result through an encoder into a format.Writer. It also encodes the
// tensors of a file anew. docs/FORMAT.md says what folds into what.
package convert

import (
	"context"
	"errors"
	"fmt"

	"xlstm/format"
)

// Source is a model's weights in float32, as the tensors of a file: folded and fused, not yet encoded. It is safe for concurrent
// use, and reads lazily from what it was made of, which must stay open.
type Source struct {
	config     format.Config
	tokenizer  []byte // compiled
	tensors    map[string]tensor
	provenance format.Provenance
	// hash computes the SHA-256 of the source's files. nil where provenance is complete without.
	hash func(ctx context.Context, progress func(done int64)) ([]format.SourceFile, error)
}

// tensor is one tensor of a file, computed as it is read.
type tensor interface {
	// read computes rows r0 to r1-1 into dst, (r1-r0)*cols long.
	read(dst []float32, r0, r1 int) error
	// release lets memory go that reading these rows occupied.
	release(r0, r1 int) error
	// step is the number of rows that are computed together: reads that begin at multiples of it and are multiples of it long,
	// or end with the tensor, waste nothing.
	step() int
	// origin names where a row comes from, for errors.
	origin(row int) string
}

// Config describes the model.
func (s *Source) Config() *format.Config { return &s.config }

// Tokenizer is the compiled tokenizer, nil where there is none.
func (s *Source) Tokenizer() []byte { return s.tokenizer }

// Tensors lists the tensors and their shapes in the order of a file, as fp32.
func (s *Source) Tensors() []format.TensorSpec { return format.Specs(&s.config, fp32) }

func fp32(string) format.Encoding { return format.Encoding{Kind: format.FP32} }

// Tensor finds a tensor by its name in a file.
func (s *Source) Tensor(name string) (Tensor, bool) {
	t, ok := s.tensors[name]
	if !ok {
		return Tensor{}, false
	}
	for _, spec := range s.Tensors() {
		if spec.Name == name {
			return Tensor{spec, t}, true
		}
	}
	return Tensor{}, false
}

// Tensor reads one tensor of a Source.
type Tensor struct {
	spec format.TensorSpec
	t    tensor
}

// Rows is the number of rows: 1 for a vector.
func (t Tensor) Rows() int { return t.spec.Rows }

// Cols is the number of values in a row.
func (t Tensor) Cols() int { return t.spec.Cols }

// Step is the number of rows whose multiples ReadRows computes without waste.
func (t Tensor) Step() int { return t.t.step() }

// ReadRows computes rows r0 to r1-1 into dst, which must be (r1-r0)*Cols() long, and lets the checkpoint's memory go.
func (t Tensor) ReadRows(dst []float32, r0, r1 int) error {
	if r0 < 0 || r1 < r0 || r1 > t.spec.Rows || len(dst) != (r1-r0)*t.spec.Cols {
		return fmt.Errorf("tensor %s: %d values for rows %d to %d of %d x %d", t.spec.Name, len(dst), r0, r1, t.spec.Rows, t.spec.Cols)
	}
	if err := t.t.read(dst, r0, r1); err != nil {
		return fmt.Errorf("tensor %s: %w", t.spec.Name, err)
	}
	if err := t.t.release(r0, r1); err != nil {
		return fmt.Errorf("tensor %s: %w", t.spec.Name, err)
	}
	return nil
}

var errNoRotation = errors.New("it was rotated when it was made, and rotating it again would lose the first rotation's seed")
