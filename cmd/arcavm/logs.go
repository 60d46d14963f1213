package main

import (
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

// newLogger writes records to s.err: as JSON, or as text, with colours on a terminal.
func newLogger(s streams, level, format string) *slog.Logger {
	options := slog.HandlerOptions{Level: slogLevel(level), ReplaceAttr: nameTrace}
	switch {
	case format == "json":
		return slog.New(slog.NewJSONHandler(s.err, &options))
	case s.terminal:
		return slog.New(tint.NewTextHandler(s.err, &tint.Options{
			Level: options.Level, TimeFormat: "15:04:05.000", NoColor: os.Getenv("NO_COLOR") != "",
			ReplaceAttr: tintTrace,
		}))
	}
	return slog.New(slog.NewTextHandler(s.err, &options))
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
