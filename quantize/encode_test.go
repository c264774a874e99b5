package quantize

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"xlstm/format"
)

var allEncodings = []string{
	"fp32", "fp16", "bf16", "int8", "int8g32", "int8g64", "int8g128",
	"int4g32", "int4g64", "int4g128", "int4g32a", "int4g64a", "int4g128a",
}

func mustParse(t testing.TB, s string) format.Encoding {
	t.Helper()
	e, err := format.ParseEncoding(s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// encodeDecode returns what x becomes.
func encodeDecode(t testing.TB, enc format.Encoding, x []float32, rows, cols int, opt Options) []float32 {
	t.Helper()
	dst := MakeRows(enc, rows, cols)
	if err := EncodeRows(dst, enc, x, rows, cols, opt); err != nil {
		t.Fatal(err)
	}
	y := make([]float32, len(x))
	if err := DecodeRows(y, enc, dst, rows, cols); err != nil {
		t.Fatal(err)
	}
	return y
}

func gaussian(seed uint64, n int, sigma float64) []float32 {
	rng := rand.New(rand.NewPCG(seed, 1))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64() * sigma)
	}
	return x
}

// representable makes values that the encoding holds exactly, each group using its whole range of codes.
func representable(rng *rand.Rand, enc format.Encoding, cols int) []float32 {
	x := make([]float32, cols)
	group := groupOf(enc, cols)
	for c := 0; c < cols; c += group {
		g := x[c:min(c+group, cols)]
		scale := float32(1+rng.IntN(1<<11)) * 0x1p-16
		lo, hi, m := -127, 127, float32(0)
		if enc.Kind == format.Int4 {
			lo, hi = -8, 7
			if enc.Asymmetric {
				lo, hi, m = 0, 15, float32(rng.IntN(1<<11)-1<<10)*0x1p-14
			} else if rng.IntN(2) == 0 {
				scale = -scale
			}
		}
		for i := range g {
			q := lo + rng.IntN(hi-lo+1)
			switch i {
			case 0:
				q = lo
			case 1:
				q = hi
			}
			g[i] = float32(q)*scale + m
			switch enc.Kind {
			case format.FP32, format.FP16, format.BF16:
				g[i] = float32(q) * 0x1p-20
			}
		}
	}
	return x
}

func TestRepresentableIsExact(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, name := range allEncodings {
		enc := mustParse(t, name)
		for _, mode := range []ScaleMode{MaxOnly, LeastSquares} {
			for _, cols := range []int{2, 31, 32, 33, 64, 100, 130, 256, 1000} {
				if enc.Group > 0 && cols%enc.Group == 1 {
					continue // a group of one value does not use its whole range
				}
				x := representable(rng, enc, cols)
				y := encodeDecode(t, enc, x, 1, cols, Options{Scale: mode})
				for i := range x {
					if x[i] != y[i] {
						t.Fatalf("%s, mode %d, %d columns: value %d, %v, became %v", name, mode, cols, i, x[i], y[i])
					}
				}
			}
		}
	}
}

// errorBound is the largest error that plain encoding of group g may make.
func errorBound(enc format.Encoding, g []float32, src Rows, i int) float64 {
	top := float64(absMax(g))
	switch enc.Kind {
	case format.FP32:
		return 0
	case format.FP16:
		return max(top*0x1p-11, 0x1p-25)
	case format.BF16:
		return max(top*0x1p-8, 0x1p-134)
	}
	p := loadParams(enc, src, i)
	return math.Abs(float64(p.scale))/2*(1+1e-5) + 1e-6*top
}

func TestPlainErrorBound(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, name := range allEncodings {
		enc := mustParse(t, name)
		for trial := range 300 {
			cols := 1 + rng.IntN(300)
			x := gaussian(uint64(trial), cols, math.Exp(6*rng.NormFloat64()-4))
			shift := float32(rng.NormFloat64()) * x[0]
			for i := range x {
				if x[i] += shift; math.Abs(float64(x[i])) > 60000 {
					x[i] = 60000
				}
			}
			src := MakeRows(enc, 1, cols)
			if err := EncodeRows(src, enc, x, 1, cols, Options{}); err != nil {
				t.Fatal(err)
			}
			y := make([]float32, cols)
			if err := DecodeRows(y, enc, src, 1, cols); err != nil {
				t.Fatal(err)
			}
			group := groupOf(enc, cols)
			for g, c := 0, 0; c < cols; g, c = g+1, c+group {
				end := min(c+group, cols)
				bound := errorBound(enc, x[c:end], src, g)
				for i := c; i < end; i++ {
					if d := math.Abs(float64(x[i]) - float64(y[i])); d > bound {
						t.Fatalf("%s, trial %d: value %d, %v, became %v: error %v, bound %v", name, trial, i, x[i], y[i], d, bound)
					}
				}
			}
		}
	}
}

// The scale itself must not be wasteful: the bound above would hold for any scale that is large enough.
func TestPlainScaleIsSmallest(t *testing.T) {
	x := gaussian(7, 64, 1)
	for name, want := range map[string]float64{"int8g64": 127, "int4g64": 7, "int4g64a": 15} {
		enc := mustParse(t, name)
		src := MakeRows(enc, 1, 64)
		if err := EncodeRows(src, enc, x, 1, 64, Options{}); err != nil {
			t.Fatal(err)
		}
		lo, hi := minMax(x)
		limit := float64(absMax(x)) / want
		if enc.Asymmetric {
			limit = float64(hi-lo) / want
		}
		if s := math.Abs(float64(loadParams(enc, src, 0).scale)); s > limit*1.002 {
			t.Errorf("%s: scale %v, expected at most %v", name, s, limit)
		}
	}
}

func TestEdgeGroups(t *testing.T) {
	tiny := math.Float32frombits(1)
	for _, tc := range []struct {
		name  string
		x     []float32
		exact bool
		bound float64
	}{
		{"zeros", make([]float32, 200), true, 0},
		{"one zero", []float32{0}, true, 0},
		{"negative zero", []float32{float32(math.Copysign(0, -1)), 1, -1}, false, 0.1},
		{"one value", []float32{0.5}, false, 0x1p-12},
		{"constant", []float32{0.25, 0.25, 0.25, 0.25}, false, 0x1p-13},
		{"shorter than a group", []float32{-1, 1, 0, 0.5}, false, 0.072},
		{"zero group among others", append(make([]float32, 128), 1, -1), false, 0.07},
		{"subnormal scale", []float32{0x1p-24, -0x1p-24, 0x1p-23}, false, 0x1p-25},
		{"below every fp16 scale", []float32{0x1p-30, -0x1p-31}, false, 0x1p-25},
		{"float32 subnormals", []float32{tiny, -5 * tiny, 127 * tiny}, false, 0x1p-100},
	} {
		for _, name := range allEncodings {
			enc := mustParse(t, name)
			for _, mode := range []ScaleMode{MaxOnly, LeastSquares} {
				y := encodeDecode(t, enc, tc.x, 1, len(tc.x), Options{Scale: mode})
				bound := tc.bound
				if tc.exact {
					bound = 0
				}
				for i, v := range tc.x {
					if d := math.Abs(float64(y[i]) - float64(v)); !(d <= bound) && !(enc.Kind == format.FP32 && d == 0) {
						t.Errorf("%s, %s, mode %d: value %d, %v, became %v", tc.name, name, mode, i, v, y[i])
					}
				}
			}
		}
	}
	// One scale a row is float32: subnormal weights are held as well as any others.
	x := []float32{tiny, -5 * tiny, 127 * tiny}
	for i, v := range encodeDecode(t, mustParse(t, "int8"), x, 1, 3, Options{}) {
		if v != x[i] {
			t.Errorf("int8: subnormal %v became %v", x[i], v)
		}
	}
}

func TestEncodeErrors(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	big := make([]float32, 200)
	big[130] = 1e9
	low := make([]float32, 200)
	low[5] = -70000
	for _, tc := range []struct {
		name, encs string
		x          []float32
		cols       int
		opt        Options
		want       string
	}{
		{"nan", strings.Join(allEncodings, " "), []float32{1, 2, 3, 4, 5, nan}, 3, Options{FirstRow: 7}, "row 8, column 2: weight is NaN, expected a finite number"},
		{"inf", strings.Join(allEncodings, " "), []float32{1, -inf}, 1, Options{}, "row 1, column 0: weight is -Inf"},
		{"fp16 value", "fp16", []float32{0, 65520}, 2, Options{}, "row 0, column 1: 65520 does not fit fp16"},
		{"bf16 value", "bf16", []float32{math.MaxFloat32}, 1, Options{}, "row 0, column 0: 3.4028235e+38 does not fit bf16"},
		{"fp16 scale", "int8g64 int4g64 int4g64a", big, 200, Options{}, "row 0, columns 128 to 191: scale "},
		{"fp16 scale of a short group", "int8g128 int4g128", big, 200, Options{}, "row 0, columns 128 to 199: scale "},
		{"fp16 minimum", "int4g32a int4g64a", low, 200, Options{}, "minimum -70000 does not fit fp16"},
		{"sizes", "int8 int4g64", []float32{1, 2, 3}, 2, Options{}, "3 values, expected 1 x 2"},
		{"weights", "int8 int4g64", []float32{1, 2}, 2, Options{Weights: []float32{1}}, "1 column weights for 2 columns"},
		{"weight value", "int8", []float32{1, 2}, 2, Options{Weights: []float32{1, nan}}, "weight of column 1 is NaN"},
		{"weight sign", "int8", []float32{1, 2}, 2, Options{Weights: []float32{-1, 1}}, "weight of column 0 is -1"},
	} {
		for _, name := range strings.Fields(tc.encs) {
			for _, mode := range []ScaleMode{MaxOnly, LeastSquares} {
				enc := mustParse(t, name)
				rows := len(tc.x) / tc.cols
				tc.opt.Scale = mode
				err := EncodeRows(MakeRows(enc, rows, tc.cols), enc, tc.x, rows, tc.cols, tc.opt)
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%s, %s: error %v, expected %q", tc.name, name, err, tc.want)
				}
				var ve *ValueError
				if strings.HasPrefix(tc.want, "row") && !errors.As(err, &ve) {
					t.Errorf("%s, %s: %v is no ValueError", tc.name, name, err)
				}
			}
		}
	}
	enc := mustParse(t, "int4g32a")
	short := MakeRows(enc, 1, 64)
	for i, r := range []Rows{{short.Values[1:], short.Scales, short.Mins}, {short.Values, nil, short.Mins}, {short.Values, short.Scales, short.Mins[:1]}} {
		if EncodeRows(r, enc, make([]float32, 64), 1, 64, Options{}) == nil || DecodeRows(make([]float32, 64), enc, r, 1, 64) == nil {
			t.Errorf("storage %d of the wrong size: no error", i)
		}
	}
	if EncodeRows(Rows{}, format.Encoding{Kind: 9}, nil, 0, 1, Options{}) == nil {
		t.Error("unknown encoding: no error")
	}
}

// The layout, decoded here once more from docs/FORMAT.md's words.
func TestLayout(t *testing.T) {
	const rows, cols = 3, 70
	x := gaussian(9, rows*cols, 1)
	for _, name := range []string{"int4g32", "int4g64", "int4g64a", "int4g128a", "int8", "int8g32"} {
		enc := mustParse(t, name)
		r := MakeRows(enc, rows, cols)
		if err := EncodeRows(r, enc, x, rows, cols, Options{}); err != nil {
			t.Fatal(err)
		}
		y := make([]float32, len(x))
		if err := DecodeRows(y, enc, r, rows, cols); err != nil {
			t.Fatal(err)
		}
		for i := range rows {
			for c := range 96 {
				var q, scale, low, pad float64
				if enc.Kind == format.Int8 {
					q = float64(int8(r.Values[i*96+c]))
				} else {
					b := r.Values[(i*96+c/32*32)/2+c%16]
					if q = float64(b & 15); c%32 >= 16 {
						q = float64(b >> 4)
					}
					pad = 8
				}
				if c >= cols {
					if q != pad {
						t.Fatalf("%s: padding holds %v, expected %v", name, q, pad)
					}
					continue
				}
				if enc.Group == 0 {
					scale = float64(math.Float32frombits(binary.LittleEndian.Uint32(r.Scales[4*i:])))
				} else {
					at := 2 * (i*((cols+enc.Group-1)/enc.Group) + c/enc.Group)
					scale = float64(FromFP16(binary.LittleEndian.Uint16(r.Scales[at:])))
					if enc.Asymmetric {
						low = float64(FromFP16(binary.LittleEndian.Uint16(r.Mins[at:])))
					}
				}
				if enc.Kind == format.Int4 && !enc.Asymmetric {
					q -= 8
				}
				if got := float64(y[i*cols+c]); math.Abs(got-(q*scale+low)) > 1e-6 {
					t.Fatalf("%s: row %d, column %d decodes to %v, expected %v", name, i, c, got, q*scale+low)
				}
			}
		}
	}
}

func TestRowsOf(t *testing.T) {
	for _, name := range allEncodings {
		enc := mustParse(t, name)
		data := make([]byte, enc.Sizes(5, 70).Total)
		r, err := RowsOf(data, enc, 5, 70)
		if err != nil {
			t.Fatal(err)
		}
		x := gaussian(11, 5*70, 1)
		if err := EncodeRows(r, enc, x, 5, 70, Options{}); err != nil {
			t.Fatal(err)
		}
		one := MakeRows(enc, 1, 70)
		if err := EncodeRows(one, enc, x[3*70:4*70], 1, 70, Options{}); err != nil {
			t.Fatal(err)
		}
		s := r.Slice(enc, 70, 3, 4)
		if !bytes.Equal(s.Values, one.Values) || !bytes.Equal(s.Scales, one.Scales) || !bytes.Equal(s.Mins, one.Mins) {
			t.Errorf("%s: row 3 differs from itself alone", name)
		}
		if _, err := RowsOf(data[1:], enc, 5, 70); err == nil {
			t.Errorf("%s: wrong size accepted", name)
		}
	}
}

func FuzzEncode(f *testing.F) {
	f.Add([]byte{0, 0, 128, 63, 0, 0, 0, 64}, uint8(0), uint8(1))
	f.Add(bytes.Repeat([]byte{1, 0, 0, 0, 255, 255, 127, 127}, 40), uint8(9), uint8(0))
	f.Add(bytes.Repeat([]byte{1, 200, 3, 51}, 70), uint8(12), uint8(3))
	f.Add([]byte{255, 255, 127, 127, 255, 255, 127, 255}, uint8(3), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, which, flags uint8) {
		enc := mustParse(t, allEncodings[int(which)%len(allEncodings)])
		x := make([]float32, min(len(data)/4, 400))
		if len(x) == 0 {
			return
		}
		opt := Options{Scale: ScaleMode(flags & 1)}
		if flags&2 != 0 {
			opt.Weights = make([]float32, len(x))
		}
		for i := range x {
			x[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
			if opt.Weights != nil {
				opt.Weights[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[len(data)-4-4*i:]) & 0x7f7fffff)
			}
		}
		r := MakeRows(enc, 1, len(x))
		err := EncodeRows(r, enc, x, 1, len(x), opt)
		var ve *ValueError
		if err != nil {
			if !errors.As(err, &ve) {
				t.Fatalf("unexpected error: %v", err)
			}
			return
		}
		if enc.Kind == format.FP32 {
			return
		}
		y := make([]float32, len(x))
		if err := DecodeRows(y, enc, r, 1, len(x)); err != nil {
			t.Fatal(err)
		}
		group := groupOf(enc, len(x))
		for g, c := 0, 0; c < len(x); g, c = g+1, c+group {
			top := float64(absMax(x[c:min(c+group, len(x))]))
			for i := c; i < min(c+group, len(x)); i++ {
				// Searched and weighted scales may clip anything to anywhere within reach; plain ones may not.
				d := math.Abs(float64(y[i]) - float64(x[i]))
				if limit := 2*top + 0x1p-24; !(d <= limit) {
					t.Fatalf("%s: %v became %v", enc, x[i], y[i])
				}
				if bound := errorBound(enc, x[c:min(c+group, len(x))], r, g); opt.Scale == MaxOnly && d > bound {
					t.Fatalf("%s: %v became %v, error bound %v", enc, x[i], y[i], bound)
				}
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	const rows, cols = 16, 4096
	x := gaussian(1, rows*cols, 0.02)
	for _, mode := range []ScaleMode{MaxOnly, LeastSquares} {
		for _, name := range allEncodings[1:] {
			enc := mustParse(b, name)
			if mode == LeastSquares && enc.Kind != format.Int8 && enc.Kind != format.Int4 {
				continue
			}
			b.Run(fmt.Sprintf("%s/mode%d", name, mode), func(b *testing.B) {
				dst := MakeRows(enc, rows, cols)
				b.SetBytes(4 * rows * cols)
				for b.Loop() {
					if err := EncodeRows(dst, enc, x, rows, cols, Options{Scale: mode}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	const rows, cols = 16, 4096
	x := gaussian(1, rows*cols, 0.02)
	for _, name := range allEncodings {
		enc := mustParse(b, name)
		b.Run(name, func(b *testing.B) {
			src := MakeRows(enc, rows, cols)
			if err := EncodeRows(src, enc, x, rows, cols, Options{}); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(4 * rows * cols)
			for b.Loop() {
				if err := DecodeRows(x, enc, src, rows, cols); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
