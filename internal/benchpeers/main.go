// Command benchpeers measures this module beside the other implementations of the same thing, and prints Markdown.
//
//	go run ./internal/benchpeers                     everything; about half an hour
//	go run ./internal/benchpeers -parts packing      one part
//	go run ./internal/benchpeers -json peers.json    the figures in a file as well
//
// Each measurement of memory is a process of its own. Implementations take turns, so that a slow minute of the machine is everybody's, and the
// median of the rounds counts. It needs the JavaScript packages in interop/node_modules (npm ci in interop) for the rows that name them, and
// leaves those out without.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// A part is one topic of the report. It writes Markdown to w as soon as it has figures, and returns them for the JSON file, nil if it has none.
type part struct {
	name string
	run  func(ctx context.Context, w io.Writer) (any, error)
}

// parts are all topics, in the order of the report.
func parts() []part {
	return []part{
		{"commp", written(CommP)},
		{"aggregates", aggregates},
		{"packing", packing},
	}
}

// written is a part without figures for the JSON file.
func written(run func(ctx context.Context, w io.Writer) error) func(context.Context, io.Writer) (any, error) {
	return func(ctx context.Context, w io.Writer) (any, error) { return nil, run(ctx, w) }
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("benchpeers: ")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string, w io.Writer) error {
	flags := flag.NewFlagSet("benchpeers", flag.ContinueOnError)
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	chosen := flags.String("parts", strings.Join(names, ","), "what to measure")
	file := flags.String("json", "", "file for the figures")
	child := flags.String("child", "", "measure one thing in this process; for benchpeers itself")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *child != "" {
		return aggregateChild(*child, w)
	}
	list := strings.Split(*chosen, ",")
	for _, name := range list {
		if !slices.Contains(names, name) {
			return fmt.Errorf("there is no part %q, only %s", name, strings.Join(names, ", "))
		}
	}
	fmt.Fprintf(w, "%s, %d cores used, %s %s/%s\n", processor(), runtime.GOMAXPROCS(0), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	figures := map[string]any{"processor": processor(), "cores": runtime.GOMAXPROCS(0), "go": runtime.Version()}
	for _, p := range parts() {
		if !slices.Contains(list, p.name) {
			continue
		}
		f, err := p.run(ctx, w)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if f != nil {
			figures[p.name] = f
		}
	}
	if *file == "" {
		return nil
	}
	b, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding figures: %w", err)
	}
	if err := os.WriteFile(*file, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing figures: %w", err)
	}
	return nil
}

// processor returns the name and model of the processor, as Linux has it.
func processor() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	field := func(name string) string {
		_, rest, _ := strings.Cut("\n"+string(info), "\n"+name)
		line, _, _ := strings.Cut(rest, "\n")
		_, value, _ := strings.Cut(line, ":")
		return strings.TrimSpace(value)
	}
	return fmt.Sprintf("%s (family %s, model %s)", field("model name"), field("cpu family"), field("model\t"))
}

// median of values that are there; 0 if none is.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
