//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"unsafe"

	"gorgonia.org/cu"

	"xlstm/kernels"
	"xlstm/kernels/cuda/internal/driver"
)

// state implements kernels.State. Its copies run on a stream of their own; Forward ends only when its own work has.
type state struct {
	e  *Engine
	at cu.DevicePtr // 0 once closed
}

var errClosed = errors.New("the state is closed")

// NewState implements kernels.Engine.
func (e *Engine) NewState() (kernels.State, error) {
	s := &state{e: e}
	err := e.with(func() error {
		p, err := cu.MemAlloc(e.shape.bytes())
		if err != nil {
			free, total, _ := cu.MemInfo()
			return fmt.Errorf("new state on %s: %.3f GB are needed, %.2f of %.2f GB are free: %w", e.name, gb(e.shape.bytes()), gb(free), gb(total), err)
		}
		s.at = p
		return e.zero(p)
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// with runs f on a thread of the engine's context, one at a time.
func (e *Engine) with(f func() error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	undo, err := e.bind()
	if err != nil {
		return err
	}
	defer undo()
	return f()
}

func (e *Engine) zero(p cu.DevicePtr) error {
	if err := cu.MemsetD32Async(p, 0, e.shape.bytes()/4, e.copies); err != nil {
		return err
	}
	return driver.Sync(e.copies)
}

func (s *state) use(what string, f func() error) error {
	err := s.e.with(func() error {
		if s.at == 0 {
			return errClosed
		}
		return f()
	})
	if err != nil {
		return fmt.Errorf("%s state on %s: %w", what, s.e.name, err)
	}
	return nil
}

// CopyFrom implements kernels.State.
func (s *state) CopyFrom(src kernels.State) error {
	return s.use("copy", func() error {
		o, ok := src.(*state)
		if !ok || o.e != s.e {
			return errors.New("the source is of another engine")
		}
		if o.at == 0 {
			return errClosed
		}
		if err := cu.MemcpyDtoDAsync(s.at, o.at, s.e.shape.bytes(), s.e.copies); err != nil {
			return err
		}
		return driver.Sync(s.e.copies)
	})
}

// Reset implements kernels.State.
func (s *state) Reset() error { return s.use("reset", func() error { return s.e.zero(s.at) }) }

// Export implements kernels.State.
func (s *state) Export(dst []float32) error {
	return s.use("export", func() error { return s.move(dst, false) })
}

// Import implements kernels.State.
func (s *state) Import(src []float32) error {
	return s.use("import", func() error { return s.move(src, true) })
}

func (s *state) move(flat []float32, in bool) error {
	e, h := s.e, &s.e.shape
	if len(flat) != e.cfg.StateFloats() {
		return fmt.Errorf("%d values, expected %d", len(flat), e.cfg.StateFloats())
	}
	bytes := int64(len(flat)) * 4
	buf, err := cu.MemAlloc(bytes)
	if err != nil {
		return err
	}
	defer cu.MemFree(buf)
	a := stateArgs{state: uint64(s.at), flat: uint64(buf), blocks: int32(h.blocks), heads: int32(h.heads), dk: int32(h.dk), dv: int32(h.dv),
		slices: int32(h.slices), stateType: int32(h.kind)}
	host := unsafe.Pointer(unsafe.SliceData(flat))
	if in {
		a.imp = 1
		if err := cu.MemcpyHtoDAsync(buf, host, bytes, e.copies); err != nil {
			return err
		}
	}
	if err := driver.Launch(e.fn["state_copy"], driver.Grid{X: h.records(), Y: 1, Z: 1}, 256, 0, e.copies, unsafe.Pointer(&a), false); err != nil {
		return err
	}
	if err := driver.Sync(e.copies); err != nil {
		return err
	}
	if !in {
		return cu.MemcpyDtoH(host, buf, bytes)
	}
	return nil
}

// Close implements kernels.State.
func (s *state) Close() error {
	return s.use("close", func() error {
		p := s.at
		s.at = 0
		return cu.MemFree(p)
	})
}
