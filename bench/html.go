package bench

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"image/color"
	"io"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

//go:embed report.html
var pageText string

type pageGroup struct {
	Name string
	Plot template.HTML // of the ratios; empty if there is none
	Rows []pageRow
}

type pageRow struct {
	Cells   []string
	Verdict string // met, not met or empty
}

// WriteHTML writes the report as a page that needs nothing else: tables, and a plot of the ratios of each group.
func (r *Report) WriteHTML(w io.Writer) error {
	var data struct {
		Head    []string
		Groups  []pageGroup
		Missing []Missing
		Met     int
		Targets int
	}
	data.Head, data.Missing = r.head(), r.Missing
	data.Met, data.Targets = r.score()
	for _, g := range r.groups() {
		pg := pageGroup{Name: g.name}
		for _, f := range g.figures {
			row := pageRow{Cells: f.cells()}
			if f.Target != nil {
				row.Verdict = f.Target.verdict()
			}
			pg.Rows = append(pg.Rows, row)
		}
		svg, err := plotRatios(g.figures)
		if err != nil {
			return fmt.Errorf("plot %s: %w", g.name, err)
		}
		pg.Plot = template.HTML(svg)
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

// ratioPoints is what gonum needs to draw medians with their spread.
type ratioPoints struct {
	plotter.XYs
	plotter.XErrors
}

// plotRatios draws the ratio of each figure that has a neighbour, with its spread, as SVG; nothing if there is none. It is black on white: the
// page inverts it where it is dark.
func plotRatios(figures []Figure) ([]byte, error) {
	var points ratioPoints
	var names []string
	for i := len(figures) - 1; i >= 0; i-- {
		f := figures[i]
		if f.Ratio == nil {
			continue
		}
		points.XYs = append(points.XYs, plotter.XY{X: f.Ratio.Median, Y: float64(len(names))})
		points.XErrors = append(points.XErrors, struct{ Low, High float64 }{f.Ratio.Median - f.Ratio.Min, f.Ratio.Max - f.Ratio.Median})
		names = append(names, f.Name)
	}
	if len(names) == 0 {
		return nil, nil
	}
	p := plot.New()
	for _, s := range []*draw.TextStyle{&p.X.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label} {
		s.Font.Variant = "Sans"
	}
	p.X.Label.Text = "ratio to the neighbour: median, least and most of the rounds"
	p.X.Min = 0
	p.NominalY(names...)
	spread, err := plotter.NewXErrorBars(points)
	if err != nil {
		return nil, err
	}
	medians, err := plotter.NewScatter(points)
	if err != nil {
		return nil, err
	}
	medians.GlyphStyle = draw.GlyphStyle{Color: color.RGBA{R: 0x1f, G: 0x6f, B: 0xb4, A: 0xff}, Radius: vg.Points(3), Shape: draw.CircleGlyph{}}
	same, err := plotter.NewLine(plotter.XYs{{X: 1, Y: -0.5}, {X: 1, Y: float64(len(names)) - 0.5}})
	if err != nil {
		return nil, err
	}
	same.Color, same.Dashes = color.Gray{Y: 0x80}, []vg.Length{vg.Points(4), vg.Points(3)}
	p.Add(same, spread, medians)

	canvas := vgsvg.New(vg.Points(560), vg.Points(50+18*float64(len(names))))
	const margin = 8
	p.Draw(draw.Crop(draw.New(canvas), margin, -margin, margin, -margin))
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return nil, err
	}
	// In a page there is no XML declaration before an svg element.
	svg := b.Bytes()
	return svg[max(0, bytes.Index(svg, []byte("<svg"))):], nil
}
