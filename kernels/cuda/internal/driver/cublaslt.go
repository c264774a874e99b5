//go:build cuda

package driver

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// What is used of cuBLASLt, declared here so that building needs none of its headers: handles are opaque pointers, enums are ints.
typedef struct { uint64_t data[8]; } lt_algo;
typedef struct { lt_algo algo; size_t workspace; int state; float waves; int reserved[4]; } lt_heuristic;

static struct {
	int (*create)(void **);
	int (*destroy)(void *);
	int (*descCreate)(void **, int, int);
	int (*descSet)(void *, int, const void *, size_t);
	int (*descDestroy)(void *);
	int (*layoutCreate)(void **, int, uint64_t, uint64_t, int64_t);
	int (*layoutDestroy)(void *);
	int (*prefCreate)(void **);
	int (*prefSet)(void *, int, const void *, size_t);
	int (*prefDestroy)(void *);
	int (*heuristic)(void *, void *, void *, void *, void *, void *, void *, int, lt_heuristic *, int *);
	int (*matmul)(void *, void *, const void *, const void *, void *, const void *, void *, const void *, const void *, void *, void *, void *, const lt_algo *, void *, size_t, void *);
	size_t (*version)(void);
} lt;

static int lt_load(const char *path) {
	void *h = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!h) return 0;
#define SYM(field, name) if (!(*(void **)&lt.field = dlsym(h, name))) return 0
	SYM(create, "cublasLtCreate");
	SYM(destroy, "cublasLtDestroy");
	SYM(descCreate, "cublasLtMatmulDescCreate");
	SYM(descSet, "cublasLtMatmulDescSetAttribute");
	SYM(descDestroy, "cublasLtMatmulDescDestroy");
	SYM(layoutCreate, "cublasLtMatrixLayoutCreate");
	SYM(layoutDestroy, "cublasLtMatrixLayoutDestroy");
	SYM(prefCreate, "cublasLtMatmulPreferenceCreate");
	SYM(prefSet, "cublasLtMatmulPreferenceSetAttribute");
	SYM(prefDestroy, "cublasLtMatmulPreferenceDestroy");
	SYM(heuristic, "cublasLtMatmulAlgoGetHeuristic");
	SYM(matmul, "cublasLtMatmul");
	SYM(version, "cublasLtGetVersion");
	return 1;
}
static int lt_create(void **h) { return lt.create(h); }
static int lt_destroy(void *h) { return lt.destroy(h); }
static size_t lt_version(void) { return lt.version(); }

enum { R32F = 0, R16F = 2, R8I = 3, R32I = 10, COMPUTE32F = 68, COMPUTE32I = 72, DESC_TRANSA = 3, PREF_MAX_WORKSPACE = 1 };

typedef struct { void *desc, *a, *b, *c; lt_heuristic found[8]; int count, ints; } lt_plan;

// Plan of D [m x n] = A^T [m x k] B [k x n] (+ D), column after column. Products of int8 are computed and scaled in int32.
static int lt_make(void *h, lt_plan *p, int in, int out, uint64_t m, uint64_t n, uint64_t k, int64_t lda, int64_t ldb, int64_t ldd, size_t workspace) {
	int r, one = 1;
	void *pref = NULL;
	memset(p, 0, sizeof *p);
	p->ints = in == R8I;
	if ((r = lt.descCreate(&p->desc, in == R8I ? COMPUTE32I : COMPUTE32F, in == R8I ? R32I : R32F))) return r;
	if ((r = lt.descSet(p->desc, DESC_TRANSA, &one, sizeof one))) return r;
	if ((r = lt.layoutCreate(&p->a, in, k, m, lda))) return r;
	if ((r = lt.layoutCreate(&p->b, in, k, n, ldb))) return r;
	if ((r = lt.layoutCreate(&p->c, out, m, n, ldd))) return r;
	if ((r = lt.prefCreate(&pref))) return r;
	r = lt.prefSet(pref, PREF_MAX_WORKSPACE, &workspace, sizeof workspace);
	if (!r) r = lt.heuristic(h, p->desc, p->a, p->b, p->c, p->c, pref, 8, p->found, &p->count);
	lt.prefDestroy(pref);
	return r;
}
static void lt_drop(lt_plan *p) {
	if (p->c) lt.layoutDestroy(p->c);
	if (p->b) lt.layoutDestroy(p->b);
	if (p->a) lt.layoutDestroy(p->a);
	if (p->desc) lt.descDestroy(p->desc);
}
static int lt_run(void *h, lt_plan *p, int algo, float alpha, float beta, uint64_t a, uint64_t b, uint64_t d, uint64_t ws, size_t workspace, void *stream) {
	int one = 1, zero = 0;
	if (p->ints) return lt.matmul(h, p->desc, &one, (void *)a, p->a, (void *)b, p->b, &zero, (void *)d, p->c, (void *)d, p->c, &p->found[algo].algo, (void *)ws, workspace, stream);
	return lt.matmul(h, p->desc, &alpha, (void *)a, p->a, (void *)b, p->b, &beta, (void *)d, p->c, (void *)d, p->c, &p->found[algo].algo, (void *)ws, workspace, stream);
}
*/
import "C"

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"unsafe"

	"gorgonia.org/cu"
)

// LtWorkspace is the scratch memory that products through cuBLASLt may use, in bytes.
const LtWorkspace = 8 << 20

// ErrNoLt says that cuBLASLt is not on this machine.
var ErrNoLt = errors.New("cuBLASLt was not found")

var loadLt = sync.OnceValue(func() bool {
	names := []string{"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"}
	dirs := []string{""}
	if d := os.Getenv("XLSTM_CUBLASLT_DIR"); d != "" {
		dirs = append([]string{d}, dirs...)
	}
	for _, d := range dirs {
		for _, n := range names {
			path := C.CString(filepath.Join(d, n))
			ok := C.lt_load(path)
			C.free(unsafe.Pointer(path))
			if ok != 0 {
				return true
			}
		}
	}
	return false
})

// Lt is a handle of cuBLASLt for one context.
type Lt struct {
	h     unsafe.Pointer
	plans map[ltKey]*ltPlan
}

type ltKey struct {
	f32, out32    bool
	int8          bool
	m, n, k       int
	lda, ldb, ldd int
}

type ltPlan struct {
	c     *C.lt_plan
	best  int
	tuned bool
}

// NewLt loads cuBLASLt, or returns ErrNoLt.
func NewLt() (*Lt, error) {
	if !loadLt() {
		return nil, ErrNoLt
	}
	l := &Lt{plans: map[ltKey]*ltPlan{}}
	if r := C.lt_create(&l.h); r != 0 {
		return nil, fmt.Errorf("cublasLtCreate: status %d", int(r))
	}
	return l, nil
}

// Version is cuBLASLt's, as it counts it: 13.0.2 is 130002.
func (l *Lt) Version() int { return int(C.lt_version()) }

// Product describes y [n, m] = alpha * x [n, k] W^T (+ y), W [m, k]; row lengths in values.
type Product struct {
	W, X, Y       uint64
	M, N, K       int
	LdW, LdX, LdY int
	F32           bool // W and X are float32, else fp16
	Int8          bool // W and X are int8 and y is int32; Alpha is 1, Add is not set
	Out32         bool // y is float32, else fp16
	Alpha         float32
	Add           bool
}

// Run submits the product, with the algorithm that Tune found fastest or else the one that cuBLASLt puts first.
func (l *Lt) Run(p *Product, workspace uint64, s cu.Stream) error {
	plan, err := l.plan(p)
	if err != nil {
		return err
	}
	return l.run(plan, plan.best, p, workspace, s)
}

// Can says whether cuBLASLt has an algorithm for the product.
func (l *Lt) Can(p *Product) bool {
	_, err := l.plan(p)
	return err == nil
}

// Tuned says whether Tune has seen p's shape.
func (l *Lt) Tuned(p *Product) bool {
	plan, err := l.plan(p)
	return err != nil || plan.tuned
}

// Tune measures the candidates for p's shape over rounds launches each and keeps the fastest. It overwrites y.
func (l *Lt) Tune(p *Product, workspace uint64, s cu.Stream, rounds int) error {
	plan, err := l.plan(p)
	if err != nil {
		return err
	}
	a, err := cu.MakeEvent(cu.DefaultEvent)
	if err != nil {
		return err
	}
	defer cu.DestroyEvent(&a)
	b, err := cu.MakeEvent(cu.DefaultEvent)
	if err != nil {
		return err
	}
	defer cu.DestroyEvent(&b)
	plan.tuned = true
	// Rounds over all candidates: the clock of a card under load wanders, and one that has its turn later must not pay for it.
	best := make([]float64, plan.c.count)
	for i := range best {
		best[i] = math.Inf(1)
		l.run(plan, i, p, workspace, s) // the first time loads code
	}
	for range rounds {
		for i := range best {
			if err := a.Record(s); err != nil {
				return err
			}
			if l.run(plan, i, p, workspace, s) != nil || l.run(plan, i, p, workspace, s) != nil {
				continue
			}
			if err := b.Record(s); err != nil {
				return err
			}
			if err := b.Synchronize(); err != nil {
				return err
			}
			ms, err := a.Elapsed(b)
			if err != nil {
				return err
			}
			best[i] = min(best[i], ms)
		}
	}
	plan.best = slices.Index(best, slices.Min(best))
	return nil
}

func (l *Lt) run(plan *ltPlan, algo int, p *Product, workspace uint64, s cu.Stream) error {
	beta := C.float(0)
	if p.Add {
		beta = 1
	}
	r := C.lt_run(l.h, plan.c, C.int(algo), C.float(p.Alpha), beta, C.uint64_t(p.W), C.uint64_t(p.X), C.uint64_t(p.Y), C.uint64_t(workspace), C.size_t(LtWorkspace), unsafe.Pointer(stream(s)))
	if r != 0 {
		return fmt.Errorf("cublasLtMatmul %dx%dx%d: status %d", p.M, p.N, p.K, int(r))
	}
	return nil
}

func (l *Lt) plan(p *Product) (*ltPlan, error) {
	key := ltKey{p.F32, p.Out32, p.Int8, p.M, p.N, p.K, p.LdW, p.LdX, p.LdY}
	if plan, ok := l.plans[key]; ok {
		return plan, nil
	}
	if len(l.plans) > 512 { // prompts of ever new lengths
		l.dropPlans()
	}
	plan := &ltPlan{c: (*C.lt_plan)(C.calloc(1, C.size_t(unsafe.Sizeof(C.lt_plan{}))))}
	in, out := C.int(C.R16F), C.int(C.R16F)
	if p.F32 {
		in = C.R32F
	}
	if p.Out32 {
		out = C.R32F
	}
	if p.Int8 {
		in, out = C.R8I, C.R32I
	}
	r := C.lt_make(l.h, plan.c, in, out, C.uint64_t(p.M), C.uint64_t(p.N), C.uint64_t(p.K), C.int64_t(p.LdW), C.int64_t(p.LdX), C.int64_t(p.LdY), C.size_t(LtWorkspace))
	if r != 0 || plan.c.count == 0 {
		C.lt_drop(plan.c)
		C.free(unsafe.Pointer(plan.c))
		return nil, fmt.Errorf("cuBLASLt has no algorithm for %dx%dx%d: status %d", p.M, p.N, p.K, int(r))
	}
	l.plans[key] = plan
	return plan, nil
}

func (l *Lt) dropPlans() {
	for k, p := range l.plans {
		C.lt_drop(p.c)
		C.free(unsafe.Pointer(p.c))
		delete(l.plans, k)
	}
}

// Close frees the handle.
func (l *Lt) Close() error {
	l.dropPlans()
	if r := C.lt_destroy(l.h); r != 0 {
		return fmt.Errorf("cublasLtDestroy: status %d", int(r))
	}
	return nil
}
