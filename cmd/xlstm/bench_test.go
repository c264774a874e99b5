package main

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"

	"xlstm/format"
	"xlstm/quantize"
)

func TestBench(t *testing.T) {
	args := []string{"bench", "--synthetic", "5m", "--recipe", "int4", "--prompt", "5", "--generate", "3", "--repeat", "2", "--batch", "2"}
	var r benchReport
	if err := json.Unmarshal([]byte(must(t, append(args, "--json")...)), &r); err != nil {
		t.Fatal(err)
	}
	if r.Rate == nil || r.PromptRate == nil || r.Share == nil || len(r.Bandwidth.All) != 4 || len(r.Rate.All) != 2 || r.Batch != 2 {
		t.Fatalf("report %+v", r)
	}
	for _, s := range []*series{&r.Bandwidth, r.Rate, r.PromptRate, r.Share, r.Weights} {
		if !(s.Least > 0 && s.Least <= s.Median && s.Median <= s.Most) {
			t.Errorf("series %+v", s)
		}
	}
	for i, share := range r.Share.All {
		if want := r.Weights.All[i] / ((r.Bandwidth.All[2*i] + r.Bandwidth.All[2*i+1]) / 2); math.Abs(share-want) > 1e-9*want {
			t.Errorf("share %v, want %v", share, want)
		}
	}
	// Every stored byte but the embedding's counts.
	c := shapes["5m"]()
	recipe, err := quantize.ParseRecipe("int4")
	if err != nil {
		t.Fatal(err)
	}
	want := int64(0)
	for _, s := range format.Specs(&c, recipe.Encoding) {
		if s.Name != format.TensorEmbed {
			want += s.Size()
		}
	}
	if r.WeightBytes != want || r.StateBytes != 4*int64(c.StateFloats()) {
		t.Errorf("%d bytes of weights and %d of state, want %d and %d", r.WeightBytes, r.StateBytes, want, 4*c.StateFloats())
	}
	text := must(t, "bench", "--synthetic", "5m", "--prompt", "0", "--generate", "2", "--repeat", "1")
	if !strings.Contains(text, "generation ") || strings.Contains(text, "prompt ") || !strings.Contains(text, "% of reading") {
		t.Errorf("text:\n%s", text)
	}
}

func TestSummary(t *testing.T) {
	x := []float64{3, 1, 2, 10}
	if s := summary(x); s.Median != 2.5 || s.Least != 1 || s.Most != 10 || !slices.Equal(s.All, []float64{3, 1, 2, 10}) {
		t.Errorf("%+v", s)
	}
	if s := summary(x[:3]); s.Median != 2 {
		t.Errorf("%+v", s)
	}
	if summary(nil) != nil {
		t.Error("a summary of nothing")
	}
}

// TestSynthetic: each shape is a valid model, and made-up tensors of each recipe hold finite weights of the right magnitude.
func TestSynthetic(t *testing.T) {
	for _, name := range shapeNames() {
		c := shapes[name]()
		if err := c.Validate(); err != nil || len(shapes) != len(shapeNames()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, enc := range []string{"fp32", "fp16", "bf16", "int8", "int8g64", "int4", "int4g32a"} {
		e, err := format.ParseEncoding(enc)
		if err != nil {
			t.Fatal(err)
		}
		const rows, cols = 200, 96
		x, err := randomTensor(format.TensorSpec{Name: "x", Encoding: e, Rows: rows, Cols: cols}, 1)
		if err != nil {
			t.Fatal(err)
		}
		stored, err := quantize.RowsOf(x.Data, e, rows, cols)
		if err != nil {
			t.Fatal(err)
		}
		values := make([]float32, rows*cols)
		if err := quantize.DecodeRows(values, e, stored, rows, cols); err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for i, v := range values {
			sum += float64(v) * float64(v)
			if i >= patternRows*cols && v != values[i-patternRows*cols] {
				t.Fatalf("%s: row %d is not that of %d rows before", enc, i/cols, patternRows)
			}
		}
		if power := sum / rows; power < 0.8 || power > 1.2 {
			t.Errorf("%s: rows have a square sum of %v, want 1", enc, power)
		}
	}
}
