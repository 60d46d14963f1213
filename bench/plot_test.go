package bench

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestScale(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		values []float64
		log    bool
		ticks  []float64
	}{
		{"ratios", []float64{0.8, 1.2}, false, []float64{0, 0.2, 0.4, 0.6, 0.8, 1, 1.2}},
		{"below zero", []float64{-3, 5}, false, []float64{-2, 0, 2, 4}},
		{"one value", []float64{7}, false, []float64{0, 1, 2, 3, 4, 5, 6, 7}},
		{"nothing", nil, false, []float64{0, 0.2, 0.4, 0.6, 0.8, 1}},
		{"decades", []float64{0, 0.3, 40}, true, []float64{0.1, 0.2, 0.5, 1, 2, 5, 10, 20}},
		{"many decades", []float64{3, 40000}, true, []float64{1, 10, 100, 1000, 10000}},
	} {
		s := newScale(c.values, 100, 200)
		same := func(a, b float64) bool { return math.Abs(a-b) < 1e-9*max(1, math.Abs(b)) }
		if got := s.ticks(); s.log != c.log || !slices.EqualFunc(got, c.ticks, same) {
			t.Errorf("%s: log %v, ticks %v; want %v, %v", c.name, s.log, got, c.log, c.ticks)
		}
		for _, v := range s.ticks() {
			if tickNumber(v) == "-0" {
				t.Errorf("%s: a tick says -0", c.name)
			}
		}
		for _, v := range append(s.ticks(), c.values...) {
			if at := s.at(v); math.IsNaN(at) || at < 100-1e-9 || at > 200+1e-9 {
				t.Errorf("%s: %v is at pixel %v of 100 to 200", c.name, v, at)
			}
		}
	}
}

var viewBox = regexp.MustCompile(`viewBox="0 0 ([0-9]+) ([0-9]+)"`)

// Each plot is well-formed XML, and with a wide font no text leaves it.
func TestPlots(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("W", 90)
	plots := map[string]string{
		"ratios": string(plotBars([]bar{{"a <b> & c", Spread{1, 0.9, 1.3}}, {long, Spread{2, 1, 3}}}, "ratio", true)),
		"log":    string(plotBars([]bar{{"small", Spread{0.01, 0, 0.02}}, {"large", Spread{900, 800, 1000}}}, "µs", false)),
		"chart": string(plotChart("over size", "ratio", []curve{
			{"one", []xy{{64, 0.5, "64"}, {1024, 1.1, "1024"}}}, {"two", []xy{{64, 0.7, "64"}}},
		})),
		"a single point": string(plotChart("over size", "ratio", []curve{{"one", []xy{{64, 0.5, "64"}}}})),
	}
	if !strings.Contains(plots["log"], "logarithmic") {
		t.Error("values from 0.01 to 1000 are on a linear axis")
	}
	for name, plot := range plots {
		size := viewBox.FindStringSubmatch(plot)
		if size == nil {
			t.Fatalf("%s: no viewBox", name)
		}
		width, _ := strconv.ParseFloat(size[1], 64)
		wantTextInside(t, name, plot, width)
	}
}

// wantTextInside fails if a plot isn't XML, or a text leaves it.
func wantTextInside(t *testing.T, name, plot string, width float64) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(plot))
	var anchor string
	var x float64
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v in %s", name, err, plot)
		}
		switch token := token.(type) {
		case xml.StartElement:
			anchor = ""
			for _, a := range token.Attr {
				v, err := strconv.ParseFloat(a.Value, 64)
				switch {
				case strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf"):
					t.Errorf("%s: %s=%q", name, a.Name.Local, a.Value)
				case a.Name.Local == "text-anchor":
					anchor = a.Value
				case a.Name.Local == "x" && err == nil:
					x = v
				}
			}
		case xml.CharData:
			if w := textWidth(string(token)); anchor == "end" && x < w || anchor == "start" && x+w > width {
				t.Errorf("%s: %q leaves the plot", name, token)
			}
		}
	}
}
