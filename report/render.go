package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"xlstm/format"
)

//go:embed page.html
var pageText string

//go:embed style.css
var styleText string

// Render writes the report. It writes nothing where a figure is not a number.
func Render(w io.Writer, d *Data) error {
	if err := d.Check(); err != nil {
		return err
	}
	t, err := template.New("page").Funcs(functions()).Parse(pageText)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	p, err := newPage(d)
	if err != nil {
		return err
	}
	var b bytes.Buffer // so that an error leaves nothing behind
	if err := t.Execute(&b, p); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	_, err = w.Write(b.Bytes())
	return err
}

// page is what the template shows.
type page struct {
	*Data
	Style       template.CSS
	SizePicture template.HTML
	SomeExact   bool          // a file's divergence is too small for the picture
	Blocks      []blockFigure // of the files that have weight errors
	Weights     []fileWeights
	Sources     []format.SourceFile
	Labels      []string // the files' names as they are shown
}

// blockFigure is the picture of one file.
type blockFigure struct {
	Name    string
	Picture template.HTML
}

// fileWeights are the tables of one file's weight errors.
type fileWeights struct {
	Name    string
	Rotated bool
	All     Error
	Kinds   []KindError
	Exact   []string // kinds without any error, which have no column
	Columns []string // kinds
	Rows    []blockRow
}

// blockRow is a block's errors: of all its tensors, then of each column's.
type blockRow struct {
	Block int
	All   Error
	Cells []*TensorError // nil where the block has no such tensor
}

func newPage(d *Data) (*page, error) {
	names := labels(d.Files)
	p := &page{Data: d, Style: template.CSS(styleText), Labels: names}
	var err error
	if p.SizePicture, err = sizePicture(d.Files, names); err != nil {
		return nil, err
	}
	seen := map[format.SourceFile]bool{}
	for i := range d.Files {
		f := &d.Files[i]
		p.SomeExact = p.SomeExact || f.MeanKL <= noDivergence
		for _, s := range f.Provenance.Files {
			if !seen[s] {
				seen[s] = true
				p.Sources = append(p.Sources, s)
			}
		}
		if f.Errors == nil {
			continue
		}
		picture, err := blockPicture(f.Errors)
		if err != nil {
			return nil, err
		}
		if picture != "" {
			p.Blocks = append(p.Blocks, blockFigure{names[i], picture})
		}
		p.Weights = append(p.Weights, weightsOf(f.Errors, names[i]))
	}
	return p, nil
}

func weightsOf(e *Errors, name string) fileWeights {
	w := fileWeights{Name: name, Rotated: e.Rotated, All: e.All}
	for _, k := range e.Kinds {
		if k.Max == 0 {
			w.Exact = append(w.Exact, k.Kind)
			continue
		}
		w.Kinds = append(w.Kinds, k)
	}
	rows := map[int]int{}
	for _, b := range e.Blocks {
		rows[b.Block] = len(w.Rows)
		w.Rows = append(w.Rows, blockRow{Block: b.Block, All: b.Error})
	}
	for _, t := range e.Tensors {
		if t.Block >= 0 && t.Max > 0 && !slices.Contains(w.Columns, t.Kind) {
			w.Columns = append(w.Columns, t.Kind)
		}
	}
	for i := range w.Rows {
		w.Rows[i].Cells = make([]*TensorError, len(w.Columns))
	}
	for i := range e.Tensors {
		t := &e.Tensors[i]
		row, ok := rows[t.Block]
		if column := slices.Index(w.Columns, t.Kind); ok && t.Block >= 0 && column >= 0 {
			w.Rows[row].Cells[column] = t
		}
	}
	if len(w.Columns) == 0 {
		w.Rows = nil
	}
	return w
}

// labels are the shortest names that tell the files apart.
func labels(files []File) []string {
	count := map[string]int{}
	short := func(name string) string { return strings.TrimSuffix(filepath.Base(name), ".xlstm") }
	for i := range files {
		count[short(files[i].Name)]++
	}
	out := make([]string, len(files))
	for i := range files {
		name := short(files[i].Name)
		if count[name] > 1 {
			name = files[i].Name
		}
		out[i] = shorten(name, 32)
	}
	return out
}

// shorten makes text printable and at most most characters long.
func shorten(s string, most int) string {
	s = printable(s)
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	r := []rune(s)
	head := (most - 1) / 2
	return string(r[:head]) + "…" + string(r[len(r)-(most-1-head):])
}

// printable replaces what is not to be shown: broken UTF-8, control characters and those that change the direction of text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return utf8.RuneError
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

func functions() template.FuncMap {
	return template.FuncMap{
		"text":    printable,
		"bytes":   byteText,
		"count":   grouped,
		"fixed":   func(digits int, x float64) string { return fmt.Sprintf("%.*f", digits, x) },
		"sci":     scientific,
		"percent": func(x float64) string { return fmt.Sprintf("%.2f %%", 100*x) },
		"options": optionText,
		"list":    func(s []string) string { return printable(strings.Join(s, ", ")) },
	}
}

func byteText(n int64) string {
	scale, unit := byteUnit(n)
	if scale == 1 {
		return fmt.Sprintf("%d %s", n, unit)
	}
	return fmt.Sprintf("%.4g %s", float64(n)/scale, unit)
}

// grouped writes a number with commas between thousands.
func grouped(n any) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// scientific writes a number with three digits, as 1.23·10⁻⁴ where it is small or large.
func scientific(x float64) string {
	if x == 0 || x >= 0.001 && x < 10000 {
		return fmt.Sprintf("%.3g", x)
	}
	mantissa, exponent, _ := strings.Cut(fmt.Sprintf("%.2e", x), "e")
	e, err := strconv.Atoi(exponent)
	if err != nil {
		return fmt.Sprintf("%.3g", x)
	}
	return mantissa + "·" + powerOfTen(e)
}

func optionText(options map[string]string) string {
	var all []string
	for k, v := range options {
		all = append(all, k+"="+v)
	}
	sort.Strings(all)
	return printable(strings.Join(all, ", "))
}
