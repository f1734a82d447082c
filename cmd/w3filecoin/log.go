package main

import (
	"log/slog"
	"strings"
)

// logger writes text to a terminal and JSON to anything else.
func (a *app) logger(level slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if a.terminal {
		return slog.New(slog.NewTextHandler(a.stderr, options))
	}
	return slog.New(slog.NewJSONHandler(a.stderr, options))
}

func parseLevel(s string) (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(strings.ToUpper(s))); err != nil {
		return l, usage("choose debug, info, warn or error", "%q is not a log level", s)
	}
	return l, nil
}
