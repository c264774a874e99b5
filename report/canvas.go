package report

import (
	"bytes"
	"fmt"
	"html"
	"html/template"
	"image/color"
	"math"
	"regexp"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Pictures are drawn in colours that stand for the page's own, which differ between light, dark and paper.
var (
	ink   = color.RGBA{1, 1, 1, 255}
	muted = color.RGBA{2, 2, 2, 255}
	grid  = color.RGBA{3, 3, 3, 255}
	paper = color.RGBA{4, 4, 4, 255}
)

// seriesCount is how many colours there are for lines; style.css has them.
const seriesCount = 6

func series(i int) color.RGBA { return color.RGBA{5, uint8(i % seriesCount), 0, 255} }

var (
	styleAttribute = regexp.MustCompile(`style="[^"]*"`) // text has no quotes: it is escaped
	colorValue     = regexp.MustCompile(`#0([1-5])0([0-5])0([0-4])`)
	fontValue      = regexp.MustCompile(`font-family:[^;]*;font-variant:[^;]*;`)
)

// svgOf draws into an SVG element of w by h units, which are pixels of the page where there is room.
func svgOf(w, h vg.Length, description string, paint func(c draw.Canvas)) (template.HTML, error) {
	canvas := vgsvg.NewWith(vgsvg.UseWH(w, h))
	paint(draw.New(canvas))
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return "", fmt.Errorf("report: picture: %w", err)
	}
	_, body, ok := strings.Cut(b.String(), `xlink">`)
	if !ok {
		return "", fmt.Errorf("report: picture: no <svg> in what was drawn")
	}
	body = styleAttribute.ReplaceAllStringFunc(body, func(s string) string {
		s = colorValue.ReplaceAllStringFunc(s, func(c string) string {
			switch c[2] {
			case '1':
				return "var(--ink)"
			case '2':
				return "var(--muted)"
			case '3':
				return "var(--grid)"
			case '4':
				return "var(--paper)"
			}
			return "var(--s" + c[4:5] + ")"
		})
		return fontValue.ReplaceAllString(s, "") // the page's
	})
	head := fmt.Sprintf(`<svg role="img" aria-label="%s" viewBox="0 0 %.5g %.5g" style="max-width:%.5gpx">`, html.EscapeString(description), w, h, w)
	return template.HTML(head + body), nil //nolint:gosec // all text in it is escaped, here and by vgsvg
}

// newPlot is a plot in the page's style.
func newPlot(size vg.Length) *plot.Plot {
	p := plot.New()
	p.BackgroundColor = nil
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.Label.TextStyle = textStyle(size, muted, a.Label.TextStyle)
		a.Label.Padding = 4
		a.Tick.Label = textStyle(size, muted, a.Tick.Label)
		a.Tick.LineStyle.Color, a.LineStyle.Color = grid, grid
		a.LineStyle.Width = 1
		a.Tick.Length = 4
		a.Padding = 0
	}
	return p
}

func textStyle(size vg.Length, c color.Color, base text.Style) text.Style {
	base.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
	base.Color = c
	base.Handler = plot.DefaultTextHandler
	return base
}

// drawUnder draws a plot with the title of its vertical axis on the left, and space on the right for what stands there. (As a
// label of the axis it would be taken to stand elsewhere where the axis is logarithmic.)
func drawUnder(c draw.Canvas, p *plot.Plot, title string, size, right vg.Length) {
	s := textStyle(size, muted, text.Style{Rotation: math.Pi / 2, XAlign: draw.XCenter, YAlign: draw.YTop})
	const axis = 30 // height of the horizontal axis with its labels
	c.FillText(s, vg.Point{X: 2, Y: (axis + c.Max.Y) / 2}, title)
	p.Draw(draw.Crop(c, size+12, -right, 2, -8))
}

// ticks are given marks.
type ticks []plot.Tick

func (t ticks) Ticks(_, _ float64) []plot.Tick { return t }

// niceTicks are about n round numbers from 0 to at least top, and the last of them.
func niceTicks(top float64, n int) (values []float64, last float64) {
	if top <= 0 {
		return []float64{0, 1}, 1
	}
	step := math.Pow(10, math.Floor(math.Log10(top/float64(n))))
	for _, f := range []float64{1, 2, 5, 10} {
		if top/(f*step) <= float64(n) {
			step *= f
			break
		}
	}
	count := int(math.Ceil(top/step - 1e-9))
	for i := range count + 1 {
		values = append(values, float64(i)*step)
	}
	return values, float64(count) * step
}

// superscripts of digits and the minus sign.
var superscripts = strings.NewReplacer("-", "⁻", "0", "⁰", "1", "¹", "2", "²", "3", "³", "4", "⁴", "5", "⁵", "6", "⁶", "7", "⁷", "8", "⁸", "9", "⁹")

func powerOfTen(e int) string { return "10" + superscripts.Replace(fmt.Sprint(e)) }

// decades are the powers of ten around positive values, labelled, at least two of them.
func decades(least, most float64) (marks ticks, low, high float64) {
	a, b := int(math.Floor(math.Log10(least))), int(math.Ceil(math.Log10(most)))
	if a == b {
		b++
	}
	every := (b-a)/8 + 1
	for e := a; e <= b; e++ {
		t := plot.Tick{Value: math.Pow(10, float64(e))}
		if (e-a)%every == 0 {
			t.Label = powerOfTen(e)
		}
		marks = append(marks, t)
	}
	return marks, marks[0].Value, marks[len(marks)-1].Value
}
