package simd

import (
	"encoding/binary"
	"runtime"

	"xlstm/format"
)

// genericPath is the implementation in plain Go.
func genericPath() *Path {
	p := &Path{
		name:          "generic",
		eights:        func(format.Encoding) func(*eightArgs) { return nil },
		words:         rounder[int16]{wordMax, genericMaxAbs, genericRound[int16]},
		bytes:         rounder[int8]{byteMax, genericMaxAbs, genericRound[int8]},
		permute:       genericPermute,
		scales:        genericScales,
		scalesOffsets: genericScalesOffsets,
		tileRows:      genericRows,
		floatTiles:    []tileKernel{{2, genericFloatTile2}, {1, genericFloatTile1}},
		exactTiles:    []tileKernel{{2, genericFloatTile2}, {1, genericFloatTile1}},
		wordTiles:     []tileKernel{{1, genericWordTile1}},
		byteTiles:     []tileKernel{{1, genericByteTile1}},
		transpose:     genericTranspose,
		streamRead:    genericStreamRead,
		peakFloat:     func(n int) { runtime.KeepAlive(genericPeak(n)) },
		peakWords:     func(n int) { runtime.KeepAlive(genericPeakInt(n)) },
		peakBytes:     func(n int) { runtime.KeepAlive(genericPeakInt(n)) },
		vectorOps:     genericVectorOps,
	}
	p.dots[format.FP32] = []dotKernel{{n: 1, run: genericDotF32}}
	p.dots[format.FP16] = []dotKernel{{n: 1, run: genericDotF16}}
	p.dots[format.BF16] = []dotKernel{{n: 1, run: genericDotBF16}}
	p.dots[format.Int8] = []dotKernel{{n: 1, run: genericDotI8}}
	p.dots[format.Int4] = []dotKernel{{n: 1, run: genericDotI4}}
	p.widen[format.FP32] = genericWidenF32
	p.widen[format.FP16] = genericWidenF16
	p.widen[format.BF16] = genericWidenBF16
	p.widen[format.Int8] = genericWidenI8
	p.widen[format.Int4] = genericWidenI4
	return p
}

// StreamRead reads every byte of b once, as fast as memory gives them, and returns a sum over them: the yardstick of kernels
// that are bound by memory.
func StreamRead(b []byte) uint64 { return active.streamRead(b) }

func genericStreamRead(b []byte) uint64 {
	var s0, s1, s2, s3 uint64
	for ; len(b) >= 32; b = b[32:] {
		s0 += binary.LittleEndian.Uint64(b)
		s1 += binary.LittleEndian.Uint64(b[8:])
		s2 += binary.LittleEndian.Uint64(b[16:])
		s3 += binary.LittleEndian.Uint64(b[24:])
	}
	for _, v := range b {
		s0 += uint64(v)
	}
	return s0 + s1 + s2 + s3
}
