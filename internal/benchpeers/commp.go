package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	commpSize     = 66_584_576  // bytes: fills a piece of 64 MiB
	commpPeakSize = 266_338_304 // bytes: fills a piece of 256 MiB
	commpRounds   = 7

	hashhash    = "go-fil-commp-hashhash"
	dataSegment = "go-data-segment"
	wasm        = "fr32-sha2-256-trunc254-... (WASM)"
)

// cyclesPerNode are the limits of the processors' units: a node is two compressions of SHA-256, of which the second has a
// constant message.
//
//   - AVX-512: 1616 + 8 operations on 16 lanes for the first compression, 1024 + 9 for the second, and on average 49 to
//     bring leaves into lanes, at two operations in a cycle, for 16 nodes.
//   - SHA extensions: 64 instructions, one in three cycles.
//
// 127 bytes of payload make four nodes. Both are for Intel's cores since Ice Lake; the clock is measured.
var cyclesPerNode = map[string]float64{"AVX-512": 84.6, "SHA-NI": 192}

// A commpWorker is a process that hashes on request.
type commpWorker struct {
	in     *json.Encoder
	out    *bufio.Scanner
	closer io.Closer
	cmd    *exec.Cmd
}

type commpRequest struct {
	Name   string
	Mode   string // memory, stream or content
	Size   int    // bytes
	Cores  int
	Repeat int
}

type commpAnswer struct {
	Root    string
	Seconds float64 // by the clock on the wall, once
	CPU     float64 // of all cores, once
	GHz     float64
	Kernels []string
}

func startCommp(ctx context.Context, name string, args ...string) (*commpWorker, commpAnswer, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, commpAnswer{}, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, commpAnswer{}, err
	}
	if err := cmd.Start(); err != nil {
		return nil, commpAnswer{}, err
	}
	p := &commpWorker{in: json.NewEncoder(in), out: bufio.NewScanner(out), closer: in, cmd: cmd}
	ready, err := p.receive()
	return p, ready, err
}

func (p *commpWorker) receive() (commpAnswer, error) {
	if !p.out.Scan() {
		return commpAnswer{}, errors.Join(errors.New("a process of the benchmark ended"), p.out.Err())
	}
	var a commpAnswer
	err := json.Unmarshal(p.out.Bytes(), &a)
	return a, err
}

func (p *commpWorker) ask(r commpRequest) (commpAnswer, error) {
	if err := p.in.Encode(r); err != nil {
		return commpAnswer{}, err
	}
	return p.receive()
}

func (p *commpWorker) stop() error { return errors.Join(p.closer.Close(), p.cmd.Wait()) }

// A commpRow is the figures of one implementation in one mode.
type commpRow struct {
	name    string
	samples []commpAnswer
}

// commpBench lets implementations take turns.
type commpBench struct {
	golang *commpWorker
	node   []*commpWorker // one for each core; none without Node and the package
	names  []string       // of all implementations, ours first
}

// CommP compares ways to compute the root of a piece and writes Markdown tables to w: speed by the byte in memory,
// streamed from a file and with the content's SHA-256, for one core and for two, small pieces, and memory. All
// implementations hash the same bytes and take turns in each round; the medians of the rounds are shown. It fails if two
// of them disagree on a root.
func CommP(ctx context.Context, w io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "commp")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	program, input := filepath.Join(dir, "commp"), filepath.Join(dir, "input")
	build := exec.CommandContext(ctx, "go", "build", "-tags", "benchpeers", "-o", program, "./internal/benchpeers/commp")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the worker in the module's root: %w\n%s", err, out)
	}

	var b commpBench
	var ready commpAnswer
	b.golang, ready, err = startCommp(ctx, program, "-file", input, "-size", fmt.Sprint(commpSize))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.golang.stop()) }()
	ours := ready.Kernels
	b.names = append(append(b.names, ours...), hashhash, dataSegment)
	modules, err := filepath.Abs("interop")
	if err != nil {
		return err
	}
	script := filepath.Join("internal", "benchpeers", "peers.mjs")
	for range 2 {
		p, _, err := startCommp(ctx, "node", script, modules, input)
		if err != nil {
			fmt.Fprintf(w, "\nThe WASM package is left out (%v): install Node 20, and the packages by `npm ci` in interop.\n", err)
			break
		}
		defer p.stop() //nolint:errcheck // it has answered all it was asked
		b.node = append(b.node, p)
	}
	if len(b.node) == 2 {
		b.names = append(b.names, wasm)
	}

	fmt.Fprintf(w, "\n## CommP\n\nOurs chose the kernel %s. MB = 10^6 bytes of payload; x = times %s, the median of the ratios in each round.\n",
		ours[0], hashhash)
	for _, t := range []struct{ title, mode string }{
		{"In memory", "memory"}, {"Streamed from a file in the page cache", "stream"},
		{"In memory, with the SHA-256 of the content", "content"},
	} {
		if err := b.large(w, t.title, t.mode); err != nil {
			return err
		}
	}
	if err := b.small(w); err != nil {
		return err
	}
	return commpPeak(ctx, w, b.names, program, script, modules, filepath.Join(dir, "large"), input)
}

// run lets the implementation of that name hash once, or some times.
func (b *commpBench) run(r commpRequest) (commpAnswer, error) {
	if r.Name != wasm {
		return b.golang.ask(r)
	}
	if r.Cores == 1 {
		return b.node[0].ask(r)
	}
	// It has no threads: two cores are two processes with a piece each.
	for _, p := range b.node {
		if err := p.in.Encode(r); err != nil {
			return commpAnswer{}, err
		}
	}
	var slowest commpAnswer
	for _, p := range b.node {
		a, err := p.receive()
		if err != nil {
			return commpAnswer{}, err
		}
		if a.Seconds > slowest.Seconds {
			slowest = a
		}
	}
	slowest.Seconds /= 2
	return slowest, nil
}

// rounds measures all of names in turn. repeat says how often one hashes in a round.
func (b *commpBench) rounds(names []string, r commpRequest, repeat func(name string) int) (map[string]*commpRow, error) {
	rows := map[string]*commpRow{}
	rng := rand.New(rand.NewPCG(1, uint64(r.Size)))
	var root string
	for round := range commpRounds + 1 {
		// Whoever comes after another process starts cold, so the order is another one in each round.
		for _, i := range rng.Perm(len(names)) {
			name := names[i]
			r.Name, r.Repeat = name, repeat(name)
			a, err := b.run(r)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if root == "" {
				root = a.Root
			}
			if a.Root != root {
				return nil, fmt.Errorf("%s finds root %s for %d bytes, another %s", name, a.Root, r.Size, root)
			}
			if round == 0 {
				rows[name] = &commpRow{name: name} // the first round warms up
				continue
			}
			rows[name].samples = append(rows[name].samples, a)
		}
	}
	return rows, nil
}

// of returns the median of a figure over the rounds.
func (r *commpRow) of(figure func(a commpAnswer) float64) float64 {
	var values []float64
	for _, a := range r.samples {
		values = append(values, figure(a))
	}
	return median(values)
}

// times returns how many times as fast as base r is, by a figure in which less is better.
func (r *commpRow) times(base *commpRow, figure func(a commpAnswer) float64) float64 {
	var ratios []float64
	for i, a := range r.samples {
		ratios = append(ratios, figure(base.samples[i])/figure(a))
	}
	return median(ratios)
}

// share returns how near a kernel of ours comes to the limit of the units it uses.
func (r *commpRow) share() string {
	for units, cycles := range cyclesPerNode {
		if strings.HasPrefix(r.name, units) {
			part := r.of(func(a commpAnswer) float64 { return commpSize / 127. * 4 * cycles / (a.GHz * 1e9) / a.CPU })
			return fmt.Sprintf("%.0f %%", 100*part)
		}
	}
	return ""
}

func wallOf(a commpAnswer) float64 { return a.Seconds }
func cpuOf(a commpAnswer) float64  { return a.CPU }

func (b *commpBench) large(w io.Writer, title, mode string) error {
	names := b.names
	if mode == "content" {
		names = nil
		for _, name := range b.names {
			if name != dataSegment && name != wasm {
				names = append(names, name)
			}
		}
	}
	repeat := func(name string) int {
		if name == hashhash || name == dataSegment || name == wasm {
			return 1
		}
		return 3
	}
	r := commpRequest{Mode: mode, Size: commpSize, Cores: 1}
	one, err := b.rounds(names, r, repeat)
	if err != nil {
		return err
	}
	r.Cores = 2
	two, err := b.rounds(names, r, repeat)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "\n### %s, %d bytes\n\n", title, commpSize)
	fmt.Fprintln(w, "| implementation | 1 core, MB/s | MB per CPU second | x | of the limit | 2 cores, MB/s | x | 2 cores over 1 | MB per CPU second |")
	fmt.Fprintln(w, "|---|--:|--:|--:|--:|--:|--:|--:|--:|")
	rate := func(figure func(commpAnswer) float64) func(commpAnswer) float64 {
		return func(a commpAnswer) float64 { return commpSize / 1e6 / figure(a) }
	}
	for _, name := range names {
		share := ""
		if mode != "content" {
			share = one[name].share()
		}
		fmt.Fprintf(w, "| %s | %.0f | %.0f | %.2f | %s | %.0f | %.2f | %.2f | %.0f |\n", name,
			one[name].of(rate(wallOf)), one[name].of(rate(cpuOf)), one[name].times(one[hashhash], cpuOf), share,
			two[name].of(rate(wallOf)), two[name].times(two[hashhash], wallOf), two[name].times(one[name], wallOf), two[name].of(rate(cpuOf)))
	}
	if mode == "memory" {
		fmt.Fprintln(w, "\nOn a machine that does other things as well, CPU seconds say more than the clock on the wall; the first x is by CPU time.")
	}
	if mode == "memory" {
		ghz := one[hashhash].of(func(a commpAnswer) float64 { return a.GHz })
		fmt.Fprintf(w, "\nThe limit is what the units of one core can start: %.1f cycles a node with AVX-512, %.0f with the SHA extensions, and "+
			"four nodes for 127 bytes; at the %.2f GHz measured, %.0f and %.0f MB/s. Shares count CPU time and the clock of each round.\n",
			cyclesPerNode["AVX-512"], cyclesPerNode["SHA-NI"], ghz,
			31.75*ghz*1e3/cyclesPerNode["AVX-512"], 31.75*ghz*1e3/cyclesPerNode["SHA-NI"])
	}
	return nil
}

// small measures pieces that are over before anything that has to be started pays.
func (b *commpBench) small(w io.Writer) error {
	sizes := []int{100, 1016, 8 << 10, 64 << 10, 1 << 20}
	fmt.Fprint(w, "\n### Small pieces, one core, CPU microseconds for a piece (x)\n\n| implementation |")
	for _, size := range sizes {
		fmt.Fprintf(w, " %d bytes |", size)
	}
	fmt.Fprintf(w, "\n|---|%s\n", strings.Repeat("--:|", len(sizes)))
	lines := map[string]string{}
	for _, size := range sizes {
		repeat := func(string) int { return max(4_000_000/(size+2000), 4) }
		rows, err := b.rounds(b.names, commpRequest{Mode: "memory", Size: size, Cores: 1}, repeat)
		if err != nil {
			return err
		}
		for name, r := range rows {
			lines[name] += fmt.Sprintf(" %.2f (%.1f) |", 1e6*r.of(cpuOf), r.times(rows[hashhash], cpuOf))
		}
	}
	for _, name := range b.names {
		fmt.Fprintf(w, "| %s |%s\n", name, lines[name])
	}
	return nil
}

// commpPeak measures memory: one process for each implementation, which hashes a file once.
func commpPeak(ctx context.Context, w io.Writer, names []string, program, script, modules, large, small string) error {
	payload, err := os.ReadFile(small)
	if err != nil {
		return err
	}
	f, err := os.Create(large)
	if err != nil {
		return err
	}
	for range commpPeakSize / commpSize {
		if _, err := f.Write(payload); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n### Peak memory of a process that streams a file, MB (VmHWM)\n\n| implementation | %d bytes | %d bytes |\n|---|--:|--:|\n",
		commpSize, commpPeakSize)
	for _, name := range names {
		fmt.Fprintf(w, "| %s |", name)
		for _, file := range []string{small, large} {
			cmd := exec.CommandContext(ctx, program, "-peak", name, "-file", file)
			if name == wasm {
				cmd = exec.CommandContext(ctx, "node", script, modules, "--peak", file)
			}
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				return fmt.Errorf("measuring the memory of %s: %w", name, err)
			}
			var peak struct{ Bytes float64 }
			if err := json.Unmarshal(out, &peak); err != nil {
				return err
			}
			fmt.Fprintf(w, " %.0f |", peak.Bytes/1e6)
		}
		fmt.Fprintln(w)
	}
	return nil
}
