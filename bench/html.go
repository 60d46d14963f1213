package bench

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strings"
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

// WriteHTML writes the report as a page that loads nothing: the summary, and
// tables and plots of every figure.
func (r *Report) WriteHTML(w io.Writer) error {
	var data struct {
		Head    []string
		Columns summaryLine
		Summary []summaryLine
		End     string // the verdict on all of them
		Key     string // what the summary's words mean
		Curves  []template.HTML
		Groups  []pageGroup
		Lists   []list
	}
	data.Head, data.Lists = r.head(), r.lists()
	data.Columns = r.summaryHead()
	data.Summary, data.End = r.summary(), r.summaryEnd()
	data.Key = summaryKey(data.Summary)
	data.Curves = plotCurves(r.Figures)
	for _, g := range r.groups() {
		pg := pageGroup{Name: g.name}
		for _, f := range g.figures {
			row := pageRow{Cells: f.cells()}
			if f.Target != nil {
				row.Verdict = f.Target.verdict()
			}
			pg.Rows = append(pg.Rows, row)
		}
		pg.Plots = plotGroup(g.figures)
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

// mostBars is how many values one plot shows. More couldn't be read.
const mostBars = 40

// plotGroup draws the ratios of figures that have a neighbour, and the values
// of the others, those with the same unit together.
func plotGroup(figures []Figure) []template.HTML {
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
		out = append(out, plotBars(ratios, "ratio to the neighbour (median, min, max)", true))
	}
	for _, unit := range units {
		for _, part := range readable(values[unit]) {
			label := strings.TrimSpace(part.quantity + " " + unit + " (median, min, max)")
			out = append(out, plotBars(part.bars, label, false))
		}
	}
	return out
}

// plotPart is what one plot shows of a group.
type plotPart struct {
	quantity string // "": all of them
	bars     []bar
}

// readable divides values that are too many for one plot into one plot for each
// quantity, the text behind the first colon of a name.
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

// plotCurves draws throughput beside plain sockets over ring size and over
// streams, with a curve for each guest's end.
func plotCurves(figures []Figure) []template.HTML {
	charts := map[string]map[string][]xy{} // by title, by series
	var titles []string
	add := func(title, series string, p xy) {
		if charts[title] == nil {
			charts[title] = map[string][]xy{}
			titles = append(titles, title)
		}
		charts[title][series] = append(charts[title][series], p)
	}
	for _, f := range figures {
		if p := f.Point; p != nil && f.Ratio != nil {
			title := fmt.Sprintf("%s, %s, over the ring's size in KiB", p.Way, manyStreams(p.Streams))
			add(title, p.Series, xy{float64(p.Ring), f.Ratio.Median, fmt.Sprint(p.Ring >> 10)})
		}
	}
	for _, f := range figures {
		if p := f.Point; p != nil && f.Ratio != nil && p.Ring == mebibyte {
			title := fmt.Sprintf("%s, rings of 1 MiB, over the number of streams", p.Way)
			add(title, p.Series, xy{float64(p.Streams), f.Ratio.Median, fmt.Sprint(p.Streams)})
		}
	}
	var out []template.HTML
	for _, title := range titles {
		var curves []curve
		for _, series := range slices.Sorted(maps.Keys(charts[title])) {
			curves = append(curves, curve{series, charts[title][series]})
		}
		out = append(out, plotChart(title, "throughput by plain TCP's", curves))
	}
	return out
}
