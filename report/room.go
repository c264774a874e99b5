package report

import (
	"math"

	"gonum.org/v1/plot/vg"
)

// room is where labels of points can still stand: nowhere on a point or on another label.
type room struct {
	within vg.Rectangle
	points []vg.Rectangle
	labels []vg.Rectangle // placed so far
	lines  [][2]vg.Point  // from points to labels that stand apart
}

func newRoom(within vg.Rectangle, points []vg.Point) *room {
	r := &room{within: within}
	r.within.Max.Y += lineHeight / 2 // a label may stand out over the top by half a line
	for _, p := range points {
		r.points = append(r.points, around(p, 2*pointRadius+2, 2*pointRadius+2))
	}
	return r
}

// place takes room for a label of the given width: beside its point, above or below it, or else farther away on either side, with
// a line that crosses no label; if there is no such place, with any line.
func (r *room) place(pt vg.Point, width vg.Length) (vg.Rectangle, bool) {
	const gap = pointRadius + 5
	for _, anyLine := range []bool{false, true} {
		for far := vg.Length(0); far < sizePictureHeight; far += lineHeight / 2.0 {
			aside := gap + width/2 + far/2
			candidates := []vg.Point{{X: aside, Y: far}, {X: aside, Y: -far}, {X: -aside, Y: far}, {X: -aside, Y: -far}}
			if far == 0 || anyLine {
				candidates = append(candidates, vg.Point{Y: gap + lineHeight/2 + far}, vg.Point{Y: -gap - lineHeight/2 - far})
			}
			for _, offset := range candidates {
				box := around(vg.Point{X: pt.X + offset.X, Y: pt.Y + offset.Y}, width, lineHeight)
				line := [2]vg.Point{pt, nearest(box, pt)}
				if r.has(box) && (anyLine || r.open(box, line)) {
					r.labels = append(r.labels, box)
					r.lines = append(r.lines, line)
					return box, true
				}
			}
		}
	}
	return vg.Rectangle{}, false
}

// has reports whether nothing stands in a box within the picture.
func (r *room) has(box vg.Rectangle) bool {
	w := r.within
	return box.Min.X >= w.Min.X && box.Max.X <= w.Max.X && box.Min.Y >= w.Min.Y && box.Max.Y <= w.Max.Y && free(box, r.points) && free(box, r.labels)
}

// open reports whether the line to a new label crosses no label, and the label no line.
func (r *room) open(box vg.Rectangle, line [2]vg.Point) bool {
	for _, l := range r.labels {
		if crosses(line, l) {
			return false
		}
	}
	for _, l := range r.lines {
		if crosses(l, box) {
			return false
		}
	}
	return true
}

// crosses reports whether a line goes through a box, by points of it that are close together.
func crosses(line [2]vg.Point, box vg.Rectangle) bool {
	steps := math.Ceil(float64(distance(line[0], line[1])) / 3)
	for i := 1.0; i < steps; i++ {
		t := vg.Length(i / steps)
		p := vg.Point{X: line[0].X + t*(line[1].X-line[0].X), Y: line[0].Y + t*(line[1].Y-line[0].Y)}
		if p.X > box.Min.X && p.X < box.Max.X && p.Y > box.Min.Y && p.Y < box.Max.Y {
			return true
		}
	}
	return false
}

func distance(a, b vg.Point) vg.Length {
	return vg.Length(math.Hypot(float64(a.X-b.X), float64(a.Y-b.Y)))
}

// nearest is the point of a box that is nearest to p.
func nearest(box vg.Rectangle, p vg.Point) vg.Point {
	return vg.Point{X: max(box.Min.X, min(p.X, box.Max.X)), Y: max(box.Min.Y, min(p.Y, box.Max.Y))}
}

func around(p vg.Point, w, h vg.Length) vg.Rectangle {
	return vg.Rectangle{Min: vg.Point{X: p.X - w/2, Y: p.Y - h/2}, Max: vg.Point{X: p.X + w/2, Y: p.Y + h/2}}
}

func free(box vg.Rectangle, taken []vg.Rectangle) bool {
	for _, t := range taken {
		if box.Min.X < t.Max.X && t.Min.X < box.Max.X && box.Min.Y < t.Max.Y && t.Min.Y < box.Max.Y {
			return false
		}
	}
	return true
}
