// Command bench measures the built binary the way users load it, beside the published JavaScript storefront, in one run:
//
//   - offers: durable filecoin/offer over HTTP at 1, 16 and 64 in flight, workers running, with bodies signed beforehand and the same generator
//     for all; with the bound that the signatures alone set at that moment;
//   - pending: what a piece costs an aggregator where 1,000, 10,000 and 100,000 are pending;
//   - deals: pieces per second from the offer until filecoin/accept, with a simulated chain and storage provider.
//
// Rounds are short and interleaved; tables show medians of them. Everything listens on 127.0.0.1 and ends with this program. It reads
// /proc, so it runs on Linux only. docs/performance.md says what the figures mean.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// results are what one run measured.
type results struct {
	Began   time.Time `json:"began"`
	Machine machine   `json:"machine"`
	Offers  []sample  `json:"offers,omitempty"`
	Pending []mark    `json:"pending,omitempty"`
	Deals   *dealt    `json:"deals,omitempty"`
}

type machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	Node   string `json:"node"`
	Commit string `json:"commit"`
}

func run(ctx context.Context, args []string) (err error) {
	var (
		flags    = flag.NewFlagSet("bench", flag.ContinueOnError)
		parts    = flags.String("parts", "offers,pending,deals", "what to measure")
		rounds   = flags.Int("rounds", 3, "rounds of offers")
		length   = flags.Duration("time", 1500*time.Millisecond, "how long each load lasts")
		marks    = flags.String("pending", "1000,10000,100000", "how many pieces are pending")
		pieces   = flags.Int("pieces", 2000, "how many pieces go all the way")
		peer     = flags.String("peer", "internal/bench/peer.mjs", "the JavaScript peer; empty for none")
		scratch  = flags.String("dir", "run", "directory on the disk that is to be measured")
		out      = flags.String("out", "run/bench.json", "file for all figures")
		profiles = flags.String("profile", "", "write a CPU profile of each load on our servers to this directory")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := os.MkdirAll(*scratch, 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(*scratch, "bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	say := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	binary, err := build(ctx, dir, *profiles)
	if err != nil {
		return err
	}
	if _, err := os.Stat("interop/node_modules"); *peer != "" && err != nil {
		return fmt.Errorf("the packages of the JavaScript peer are not there: run `npm ci` in interop/, or measure without it (-peer '')")
	}
	r := results{Began: time.Now().UTC(), Machine: thisMachine(ctx)}
	for part := range strings.SplitSeq(*parts, ",") {
		switch part {
		case "offers":
			load := &offerLoad{binary: binary, dir: dir, peer: *peer, rounds: *rounds, time: *length, profile: *profiles != "", say: say}
			r.Offers, err = load.run(ctx)
		case "pending":
			p := &pending{binary: binary, dir: dir, say: say}
			for text := range strings.SplitSeq(*marks, ",") {
				n, err := strconv.Atoi(text)
				if err != nil {
					return err
				}
				p.marks = append(p.marks, n)
			}
			r.Pending, err = p.run(ctx)
		case "deals":
			r.Deals, err = (&deals{binary: binary, dir: dir, pieces: *pieces, profile: *profiles != "", say: say}).run(ctx)
		default:
			err = fmt.Errorf("there is no part %q, only offers, pending and deals", part)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	report(os.Stdout, r)
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(*out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(*out, append(text, '\n'), 0o644)
}

// build builds the binary from the tree. With a directory for profiles, a file is laid over the command's that has it write a CPU profile: the
// binary that is released has no such thing.
func build(ctx context.Context, dir, profiles string) (string, error) {
	binary := filepath.Join(dir, "w3filecoin")
	args := []string{"build", "-trimpath", "-o", binary}
	if profiles != "" {
		profiles, err := filepath.Abs(profiles)
		if err != nil {
			return "", err
		}
		if err := os.MkdirAll(profiles, 0o755); err != nil {
			return "", err
		}
		extra, err := filepath.Abs(filepath.Join(dir, "profile.go"))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(extra, fmt.Appendf(nil, profiler, profiles), 0o644); err != nil {
			return "", err
		}
		target, err := filepath.Abs("cmd/w3filecoin/profile_bench.go")
		if err != nil {
			return "", err
		}
		overlay, err := json.Marshal(map[string]map[string]string{"Replace": {target: extra}})
		if err != nil {
			return "", err
		}
		file := filepath.Join(dir, "overlay.json")
		if err := os.WriteFile(file, overlay, 0o644); err != nil {
			return "", err
		}
		args = append(args, "-overlay", file)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/w3filecoin")...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the binary: %w\n%s", err, text)
	}
	return filepath.Abs(binary)
}

// profiler is the file that is laid over the command. SIGUSR1 begins a profile, SIGUSR2 ends it.
const profiler = `package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
	"time"
)

func init() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		var f *os.File
		for s := range signals {
			pprof.StopCPUProfile()
			f.Close()
			if s == syscall.SIGUSR1 {
				var err error
				if f, err = os.Create(fmt.Sprintf("%%s/cpu-%%d-%%s.pprof", %q, os.Getpid(), time.Now().Format("150405.000"))); err != nil {
					panic(err)
				}
				if err := pprof.StartCPUProfile(f); err != nil {
					panic(err)
				}
			}
		}
	}()
}
`

func thisMachine(ctx context.Context) machine {
	m := machine{Cores: runtime.GOMAXPROCS(0), Go: runtime.Version(), CPU: "unknown"}
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		var family, model string
		for line := range strings.Lines(string(info)) {
			name, value, _ := strings.Cut(line, ":")
			value = strings.TrimSpace(value)
			switch strings.TrimSpace(name) {
			case "model name":
				m.CPU = value
			case "cpu family":
				family = value
			case "model":
				model = value
			}
		}
		m.CPU += fmt.Sprintf(" (family %s model %s)", family, model)
	}
	first := func(name string, args ...string) string {
		out, err := exec.CommandContext(ctx, name, args...).Output()
		if err != nil {
			return "unknown"
		}
		return string(bytes.TrimSpace(out))
	}
	m.Kernel = first("uname", "-r")
	m.Node = first("node", "--version")
	m.Commit = first("git", "rev-parse", "--short", "HEAD")
	return m
}

// median of a measurement over the rounds.
func median(list []sample, of func(sample) float64) float64 {
	var v []float64
	for _, s := range list {
		v = append(v, of(s))
	}
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
