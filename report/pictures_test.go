package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/plot/vg"
)

// TestExtremes draws what stretches or collapses axes.
func TestExtremes(t *testing.T) {
	for name, change := range map[string]func(d *Data){
		"all exact":       func(d *Data) { each(d, func(f *File) { f.MeanKL = 0 }) },
		"one exact":       func(d *Data) { d.Files[0].MeanKL = 0 },
		"at a power":      func(d *Data) { each(d, func(f *File) { f.MeanKL = 1e-3 }) },
		"far apart":       func(d *Data) { d.Files[0].MeanKL, d.Files[1].MeanKL = 1e-11, 1e300 },
		"empty files":     func(d *Data) { each(d, func(f *File) { f.Size = 0 }) },
		"huge files":      func(d *Data) { each(d, func(f *File) { f.Size = math.MaxInt64 }) },
		"tiny errors":     func(d *Data) { each(d, func(f *File) { f.Errors = sampleErrors(1, 5e-324) }) },
		"large errors":    func(d *Data) { each(d, func(f *File) { f.Errors = sampleErrors(3, 1e300) }) },
		"many blocks":     func(d *Data) { each(d, func(f *File) { f.Errors = sampleErrors(100, 1e-3) }) },
		"no blocks":       func(d *Data) { each(d, func(f *File) { f.Errors = &Errors{} }) },
		"a missing block": func(d *Data) { e := d.Files[0].Errors; e.Tensors, e.Blocks = e.Tensors[3:], e.Blocks[1:] },
		"many kinds": func(d *Data) {
			for i := range 20 {
				e := d.Files[0].Errors
				e.Tensors = append(e.Tensors, TensorError{Kind: fmt.Sprint("kind", i), Error: Error{1, 1, 1}})
			}
		},
		"one place": func(d *Data) {
			for i := range 60 {
				f := d.Files[0]
				f.Name = fmt.Sprintf("a file with a long name, number %d", i)
				d.Files = append(d.Files, f)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := sample(3, "int8", "int4")
			change(d)
			page := render(t, d)
			for _, no := range []string{"NaN", "Inf", "e+308"} {
				if strings.Contains(page, no) {
					t.Errorf("the report has %q", no)
				}
			}
			elements(t, page)
		})
	}
}

func each(d *Data, f func(*File)) {
	for i := range d.Files {
		f(&d.Files[i])
	}
}

// TestPlace: labels cover neither points nor each other, and stay within the picture.
func TestPlace(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	picture := vg.Rectangle{Max: vg.Point{X: 600, Y: 400}}
	for range 200 {
		var points []vg.Point
		for range 12 {
			points = append(points, vg.Point{X: vg.Length(r.Float64() * 600), Y: vg.Length(r.Float64() * 400)})
		}
		room := newRoom(picture, points)
		for _, p := range points {
			width := vg.Length(20 + r.Float64()*150)
			before := slices.Clone(room.labels)
			box, ok := room.place(p, width)
			if !ok {
				t.Fatalf("no place for label %d", len(before))
			}
			if !free(box, before) || !free(box, room.points) || box.Min.X < 0 || box.Max.X > 600 || box.Min.Y < 0 || box.Max.Y > 408 ||
				math.Abs(float64(box.Max.X-box.Min.X-width)) > 1e-9 {
				t.Fatalf("a label at %v", box)
			}
		}
	}
	if _, ok := newRoom(picture, nil).place(vg.Point{X: 300, Y: 200}, 700); ok {
		t.Error("a label wider than the picture found a place")
	}
}

// TestLines: points above each other get labels that no line crosses.
func TestLines(t *testing.T) {
	var points []vg.Point
	for i := range 8 {
		points = append(points, vg.Point{X: 300, Y: vg.Length(300 - 4*i)})
	}
	room := newRoom(vg.Rectangle{Max: vg.Point{X: 600, Y: 400}}, points)
	for _, p := range points {
		if _, ok := room.place(p, 120); !ok {
			t.Fatal("no place")
		}
	}
	for i, line := range room.lines {
		for j, label := range room.labels {
			if crosses(line, label) {
				t.Errorf("the line of label %d crosses label %d", i, j)
			}
		}
	}
}

func TestSpread(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 1000 {
		ends := make([]vg.Point, 1+r.IntN(6))
		for i := range ends {
			ends[i].Y = vg.Length(r.Float64() * 100)
		}
		heights := spread(ends, 13, 0, 100)
		for i, h := range heights {
			if h < -1e-9 || h > 100+1e-9 {
				t.Fatalf("height %v of %v", h, ends)
			}
			for j := range i {
				if math.Abs(float64(h-heights[j])) < 13-1e-9 {
					t.Fatalf("heights %v of %v are too close", heights, ends)
				}
				if (ends[i].Y < ends[j].Y) != (h < heights[j]) {
					t.Fatalf("heights %v of %v are in another order", heights, ends)
				}
			}
		}
	}
}

func TestNiceTicks(t *testing.T) {
	for _, c := range []struct {
		top  float64
		n    int
		want []float64
	}{
		{28.3, 8, []float64{0, 5, 10, 15, 20, 25, 30}}, {8.2, 5, []float64{0, 2, 4, 6, 8, 10}}, {1, 5, []float64{0, 0.2, 0.4, 0.6, 0.8, 1}},
		{0, 5, []float64{0, 1}}, {13.7, 8, []float64{0, 2, 4, 6, 8, 10, 12, 14}},
	} {
		got, last := niceTicks(c.top, c.n)
		if len(got) != len(c.want) || last != got[len(got)-1] || slices.ContainsFunc(got, math.IsNaN) {
			t.Errorf("%v in %d: %v up to %v, expected %v", c.top, c.n, got, last, c.want)
			continue
		}
		for i := range got {
			if math.Abs(got[i]-c.want[i]) > 1e-12 {
				t.Errorf("%v in %d: %v, expected %v", c.top, c.n, got, c.want)
			}
		}
	}
}

func TestWords(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{scientific(0), "0"}, {scientific(6.03e-8), "6.03·10⁻⁸"}, {scientific(0.00842), "0.00842"}, {scientific(123456), "1.23·10⁵"},
		{scientific(9.999e-4), "1.00·10⁻³"}, {byteText(999), "999 bytes"}, {byteText(27771398), "27.77 MB"}, {grouped(1234567), "1,234,567"},
		{shorten("a-very-long-name-of-a-file", 9), "a-ve…file"}, {shorten("a\x00\u202eb\xff", 9), "a\uFFFD\uFFFDb\uFFFD"},
		{strings.Join(labels([]File{{Name: "x/int4.xlstm"}, {Name: "y/int4.xlstm"}, {Name: "z/int8.xlstm"}}), " "), "x/int4.xlstm y/int4.xlstm int8"},
	} {
		if c.got != c.want {
			t.Errorf("%q, expected %q", c.got, c.want)
		}
	}
}
