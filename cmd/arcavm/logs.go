package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"github.com/fix-project/arcavm/hypercall"
)

var (
	logLevels  = []string{"error", "warn", "info", "debug", "trace"}
	logFormats = []string{"text", "json"}
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

// newLogger writes records to s.err: as JSON, or as text, with colours on a
// terminal. Those that its queue drops are told of by a record of the same
// form.
func newLogger(s streams, level, format string) *slog.Logger {
	if s.queue != nil {
		s.queue.OnDropped(func(n uint64) []byte {
			var b bytes.Buffer
			slog.New(newLogHandler(&b, s.terminal, level, format)).Error(
				fmt.Sprintf("%d records dropped: standard error took no more", n), "dropped", n)
			return b.Bytes()
		})
	}
	return slog.New(newLogHandler(s.err, s.terminal, level, format))
}

func newLogHandler(w io.Writer, terminal bool, level, format string) slog.Handler {
	options := slog.HandlerOptions{Level: slogLevel(level), ReplaceAttr: nameTrace}
	switch {
	case format == "json":
		return slog.NewJSONHandler(w, &options)
	case terminal:
		return tint.NewTextHandler(w, &tint.Options{
			Level: options.Level, TimeFormat: "15:04:05.000", NoColor: os.Getenv("NO_COLOR") != "",
			ReplaceAttr: tintTrace,
		})
	}
	return slog.NewTextHandler(w, &options)
}

func isTrace(groups []string, a slog.Attr) bool {
	level, ok := a.Value.Any().(slog.Level)
	return ok && a.Key == slog.LevelKey && len(groups) == 0 && level == hypercall.SlogTrace
}

// nameTrace gives trace records the name of their level, which package slog doesn't know.
func nameTrace(groups []string, a slog.Attr) slog.Attr {
	if isTrace(groups, a) {
		return slog.String(slog.LevelKey, "TRACE")
	}
	return a
}

func tintTrace(groups []string, a slog.Attr) slog.Attr {
	if isTrace(groups, a) {
		return tint.Attr(13, slog.String(slog.LevelKey, "TRC"))
	}
	return a
}

func isTerminal(f *os.File) bool {
	return term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}
