package report

import (
	"cmp"
	"fmt"
	"html/template"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Sizes of pictures and of their letters, in pixels of the page.
const (
	sizePictureWidth, sizePictureHeight   = 720, 400
	blockPictureWidth, blockPictureHeight = 450, 250
	bigLetters, smallLetters              = 13, 12.5
	lineHeight                            = 15
)

// noDivergence is what counts as none in the picture: rounding alone makes as much.
const noDivergence = 1e-12

// sizePicture shows the size of each file against its mean KL divergence, on a logarithmic axis.
func sizePicture(files []File, labels []string) (template.HTML, error) {
	least, most, largest := math.Inf(1), 0.0, int64(1)
	for i := range files {
		largest = max(largest, files[i].Size)
		if kl := files[i].MeanKL; kl > noDivergence {
			least, most = min(least, kl), max(most, kl)
		}
	}
	if most == 0 {
		least, most = noDivergence, noDivergence
	}
	scale, unit := byteUnit(largest)
	p := newPlot(bigLetters)
	p.Y.Scale = plot.LogScale{}
	var marks ticks
	marks, p.Y.Min, p.Y.Max = decades(least, most)
	p.Y.Tick.Marker = marks
	values, end := niceTicks(float64(largest)/scale*1.02, 8)
	p.X.Min, p.X.Max = 0, end
	p.X.Tick.Marker = linearTicks(values)
	p.X.Label.Text = "size of the file, " + unit
	points := &labelledPoints{style: textStyle(bigLetters, ink, text.Style{YAlign: draw.YCenter})}
	for i := range files {
		label := labels[i]
		kl := files[i].MeanKL
		if kl <= noDivergence {
			kl, label = p.Y.Min, label+" (none)"
		}
		points.XYs = append(points.XYs, plotter.XY{X: float64(files[i].Size) / scale, Y: kl})
		points.labels = append(points.labels, label)
	}
	p.Add(newGrid(), points)
	return svgOf(sizePictureWidth, sizePictureHeight, "Size of each file against its mean KL divergence; the table has the figures", func(c draw.Canvas) {
		drawUnder(c, p, "mean KL divergence from the original, nats", bigLetters, 12)
	})
}

func newGrid() *plotter.Grid {
	g := plotter.NewGrid()
	g.Vertical = draw.LineStyle{} // no line
	g.Horizontal = draw.LineStyle{Color: grid, Width: 0.75}
	return g
}

func linearTicks(values []float64) ticks {
	var t ticks
	for _, v := range values {
		t = append(t, plot.Tick{Value: v, Label: fmt.Sprintf("%.6g", v)})
	}
	return t
}

// byteUnit is the unit for people that makes n at least 1, in powers of 1000.
func byteUnit(n int64) (scale float64, name string) {
	scale, name = 1, "bytes"
	for _, u := range []string{"kB", "MB", "GB", "TB"} {
		if float64(n) < 1000*scale {
			break
		}
		scale, name = scale*1000, u
	}
	return scale, name
}

// labelledPoints draws points and puts each one's label where it covers nothing.
type labelledPoints struct {
	plotter.XYs
	labels []string
	style  text.Style
}

const pointRadius = 4

// Plot implements plot.Plotter.
func (l *labelledPoints) Plot(c draw.Canvas, p *plot.Plot) {
	tx, ty := p.Transforms(&c)
	at := make([]vg.Point, len(l.XYs))
	order := make([]int, len(l.XYs))
	for i, xy := range l.XYs {
		at[i] = vg.Point{X: tx(xy.X), Y: ty(xy.Y)}
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { // from the top, so that labels that give way go downwards
		return cmp.Compare(at[b].Y, at[a].Y)
	})
	room := newRoom(c.Rectangle, at)
	for _, i := range order {
		box, ok := room.place(at[i], l.style.Width(l.labels[i]))
		if !ok {
			continue // the table names the point
		}
		if end := nearest(box, at[i]); distance(at[i], end) > 3*pointRadius {
			c.StrokeLines(draw.LineStyle{Color: muted, Width: 0.75}, []vg.Point{at[i], end})
		}
		c.FillText(l.style, vg.Point{X: box.Min.X, Y: (box.Min.Y + box.Max.Y) / 2}, l.labels[i])
	}
	for _, pt := range at {
		c.DrawGlyph(draw.GlyphStyle{Color: paper, Radius: pointRadius + 1.5, Shape: draw.CircleGlyph{}}, pt)
		c.DrawGlyph(draw.GlyphStyle{Color: series(0), Radius: pointRadius, Shape: draw.CircleGlyph{}}, pt)
	}
}

// smallestError is what is drawn as none: a unit for the axis could not be had for less.
const smallestError = 1e-300

// blockLine is one kind of tensor's errors by block.
type blockLine struct {
	kind string
	plotter.XYs
}

// blockLines are the kinds that have errors, at most as many as there are colours; the table has all.
func blockLines(e *Errors) (lines []blockLine, last int, most float64) {
	index := map[string]int{}
	for _, t := range e.Tensors {
		if t.Block < 0 {
			continue
		}
		last = max(last, t.Block)
		i, ok := index[t.Kind]
		if !ok {
			i = len(lines)
			index[t.Kind] = i
			lines = append(lines, blockLine{kind: t.Kind})
		}
		lines[i].XYs = append(lines[i].XYs, plotter.XY{X: float64(t.Block), Y: t.Relative})
		most = max(most, t.Relative)
	}
	lines = slices.DeleteFunc(lines, func(l blockLine) bool {
		return !slices.ContainsFunc(l.XYs, func(p plotter.XY) bool { return p.Y > smallestError })
	})
	return lines[:min(len(lines), seriesCount)], last, most
}

// blockPicture shows the relative squared error of each kind of tensor by block. It is empty where there are none.
func blockPicture(e *Errors) (template.HTML, error) {
	lines, last, most := blockLines(e)
	if len(lines) == 0 {
		return "", nil
	}
	exponent := int(math.Floor(math.Log10(most)))
	unit := math.Pow(10, float64(exponent))
	p := newPlot(smallLetters)
	values, end := niceTicks(most/unit, 5)
	p.Y.Min, p.Y.Max = 0, end
	p.Y.Tick.Marker = linearTicks(values)
	p.X.Min, p.X.Max = -0.25, float64(last)+0.25
	p.X.Tick.Marker = blockTicks(last)
	p.X.Label.Text = "block"
	p.Add(newGrid(), &blockPlot{lines: lines, unit: unit, style: textStyle(smallLetters, ink, text.Style{YAlign: draw.YCenter})})
	return svgOf(blockPictureWidth, blockPictureHeight, "Relative squared error by block; the table has the figures", func(c draw.Canvas) {
		drawUnder(c, p, "relative squared error, "+powerOfTen(exponent), smallLetters, 72) // the lines' names stand on the right
	})
}

func blockTicks(last int) ticks {
	var t ticks
	every := last/8 + 1
	for i := 0; i <= last; i += every {
		t = append(t, plot.Tick{Value: float64(i), Label: fmt.Sprint(i)})
	}
	return t
}

// blockPlot draws lines with their names at their right ends.
type blockPlot struct {
	lines []blockLine
	unit  float64
	style text.Style
}

// shapes tell lines apart where there are no colours.
func shapes() []draw.GlyphDrawer {
	return []draw.GlyphDrawer{
		draw.CircleGlyph{}, draw.BoxGlyph{}, draw.PyramidGlyph{}, draw.RingGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{},
	}
}

// Plot implements plot.Plotter.
func (b *blockPlot) Plot(c draw.Canvas, p *plot.Plot) {
	tx, ty := p.Transforms(&c)
	ends := make([]vg.Point, len(b.lines))
	for i, line := range b.lines {
		var points []vg.Point
		for _, xy := range line.XYs {
			points = append(points, vg.Point{X: tx(xy.X), Y: ty(xy.Y / b.unit)})
		}
		c.StrokeLines(draw.LineStyle{Color: series(i), Width: 1.5}, points)
		for _, pt := range points {
			c.DrawGlyph(draw.GlyphStyle{Color: series(i), Radius: 2.75, Shape: shapes()[i]}, pt)
		}
		ends[i] = points[len(points)-1]
	}
	heights := spread(ends, 13, c.Min.Y+5, c.Max.Y)
	for i, line := range b.lines {
		label := vg.Point{X: c.Max.X + 14, Y: heights[i]}
		c.StrokeLines(draw.LineStyle{Color: series(i), Width: 0.75},
			[]vg.Point{{X: ends[i].X + 4, Y: ends[i].Y}, {X: label.X - 3, Y: label.Y}})
		c.FillText(b.style, label, shorten(line.kind, 9))
	}
}

// spread gives the heights of labels at the given ends, at least gap apart, between low and high as far as they fit.
func spread(ends []vg.Point, gap, low, high vg.Length) []vg.Length {
	order := make([]int, len(ends))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(ends[a].Y, ends[b].Y)
	})
	heights := make([]vg.Length, len(ends))
	next := low
	for _, i := range order { // upwards
		heights[i] = max(ends[i].Y, next)
		next = heights[i] + gap
	}
	next = high
	for _, i := range slices.Backward(order) { // and back down from the top
		heights[i] = min(heights[i], next)
		next = heights[i] - gap
	}
	return heights
}
