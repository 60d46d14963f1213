package bench

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"image/color"
	"io"
	"maps"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

//go:embed report.html
var pageText string

type pageGroup struct {
	Name  string
	Plots []template.HTML
	Rows  []pageRow
}

type pageRow struct {
	Cells   []string
	Verdict string // met, not met or empty
}

// WriteHTML writes the report as a page that needs nothing else: tables and plots.
func (r *Report) WriteHTML(w io.Writer) error {
	var data struct {
		Head    []string
		Curves  []template.HTML
		Groups  []pageGroup
		Lists   []list
		Met     int
		Targets int
	}
	data.Head, data.Lists = r.head(), r.lists()
	data.Met, data.Targets = r.score()
	var err error
	if data.Curves, err = plotCurves(r.Figures); err != nil {
		return fmt.Errorf("plot throughput: %w", err)
	}
	for _, g := range r.groups() {
		pg := pageGroup{Name: g.name}
		for _, f := range g.figures {
			row := pageRow{Cells: f.cells()}
			if f.Target != nil {
				row.Verdict = f.Target.verdict()
			}
			pg.Rows = append(pg.Rows, row)
		}
		if pg.Plots, err = plotGroup(g.figures); err != nil {
			return fmt.Errorf("plot %s: %w", g.name, err)
		}
		data.Groups = append(data.Groups, pg)
	}
	page, err := template.New("report").Parse(pageText)
	if err != nil {
		return fmt.Errorf("page: %w", err)
	}
	if err := page.Execute(w, data); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

// Plots are black on white: the page inverts them where it is dark.
var plotColors = []color.Color{
	color.RGBA{R: 0x1f, G: 0x6f, B: 0xb4, A: 0xff}, color.RGBA{R: 0xd9, G: 0x5f, B: 0x02, A: 0xff}, color.RGBA{R: 0x1b, G: 0x9e, B: 0x77, A: 0xff},
}

// mostBars is how many values one plot shows; more can't be read.
const mostBars = 40

// plotGroup draws the ratios of figures that have a neighbour, and the values of the others, those with the same unit together.
func plotGroup(figures []Figure) ([]template.HTML, error) {
	var ratios []bar
	values := map[string][]bar{}
	var units []string
	for _, f := range figures {
		if f.Ratio != nil {
			ratios = append(ratios, bar{f.Name, *f.Ratio})
			continue
		}
		if values[f.Unit] == nil {
			units = append(units, f.Unit)
		}
		values[f.Unit] = append(values[f.Unit], bar{f.Name, f.Ours})
	}
	var out []template.HTML
	if len(ratios) > 0 {
		svg, err := plotBars(ratios, "ratio to the neighbour (median, min, max)", true)
		if err != nil {
			return nil, err
		}
		out = append(out, svg)
	}
	for _, unit := range units {
		for _, part := range readable(values[unit]) {
			label := strings.TrimSpace(part.quantity + " " + unit + " (median, min, max)")
			svg, err := plotBars(part.bars, label, false)
			if err != nil {
				return nil, err
			}
			out = append(out, svg)
		}
	}
	return out, nil
}

// plotPart is what one plot shows of a group.
type plotPart struct {
	quantity string // "": all of them
	bars     []bar
}

// readable makes parts of values that are too many for one plot: one for each quantity, which is what stands behind the first colon of a name.
func readable(bars []bar) []plotPart {
	if len(bars) <= mostBars {
		return []plotPart{{bars: bars}}
	}
	var parts []plotPart
	for _, b := range bars {
		name, quantity, _ := strings.Cut(b.name, ": ")
		i := slices.IndexFunc(parts, func(p plotPart) bool { return p.quantity == quantity })
		if i < 0 {
			i = len(parts)
			parts = append(parts, plotPart{quantity: quantity})
		}
		parts[i].bars = append(parts[i].bars, bar{name, b.value})
	}
	return parts
}

// bar is a value with a name.
type bar struct {
	name  string
	value Spread
}

// barPoints is what gonum needs to draw medians with their spread.
type barPoints struct {
	plotter.XYs
	plotter.XErrors
}

// plotBars draws medians with their spread, a row for each, and a line at 1 if they are ratios.
func plotBars(bars []bar, label string, ratios bool) (template.HTML, error) {
	var points barPoints
	var names []string
	for _, b := range slices.Backward(bars) {
		points.XYs = append(points.XYs, plotter.XY{X: b.value.Median, Y: float64(len(names))})
		points.XErrors = append(points.XErrors, struct{ Low, High float64 }{b.value.Median - b.value.Min, b.value.Max - b.value.Median})
		names = append(names, b.name)
	}
	p := newPlot()
	p.X.Label.Text = label
	p.X.Min = 0
	p.NominalY(names...)
	spread, err := plotter.NewXErrorBars(points)
	if err != nil {
		return "", err
	}
	medians, err := plotter.NewScatter(points)
	if err != nil {
		return "", err
	}
	medians.GlyphStyle = draw.GlyphStyle{Color: plotColors[0], Radius: vg.Points(3), Shape: draw.CircleGlyph{}}
	if ratios {
		same, err := plotter.NewLine(plotter.XYs{{X: 1, Y: -0.5}, {X: 1, Y: float64(len(names)) - 0.5}})
		if err != nil {
			return "", err
		}
		dashed(same)
		p.Add(same)
	}
	p.Add(spread, medians)
	return drawPlot(p, vg.Points(50+18*float64(len(names))))
}

// plotCurves draws throughput beside plain sockets over ring size and over streams, with a curve for each guest's end.
func plotCurves(figures []Figure) ([]template.HTML, error) {
	type curves map[string]plotter.XYs // by series
	charts := map[string]curves{}
	var titles []string
	ticks := map[string][]plot.Tick{}
	add := func(title, series, tick string, x, y float64) {
		if charts[title] == nil {
			charts[title] = curves{}
			titles = append(titles, title)
		}
		charts[title][series] = append(charts[title][series], plotter.XY{X: x, Y: y})
		if t := (plot.Tick{Value: x, Label: tick}); !slices.Contains(ticks[title], t) {
			ticks[title] = append(ticks[title], t)
		}
	}
	for _, f := range figures {
		if p := f.Point; p != nil && f.Ratio != nil {
			add(fmt.Sprintf("%s, %d streams, over the ring's size in KiB", p.Way, p.Streams), p.Series, fmt.Sprint(p.Ring>>10), float64(p.Ring), f.Ratio.Median)
		}
	}
	for _, f := range figures {
		if p := f.Point; p != nil && f.Ratio != nil && p.Ring == mebibyte {
			add(fmt.Sprintf("%s, rings of 1 MiB, over the number of streams", p.Way), p.Series, fmt.Sprint(p.Streams), float64(p.Streams), f.Ratio.Median)
		}
	}
	var out []template.HTML
	for _, title := range titles {
		p := newPlot()
		p.X.Label.Text, p.Y.Label.Text = title, "throughput by plain TCP's"
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.ConstantTicks(ticks[title])
		p.Y.Min = 0
		p.Legend.Top = true
		p.Legend.TextStyle.Font.Variant = "Sans"
		var least, most float64
		for i, series := range slices.Sorted(maps.Keys(charts[title])) {
			points := charts[title][series]
			line, dots, err := plotter.NewLinePoints(points)
			if err != nil {
				return nil, err
			}
			line.Color, line.Width = plotColors[i%len(plotColors)], vg.Points(1.5)
			dots.GlyphStyle = draw.GlyphStyle{Color: line.Color, Radius: vg.Points(3), Shape: draw.CircleGlyph{}}
			p.Add(line, dots)
			p.Legend.Add(series, line, dots)
			for _, xy := range points {
				if least == 0 || xy.X < least {
					least = xy.X
				}
				most = max(most, xy.X)
			}
		}
		same, err := plotter.NewLine(plotter.XYs{{X: least, Y: 1}, {X: max(most, 2*least), Y: 1}})
		if err != nil {
			return nil, err
		}
		dashed(same)
		p.Add(same)
		// Room for the legend.
		p.Y.Max *= 1.4
		svg, err := drawPlot(p, vg.Points(220))
		if err != nil {
			return nil, err
		}
		out = append(out, svg)
	}
	return out, nil
}

func newPlot() *plot.Plot {
	p := plot.New()
	for _, s := range []*draw.TextStyle{&p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label} {
		s.Font.Variant = "Sans"
	}
	return p
}

func dashed(l *plotter.Line) {
	l.Color, l.Dashes = color.Gray{Y: 0x80}, []vg.Length{vg.Points(4), vg.Points(3)}
}

// drawPlot draws as SVG.
func drawPlot(p *plot.Plot, height vg.Length) (template.HTML, error) {
	canvas := vgsvg.New(vg.Points(560), height)
	const margin = 8
	p.Draw(draw.Crop(draw.New(canvas), margin, -margin, margin, -margin))
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return "", err
	}
	// In a page there is no XML declaration before an svg element.
	svg := b.Bytes()
	return template.HTML(svg[max(0, bytes.Index(svg, []byte("<svg"))):]), nil
}
