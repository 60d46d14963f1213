package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"

	"golang.org/x/term"

	"github.com/fix-project/arcavm/hypercall"
	"github.com/fix-project/arcavm/internal/printable"
)

func slogLevel(name string) slog.Level {
	switch name {
	case "error":
		return slog.LevelError
	case "warn":
		return slog.LevelWarn
	case "debug":
		return slog.LevelDebug
	case "trace":
		return hypercall.SlogTrace
	}
	return slog.LevelInfo
}

// newLogger returns a logger to standard error: of JSON, or of text, with
// colours on a terminal. Where the queue below drops records, a record of the
// same form says how many.
func newLogger(s streams, level, format string) *slog.Logger {
	if s.queue != nil {
		s.queue.OnDropped(func(n uint64) []byte {
			var b bytes.Buffer
			slog.New(newLogHandler(&b, s.terminal, level, format)).Error(
				fmt.Sprintf("%d records dropped: standard error took no more", n), "dropped", n)
			return b.Bytes()
		})
	}
	return slog.New(newLogHandler(s.raw, s.terminal, level, format))
}

func newLogHandler(w io.Writer, terminal bool, level, format string) slog.Handler {
	options := slog.HandlerOptions{Level: slogLevel(level), ReplaceAttr: nameTrace}
	switch {
	case format == "json":
		return slog.NewJSONHandler(printable.NewWriter(w), &options)
	case terminal:
		options.ReplaceAttr = shortTime
		return slog.NewTextHandler(display{w, os.Getenv("NO_COLOR") == ""}, &options)
	}
	return slog.NewTextHandler(printable.NewWriter(w), &options)
}

// nameTrace gives trace records the name of their level, which package slog
// doesn't know.
func nameTrace(groups []string, a slog.Attr) slog.Attr {
	level, ok := a.Value.Any().(slog.Level)
	if ok && a.Key == slog.LevelKey && len(groups) == 0 && level == hypercall.SlogTrace {
		return slog.String(slog.LevelKey, "TRACE")
	}
	return a
}

// shortTime is nameTrace for a terminal, where the date is of no use.
func shortTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 && a.Value.Kind() == slog.KindTime {
		return slog.String(slog.TimeKey, a.Value.Time().Format("15:04:05.000"))
	}
	return nameTrace(groups, a)
}

// display is the writer below a [slog.TextHandler] for a terminal. It lays out
// each record for people, in colours. All but the colours is printable,
// whatever the record holds: a guest wrote it.
type display struct {
	w       io.Writer
	colours bool
}

const (
	faint = "\x1b[2m"
	reset = "\x1b[0m"
)

// levelForms are how levels look, by the name that the handler writes.
var levelForms = map[string]struct{ text, colour string }{
	"ERROR": {"ERR", "\x1b[91m"},
	"WARN":  {"WRN", "\x1b[93m"},
	"INFO":  {"INF", "\x1b[92m"},
	"DEBUG": {"DBG", ""},
	"TRACE": {"TRC", "\x1b[95m"},
}

// Write takes one record, as the handler writes it.
func (d display) Write(record []byte) (int, error) {
	var line []byte
	for i, rest := 0, bytes.TrimSuffix(record, []byte("\n")); len(rest) > 0; i++ {
		var key, value []byte
		key, value, rest = cutAttr(rest)
		// The time, the level and the message come first; an attribute after
		// them may have the same key.
		switch name := string(key); {
		case i == 0 && name == slog.TimeKey:
			line = d.paint(line, faint, value)
		case i <= 1 && name == slog.LevelKey:
			form, known := levelForms[string(value)]
			if !known {
				form.text = string(value)
			}
			line = d.paint(line, form.colour, []byte(form.text))
		case i <= 2 && name == slog.MessageKey:
			line = d.paint(line, "", unquote(value))
		default:
			line = d.paint(line, faint, append(key, '='))
			line = d.paint(line, "", value)
		}
		line = append(line, ' ')
	}
	if len(line) > 0 {
		line[len(line)-1] = '\n'
	}
	if _, err := d.w.Write(line); err != nil {
		return 0, err
	}
	return len(record), nil
}

// paint appends text in a colour, without the bytes that a terminal obeys.
func (d display) paint(line []byte, colour string, text []byte) []byte {
	if d.colours {
		line = append(line, colour...)
	}
	line = printable.Append(line, bytes.ReplaceAll(text, []byte("\n"), []byte(`\n`)))
	if d.colours && colour != "" {
		line = append(line, reset...)
	}
	return line
}

// cutAttr cuts the first key=value off a text of several. The key and the value
// may each be quoted, and stay so.
func cutAttr(text []byte) (key, value, rest []byte) {
	end := wordEnd(text, '=')
	key, text = text[:end:end], text[min(end+1, len(text)):]
	end = wordEnd(text, ' ')
	return key, text[:end], text[min(end+1, len(text)):]
}

// wordEnd returns where the first word of text ends: at a byte outside quotes,
// or with the text.
func wordEnd(text []byte, before byte) int {
	quoted := false
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '"':
			quoted = !quoted
		case text[i] == '\\' && quoted:
			i++
		case text[i] == before && !quoted:
			return i
		}
	}
	return len(text)
}

func unquote(text []byte) []byte {
	if s, err := strconv.Unquote(string(text)); err == nil {
		return []byte(s)
	}
	return text
}

func isTerminal(f *os.File) bool {
	return term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}
