//go:build cuda

// Package driver has what gorgonia.org/cu lacks of the CUDA driver: launches with attributes and any arguments, graphs captured
// from a stream, more than 48 KB of shared memory, pinned host memory, whole error texts, and cuBLASLt where it is found.
package driver

/*
#include <cuda.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static CUresult xl_launch(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned shared, CUstream s, void *args, int pdl) {
	void *params[1] = {args};
	CUlaunchAttribute at[1];
	CUlaunchConfig c = {0};
	c.gridDimX = gx; c.gridDimY = gy; c.gridDimZ = gz;
	c.blockDimX = bx; c.blockDimY = 1; c.blockDimZ = 1;
	c.sharedMemBytes = shared; c.hStream = s; c.attrs = at;
	if (pdl) {
		at[0].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
		at[0].value.programmaticStreamSerializationAllowed = 1;
		c.numAttrs = 1;
	}
	return cuLaunchKernelEx(&c, f, params, NULL);
}

// The flags argument of the plain name has changed its type between toolkits; this form has not.
static CUresult xl_instantiate(CUgraphExec *e, CUgraph g) { return cuGraphInstantiateWithFlags(e, g, 0); }

// A map of a matrix of bytes or fp16; out has 128 bytes. Boxes' rows of 64 or 128 bytes are swizzled by as much.
static CUresult xl_map(void *out, int half, uint64_t at, uint64_t cols, uint64_t rows, uint64_t stride, unsigned boxCols, unsigned boxRows) {
	CUtensorMap m; // aligned as the call wants it
	cuuint64_t size[2] = {cols, rows}, strides[1] = {stride};
	cuuint32_t box[2] = {boxCols, boxRows}, steps[2] = {1, 1};
	CUresult r = cuTensorMapEncodeTiled(&m, half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, (void *)at, size, strides, box, steps,
		CU_TENSOR_MAP_INTERLEAVE_NONE, boxCols << half == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
		CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
	if (!r) memcpy(out, &m, sizeof m);
	return r;
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"gorgonia.org/cu"
)

// Error is a failed call of the driver.
type Error struct {
	Call string
	Code int
	Text string
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s (CUDA error %d)", e.Call, e.Text, e.Code) }

func check(call string, r C.CUresult) error {
	if r == C.CUDA_SUCCESS {
		return nil
	}
	var text *C.char
	s := "unknown error"
	if C.cuGetErrorString(r, &text) == C.CUDA_SUCCESS && text != nil {
		s = C.GoString(text)
	}
	return &Error{Call: call, Code: int(r), Text: s}
}

func init() {
	// The handles of gorgonia.org/cu are structs of one pointer; function and stream below rely on it.
	if unsafe.Sizeof(cu.Function{}) != unsafe.Sizeof(C.CUfunction(nil)) || unsafe.Sizeof(cu.Stream{}) != unsafe.Sizeof(C.CUstream(nil)) {
		panic("driver: gorgonia.org/cu has changed its handles")
	}
}

func function(f cu.Function) C.CUfunction { return *(*C.CUfunction)(unsafe.Pointer(&f)) }
func stream(s cu.Stream) C.CUstream       { return *(*C.CUstream)(unsafe.Pointer(&s)) }

// Grid is the number of thread blocks in each dimension.
type Grid struct{ X, Y, Z int }

// Launch runs f with one argument, the struct that args points to. With early set it may start before the kernel before it has
// ended, and waits for its results itself (programmatic dependent launch).
func Launch(f cu.Function, g Grid, threads, shared int, s cu.Stream, args unsafe.Pointer, early bool) error {
	pdl := C.int(0)
	if early {
		pdl = 1
	}
	return check("cuLaunchKernelEx", C.xl_launch(function(f), C.uint(g.X), C.uint(g.Y), C.uint(g.Z), C.uint(threads), C.uint(shared), stream(s), args, pdl))
}

// Map describes a matrix in memory to the device's copy engine, which brings boxes of it to shared memory, in rows of 64 or 128 bytes
// that are swizzled. What a box has outside of the matrix becomes zero.
type Map struct {
	At               uint64
	Half             bool // values are fp16, else bytes
	Cols, Rows       int  // in values
	RowBytes         int  // from row to row, a multiple of 16 as At is
	BoxCols, BoxRows int
}

// Encode makes what a kernel's arguments hold of the map.
func (m *Map) Encode() ([128]byte, error) {
	var out [128]byte
	half := C.int(0)
	if m.Half {
		half = 1
	}
	r := C.xl_map(unsafe.Pointer(&out), half, C.uint64_t(m.At), C.uint64_t(m.Cols), C.uint64_t(m.Rows), C.uint64_t(m.RowBytes), C.unsigned(m.BoxCols), C.unsigned(m.BoxRows))
	return out, check("cuTensorMapEncodeTiled", r)
}

// AllowShared lets f use up to n bytes of dynamic shared memory.
func AllowShared(f cu.Function, n int) error {
	return check("cuFuncSetAttribute", C.cuFuncSetAttribute(function(f), C.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, C.int(n)))
}

// PreferShared asks for all of a multiprocessor's fast memory to be shared memory while f runs. Kernels of different preferences
// cannot overlap: a multiprocessor has to be empty to change it.
func PreferShared(f cu.Function) error {
	return check("cuFuncSetAttribute", C.cuFuncSetAttribute(function(f), C.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100))
}

// Graph is a captured sequence of launches.
type Graph struct{ exec C.CUgraphExec }

// Capture records what body submits to s as a graph, without running it.
func Capture(s cu.Stream, body func() error) (*Graph, error) {
	if err := check("cuStreamBeginCapture", C.cuStreamBeginCapture(stream(s), C.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)); err != nil {
		return nil, err
	}
	bodyErr := body()
	var g C.CUgraph
	err := check("cuStreamEndCapture", C.cuStreamEndCapture(stream(s), &g))
	if g != nil {
		defer C.cuGraphDestroy(g)
	}
	if bodyErr != nil {
		return nil, bodyErr
	}
	if err != nil {
		return nil, err
	}
	out := &Graph{}
	if err := check("cuGraphInstantiate", C.xl_instantiate(&out.exec, g)); err != nil {
		return nil, err
	}
	return out, nil
}

// Launch submits the graph to s.
func (g *Graph) Launch(s cu.Stream) error {
	return check("cuGraphLaunch", C.cuGraphLaunch(g.exec, stream(s)))
}

// Close frees the graph.
func (g *Graph) Close() error { return check("cuGraphExecDestroy", C.cuGraphExecDestroy(g.exec)) }

// HostAlloc gives n bytes of pinned memory, which copies to and from the device reach without a detour.
func HostAlloc(n int) ([]byte, error) {
	var p unsafe.Pointer
	if err := check("cuMemHostAlloc", C.cuMemHostAlloc(&p, C.size_t(n), 0)); err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(p), n), nil
}

// HostFree frees what HostAlloc gave.
func HostFree(b []byte) error {
	return check("cuMemFreeHost", C.cuMemFreeHost(unsafe.Pointer(unsafe.SliceData(b))))
}

// Query reports whether s has finished everything submitted to it, and the error of anything in it that failed.
func Query(s cu.Stream) (bool, error) {
	r := C.cuStreamQuery(stream(s))
	if r == C.CUDA_ERROR_NOT_READY {
		return false, nil
	}
	return r == C.CUDA_SUCCESS, check("cuStreamQuery", r)
}

// Sync waits for everything submitted to s.
func Sync(s cu.Stream) error { return check("cuStreamSynchronize", C.cuStreamSynchronize(stream(s))) }
