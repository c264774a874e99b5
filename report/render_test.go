package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"xlstm/format"
)

// sample is a report over files of a model with the given number of blocks.
func sample(blocks int, recipes ...string) *Data {
	d := &Data{
		Title: "small: what its encodings cost",
		Method: Method{
			Text: "book.txt", TextSHA256: strings.Repeat("ab", 32), TextBytes: 123456, TextTokens: 40000, UsedTokens: 8192, Sequences: 16,
			Window: 512, BOS: 0, Original: "small", OriginalBy: "the independent implementation", Engine: "the CPU engine", Program: "xlstm 1.0",
		},
		Original: Score{8192, 3.45, 31.5, 0.9},
	}
	for i, r := range recipes {
		kl := 1e-6 * math.Pow(30, float64(i))
		f := File{
			Name: "dir/" + r + ".xlstm", Recipe: r, Fingerprint: strings.Repeat("0f", 32), Size: 28e6 / int64(i+1), WeightCount: 14e6,
			BitsPerWeight: 16 / float64(i+1), Score: Score{8192, 3.45 + kl, 31.5 + kl, 0.9}, Ratio: 1 + kl, RatioStdErr: kl / 3, MeanKL: kl,
			MeanKLStdErr: kl / 50, KL999: 40 * kl, TopAgreement: 0.999, MaxLogitDiff: 100 * kl,
			Provenance: format.Provenance{Program: "xlstm 1.0", Source: "small", Files: []format.SourceFile{{Name: "model.safetensors", Size: 1, SHA256: "12"}}},
		}
		f.Errors = sampleErrors(blocks, kl)
		d.Files = append(d.Files, f)
	}
	return d
}

func sampleErrors(blocks int, size float64) *Errors {
	e := &Errors{All: Error{size, size, 1}}
	for b := range blocks {
		e.Blocks = append(e.Blocks, BlockError{b, Error{size, size, 1}})
		for _, kind := range []string{"qkvo", "gates", "down"} {
			t := TensorError{fmt.Sprintf("blocks.%d.%s", b, kind), kind, b, "int8", 8, 4, Error{size * float64(b+1), size, 1}}
			if kind == "gates" {
				t.Encoding, t.Error = "fp32", Error{0, 0, 1}
			}
			e.Tensors = append(e.Tensors, t)
		}
	}
	e.Kinds = []KindError{
		{"qkvo", "int8", blocks, int64(32 * blocks), 32, Error{size, size, 1}}, {"gates", "fp32", blocks, 32, 128, Error{0, 0, 1}},
		{"down", "int8", blocks, 32, 32, Error{size, size, 1}},
	}
	return e
}

func render(t *testing.T, d *Data) string {
	t.Helper()
	var b bytes.Buffer
	if err := Render(&b, d); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// element is a start tag with its attributes.
type element struct {
	name  string
	attrs map[string]string
}

// elements reads a page strictly: each element is closed in order.
func elements(t *testing.T, page string) (all []element, words string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(page))
	d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	var open []string
	var b strings.Builder
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the page is not well formed: %v", err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			e := element{token.Name.Local, map[string]string{}}
			for _, a := range token.Attr {
				e.attrs[a.Name.Local] = a.Value
			}
			all = append(all, e)
			open = append(open, e.name)
		case xml.EndElement:
			if n := len(open); n == 0 || open[n-1] != token.Name.Local {
				t.Fatalf("</%s> within %v", token.Name.Local, open)
			}
			open = open[:len(open)-1]
		case xml.CharData:
			b.Write(token)
		}
	}
	if len(open) > 0 {
		t.Fatalf("not closed: %v", open)
	}
	return all, b.String()
}

// outline is the order of the parts that a report consists of, tables with their numbers of rows.
func outline(all []element) string {
	var parts []string
	for _, e := range all {
		switch e.name {
		case "h1", "h2", "h3", "svg", "dl":
			parts = append(parts, e.name)
		case "table":
			parts = append(parts, "table")
		case "tr":
			parts[len(parts)-1] += "|"
		}
	}
	return strings.Join(parts, " ")
}

func TestOutline(t *testing.T) {
	for _, c := range []struct {
		name string
		data *Data
		want string
	}{
		{"two files of three blocks", sample(3, "fp16", "int8"),
			"h1 table|||| h2 svg h2 svg svg h3 table||| table|||| h3 table||| table|||| h2 dl table||| table||"},
		{"one file of one block", sample(1, "int8"), "h1 table||| h2 svg h2 svg h3 table||| table|| h2 dl table|| table||"},
		{"no weights", func() *Data {
			d := sample(1, "int8")
			d.Files[0].Errors, d.Files[0].Provenance.Files, d.WeightsNote = nil, nil, "Not compared."
			return d
		}(), "h1 table||| h2 svg h2 h2 dl table||"},
		{"exact weights", func() *Data {
			d := sample(2, "fp32")
			d.Files[0].Errors, d.Files[0].MeanKL = sampleErrors(2, 0), 0
			return d
		}(), "h1 table||| h2 svg h2 h3 h2 dl table|| table||"},
	} {
		all, _ := elements(t, render(t, c.data))
		if got := outline(all); got != c.want {
			t.Errorf("%s:\n%s, expected\n%s", c.name, got, c.want)
		}
	}
}

// TestFigures looks for every figure of the first table, and for how it was measured.
func TestFigures(t *testing.T) {
	d := sample(2, "fp16", "int8")
	d.Files[1].Provenance.Options = map[string]string{"rotate": "7", "calibrated": "text"}
	d.Files[1].Errors.Rotated = true
	_, words := elements(t, render(t, d))
	for _, want := range []string{
		"31.5000", "± 0.9000", "8,192 tokens", "28 MB", "14 MB", "16.000", "8.000", "1.000030", "± 0.000010", "3.00·10⁻⁵", "± 6.00·10⁻⁷",
		"0.0012", "99.90 %", "0.003", strings.Repeat("ab", 32), strings.Repeat("0f", 32), "16 windows of 512 tokens", "book.txt, 123,456 bytes",
		"40,000 tokens; the first 8,192 were used", "Each begins with token 0", "the independent implementation", "xlstm 1.0", "model.safetensors",
		"calibrated=text, rotate=7", "after the file's rotation", "Exact: gates", "qkvo", "10⁻⁵", "size of the file, MB",
	} {
		if !strings.Contains(words, want) {
			t.Errorf("the report lacks %q", want)
		}
	}
}

// TestSelfContained: nothing is loaded, nothing runs, and the same data gives the same bytes.
func TestSelfContained(t *testing.T) {
	page := render(t, sample(3, "fp16", "int8", "int4"))
	for _, no := range []string{"<script", "http:", "https:", "url(", "@import", "src=", "href", "#010", "<?xml"} {
		if strings.Contains(page, no) {
			t.Errorf("the report has %q", no)
		}
	}
	if again := render(t, sample(3, "fp16", "int8", "int4")); again != page {
		t.Error("the same data gave two different reports")
	}
	b, err := json.Marshal(sample(3, "fp16", "int8", "int4"))
	if err != nil {
		t.Fatal(err)
	}
	var back Data
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if render(t, &back) != page {
		t.Error("data that went through JSON gave another report")
	}
}

// setStrings sets every string within v.
func setStrings(v reflect.Value, to string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(to)
	case reflect.Pointer:
		if !v.IsNil() {
			setStrings(v.Elem(), to)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			setStrings(v.Field(i), to)
		}
	case reflect.Slice:
		for i := range v.Len() {
			setStrings(v.Index(i), to)
		}
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{to: to}))
	}
}

func FuzzEscaping(f *testing.F) {
	for _, s := range []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `]]></style><b>`, "a\x00b\x1b[31m", "\xff\xfe", "\u202egnp.exe", "{{.}}",
		`style="fill:#010101"`, "' onload='x", "&lt;b&gt;", "</svg></text><iframe>", "", strings.Repeat("long ", 500), "名前", "a/b/.xlstm",
	} {
		f.Add(s)
	}
	allowed := map[string][]string{}
	f.Fuzz(func(t *testing.T, s string) {
		if len(allowed) == 0 {
			all, _ := elements(t, render(t, sample(2, "fp16", "int8")))
			for _, e := range all {
				for a := range e.attrs {
					allowed[e.name] = append(allowed[e.name], a)
				}
				allowed[e.name] = append(allowed[e.name], "")
			}
		}
		d := sample(2, "fp16", "int8")
		setStrings(reflect.ValueOf(d).Elem(), s)
		all, words := elements(t, render(t, d))
		for _, e := range all {
			if len(allowed[e.name]) == 0 {
				t.Errorf("%q made an element %s", s, e.name)
			}
			for a := range e.attrs {
				if !slices.Contains(allowed[e.name], a) {
					t.Errorf("%q made an attribute %s of %s", s, a, e.name)
				}
			}
		}
		for _, r := range words {
			if r < ' ' && r != '\n' && r != '\t' || r == '\u202e' {
				t.Errorf("%q left %q in the page", s, r)
			}
		}
		if s == "<script>alert(1)</script>" && !strings.Contains(words, s) {
			t.Error("the name is not shown as it is")
		}
	})
}

// eachFigure calls f with every float64 within v in turn, which f may change; it is then set back.
func eachFigure(v reflect.Value, name string, f func(name string, v reflect.Value)) {
	switch v.Kind() {
	case reflect.Float64:
		old := v.Float()
		f(name, v)
		v.SetFloat(old)
	case reflect.Pointer:
		if !v.IsNil() {
			eachFigure(v.Elem(), name, f)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			eachFigure(v.Field(i), name+"."+v.Type().Field(i).Name, f)
		}
	case reflect.Slice:
		for i := range v.Len() {
			eachFigure(v.Index(i), name, f)
		}
	}
}

func TestRefused(t *testing.T) {
	refused := func(name string, d *Data) {
		t.Helper()
		var b bytes.Buffer
		if err := Render(&b, d); err == nil || b.Len() > 0 || !strings.HasPrefix(err.Error(), "report: ") {
			t.Errorf("%s: error %v, %d bytes written", name, err, b.Len())
		}
	}
	refused("no files", &Data{})
	d, seen := sample(2, "int8", "int4"), 0
	eachFigure(reflect.ValueOf(d).Elem(), "", func(name string, v reflect.Value) {
		seen++
		for _, x := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), -1} {
			v.SetFloat(x)
			refused(fmt.Sprintf("%s = %v", name, x), d)
		}
	})
	if seen < 50 {
		t.Errorf("only %d figures were tried", seen)
	}
	render(t, d) // all is as it was
	full := errors.New("disk full")
	if err := Render(failing{full}, d); !errors.Is(err, full) {
		t.Errorf("a failing writer: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
