package cpu

import (
	"errors"
	"fmt"

	"xlstm/format"
	"xlstm/kernels"
)

// state is one sequence's memory: for each block C [H, dk, dv], n [H, dk], m [H], in the order of State.Export.
type state struct {
	engine *Engine
	data   []float32
	next   []float32 // n and m of the block at work, [H, dk] and [H]: written beside the old ones, which other workers still read
}

// cell is one block's part of a state.
type cell struct{ c, n, m []float32 }

func (s *state) cell(cfg *format.Config, block int) cell {
	dk, dv, h := cfg.HeadQKDim(), cfg.HeadVDim(), cfg.NumHeads
	size := h * (dk*dv + dk + 1)
	d := s.data[block*size : (block+1)*size]
	return cell{c: d[:h*dk*dv], n: d[h*dk*dv : h*dk*dv+h*dk], m: d[h*dk*dv+h*dk:]}
}

// NewState makes one sequence's memory, zeroed: Config.StateFloats() float32 values.
func (e *Engine) NewState() (kernels.State, error) {
	h := e.cfg.NumHeads
	return &state{
		engine: e,
		data:   make([]float32, e.cfg.StateFloats()),
		next:   make([]float32, h*e.cfg.HeadQKDim()+h),
	}, nil
}

func (s *state) CopyFrom(src kernels.State) error {
	o, ok := src.(*state)
	if !ok || o.engine != s.engine {
		return errors.New("copy state: the states are of different engines")
	}
	copy(s.data, o.data)
	return nil
}

func (s *state) Reset() error {
	clear(s.data)
	return nil
}

func (s *state) Export(dst []float32) error {
	if len(dst) != len(s.data) {
		return fmt.Errorf("export state: %d values given, expected %d", len(dst), len(s.data))
	}
	copy(dst, s.data)
	return nil
}

func (s *state) Import(src []float32) error {
	if len(src) != len(s.data) {
		return fmt.Errorf("import state: %d values given, expected %d", len(src), len(s.data))
	}
	copy(s.data, src)
	return nil
}

func (s *state) Close() error { return nil }
