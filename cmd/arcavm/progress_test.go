package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := newProgress(&out, func(text string) { out.WriteString(text + "\n") })
		p.begin("first")
		time.Sleep(1500 * time.Millisecond)
		p.beside(func() { out.WriteString("else\n") })
		p.begin("second")
		time.Sleep(time.Second)
		p.end()
		p.end()
		time.Sleep(time.Minute)
		const erased = "\r\x1b[K"
		if got, want := out.String(), "first\n\r… 1 s "+erased+"else\n"+erased+"second\n\r… 0 s "+erased; got != want {
			t.Errorf("the terminal got %q, want %q", got, want)
		}
	})
}

// Without a terminal there are lines, and no seconds.
func TestProgressLines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var said []string
		p := newProgress(nil, func(text string) { said = append(said, text) })
		p.begin("first")
		p.beside(func() {})
		time.Sleep(time.Minute)
		p.begin("second")
		p.end()
		if got := strings.Join(said, " "); got != "first second" {
			t.Errorf("%q was said", got)
		}
	})
}
