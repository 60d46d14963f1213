package bench

import (
	"cmp"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Plots are SVG elements. The page's style sheet gives their classes colours,
// so that they follow its dark and light schemes. Lengths are in pixels of the
// viewBox.
const (
	fontSize = 12
	// charWidth is how wide a character is assumed to be. The reader's font
	// isn't known, so it is the average of a wide one: no text is cut.
	charWidth = 0.6 * fontSize

	plotMargin = 10
	rowHeight  = 20
	// axisHeight has room for the numbers below an axis and its label.
	axisHeight = 40
	barsWidth  = 460
	curveWidth = 420
	curveHigh  = 200
	// logFrom is the ratio of the largest to the smallest value from which an
	// axis is logarithmic. On a linear one the small values couldn't be read.
	logFrom = 30
	// leastTickGap is the space between two numbers on an axis.
	leastTickGap = 8
)

// scale maps values to a range of pixels.
type scale struct {
	least, most float64 // values; with log least is above 0
	from, to    float64 // pixels
	log         bool
}

// newScale returns a scale for all values between two pixels. It begins at 0
// or, where the values span too much for that, is logarithmic.
func newScale(values []float64, from, to float64) scale {
	s := scale{from: from, to: to}
	var small float64 // the smallest above 0
	for _, v := range values {
		s.least, s.most = min(s.least, v), max(s.most, v)
		if v > 0 && (small == 0 || v < small) {
			small = v
		}
	}
	if s.most == s.least {
		s.most = s.least + 1
	}
	if s.least == 0 && small > 0 && s.most/small > logFrom {
		s.log, s.least = true, small
		s.least = math.Pow(10, math.Floor(math.Log10(small)))
	}
	return s
}

// at returns the pixel of v. A value below a logarithmic scale is at the
// scale's beginning.
func (s scale) at(v float64) float64 {
	share := (v - s.least) / (s.most - s.least)
	if s.log {
		share = math.Log(max(v, s.least)/s.least) / math.Log(s.most/s.least)
	}
	return s.from + share*(s.to-s.from)
}

// ticks returns round values, some four to ten of them.
func (s scale) ticks() []float64 {
	if s.log {
		return s.logTicks()
	}
	// The step is 1, 2 or 5 times a power of ten.
	step := math.Pow(10, math.Floor(math.Log10((s.most-s.least)/4)))
	for _, factor := range []float64{5, 2} {
		if (s.most-s.least)/(step*factor) >= 4 {
			step *= factor
			break
		}
	}
	var out []float64
	for i := math.Ceil(s.least/step - 1e-6); i*step <= s.most+step*1e-6; i++ {
		out = append(out, i*step+0) // + 0 makes 0 of -0
	}
	return out
}

func (s scale) logTicks() []float64 {
	factors := []float64{1, 2, 5}
	if s.most/s.least > 1000 {
		factors = factors[:1]
	}
	var out []float64
	for power := s.least; power <= s.most; power *= 10 {
		for _, f := range factors {
			if power*f <= s.most {
				out = append(out, power*f)
			}
		}
	}
	return out
}

// tick is a mark on an axis.
type tick struct {
	value float64
	text  string
}

// tickNumber shows a round value without needless digits.
func tickNumber(v float64) string {
	if v != 0 && (math.Abs(v) >= 1e6 || math.Abs(v) < 1e-3) {
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
	return strconv.FormatFloat(math.Round(v*1e6)/1e6, 'f', -1, 64)
}

// svg builds one plot.
type svg struct{ b strings.Builder }

// newSVG begins a plot. title is what a screen reader says of it.
func newSVG(width, height float64, title string) *svg {
	s := &svg{}
	fmt.Fprintf(&s.b, `<svg class="plot" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" role="img">`, width, height, width, height)
	fmt.Fprintf(&s.b, `<title>%s</title>`, template.HTMLEscapeString(title))
	return s
}

func (s *svg) html() template.HTML {
	s.b.WriteString("</svg>\n")
	return template.HTML(s.b.String())
}

func (s *svg) line(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(&s.b, `<line class="%s" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`, class, x1, y1, x2, y2)
}

func (s *svg) dot(class string, x, y float64) {
	fmt.Fprintf(&s.b, `<circle class="%s" cx="%.1f" cy="%.1f" r="3.5"/>`, class, x, y)
}

// text writes a text on the baseline y. anchor says which end of it is at x:
// start, middle or end.
func (s *svg) text(anchor string, x, y float64, text string) {
	fmt.Fprintf(&s.b, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, x, y, anchor, template.HTMLEscapeString(text))
}

// xAxis draws an axis below a plot, with a thin line up to top at each tick.
func (s *svg) xAxis(x scale, ticks []tick, top, bottom float64, label string) {
	s.line("axis", x.from, bottom, x.to, bottom)
	free := math.Inf(-1)
	for _, t := range ticks {
		at := x.at(t.value)
		s.line("grid", at, top, at, bottom)
		if half := textWidth(t.text) / 2; at-half >= free {
			s.text("middle", at, bottom+15, t.text)
			free = at + half + leastTickGap
		}
	}
	s.text("middle", (x.from+x.to)/2, bottom+33, label)
}

func textWidth(text string) float64 { return charWidth * float64(len([]rune(text))) }

func numberTicks(s scale) []tick {
	var out []tick
	for _, v := range s.ticks() {
		out = append(out, tick{v, tickNumber(v)})
	}
	return out
}

// bar is a value with a name.
type bar struct {
	name  string
	value Spread
}

// plotBars draws medians with their spread, a row for each. Ratios have a line
// at 1.
func plotBars(bars []bar, label string, ratios bool) template.HTML {
	var values []float64
	names := 0.0
	for _, b := range bars {
		values = append(values, b.value.Median, b.value.Min, b.value.Max)
		names = max(names, textWidth(b.name))
	}
	if ratios {
		values = append(values, 1)
	}
	left := plotMargin + names + plotMargin
	x := newScale(values, left, left+barsWidth)
	if x.log {
		label += ", logarithmic"
	}
	top, bottom := float64(plotMargin), float64(plotMargin+rowHeight*len(bars))
	s := newSVG(x.to+3*plotMargin, bottom+axisHeight, label)
	s.xAxis(x, numberTicks(x), top, bottom, label)
	if ratios {
		s.line("same", x.at(1), top, x.at(1), bottom)
	}
	for i, b := range bars {
		y := top + rowHeight*(float64(i)+0.5)
		s.text("end", left-plotMargin, y+4, b.name)
		s.line("spread s0", x.at(b.value.Min), y, x.at(b.value.Max), y)
		s.dot("dot s0", x.at(b.value.Median), y)
	}
	return s.html()
}

// xy is a point of a curve, with the text at its place on the x axis.
type xy struct {
	x, y float64
	tick string
}

// curve is a line in a chart.
type curve struct {
	name   string
	points []xy
}

// colours is how many colours the style sheet has for curves: s0, s1, …
const colours = 3

// plotChart draws curves with a line at 1. The x axis is logarithmic and has a
// tick at each point.
func plotChart(title, yLabel string, curves []curve) template.HTML {
	left := float64(plotMargin + textWidth("0.00") + 2*plotMargin)
	legend := float64(rowHeight * len(curves))
	top := plotMargin + legend + plotMargin
	bottom := top + curveHigh
	x := scale{from: left, to: left + curveWidth, log: true}
	ys := []float64{1}
	var ticks []tick
	for _, c := range curves {
		for _, p := range c.points {
			ys = append(ys, p.y)
			if t := (tick{p.x, p.tick}); !slices.Contains(ticks, t) {
				ticks = append(ticks, t)
			}
		}
	}
	slices.SortFunc(ticks, func(a, b tick) int { return cmp.Compare(a.value, b.value) })
	x.least, x.most = ticks[0].value, ticks[len(ticks)-1].value
	if x.least == x.most {
		x.most = 2 * x.least
	}
	y := newScale(ys, bottom, top)
	s := newSVG(x.to+3*plotMargin, bottom+axisHeight, title)
	s.xAxis(x, ticks, top, bottom, title)
	s.line("axis", left, top, left, bottom)
	for _, t := range numberTicks(y) {
		s.text("end", left-plotMargin/2, y.at(t.value)+4, t.text)
		s.line("grid", left, y.at(t.value), x.to, y.at(t.value))
	}
	fmt.Fprintf(&s.b, `<text transform="translate(%d %.1f) rotate(-90)" text-anchor="middle">%s</text>`,
		plotMargin+fontSize/2, (top+bottom)/2, template.HTMLEscapeString(yLabel))
	s.line("same", left, y.at(1), x.to, y.at(1))
	for i, c := range curves {
		s.curve(i, c, x, y, left)
	}
	return s.html()
}

// curve draws the i-th curve and its row of the legend.
func (s *svg) curve(i int, c curve, x, y scale, left float64) {
	colour := fmt.Sprintf(" s%d", i%colours)
	var points []string
	for _, p := range c.points {
		points = append(points, fmt.Sprintf("%.1f,%.1f", x.at(p.x), y.at(p.y)))
		s.dot("dot"+colour, x.at(p.x), y.at(p.y))
	}
	fmt.Fprintf(&s.b, `<polyline class="curve%s" points="%s"/>`, colour, strings.Join(points, " "))
	row := plotMargin + rowHeight*(float64(i)+0.5)
	s.dot("dot"+colour, left+8, row)
	s.text("start", left+20, row+4, c.name)
}
