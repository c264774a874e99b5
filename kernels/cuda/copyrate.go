//go:build cuda

package cuda

import (
	"context"
	"fmt"
	"time"

	"gorgonia.org/cu"

	"xlstm/kernels/cuda/internal/driver"
)

// copyBytes is the size of the buffers that CopyRate copies between: several times the largest cache of a card.
const copyBytes = 512 << 20

// CopyRate is the rate at which the device copies its own memory, for at least the given time, in bytes a second: bytes read and
// bytes written. It is what streaming on this card can reach, and takes 1 GiB of device memory while it runs.
func (e *Engine) CopyRate(ctx context.Context, least time.Duration) (float64, error) {
	undo, err := e.bind()
	if err != nil {
		return 0, err
	}
	defer undo()
	rate, err := e.copyRate(ctx, least)
	if err != nil {
		return 0, fmt.Errorf("copy rate of %s: %w", e.name, err)
	}
	return rate, nil
}

func (e *Engine) copyRate(ctx context.Context, least time.Duration) (float64, error) {
	buf, err := cu.MemAlloc(2 * copyBytes)
	if err != nil {
		return 0, err
	}
	defer cu.MemFree(buf)
	if err := driver.Sync(e.stream); err != nil {
		return 0, err
	}
	const run = 16 // copies between two looks at the clock
	start, bytes := time.Now(), 0.0
	for bytes == 0 || time.Since(start) < least {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		for range run {
			if err := cu.MemcpyDtoDAsync(buf, cu.DevicePtr(uintptr(buf)+copyBytes), copyBytes, e.copies); err != nil {
				return 0, err
			}
		}
		if err := driver.Sync(e.copies); err != nil {
			return 0, err
		}
		bytes += run * 2 * copyBytes
	}
	return bytes / time.Since(start).Seconds(), nil
}
