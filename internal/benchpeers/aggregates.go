package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/filecoin-project/go-data-segment/datasegment"
	"github.com/filecoin-project/go-state-types/abi"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

const (
	aggregateDeal = 32 << 30
	// patience is how long one process of a peer may take.
	patience = 120 * time.Second
	// repeat is how long the builds of one process are repeated.
	repeat = 400 * time.Millisecond
	most   = 30
)

// aggregateCases are aggregates of pieces of one size, as large as a 32 GiB deal holds that many of.
var aggregateCases = []struct {
	pieces int
	height uint8
	rounds int // processes of each Go implementation
}{{1_000, 19, 7}, {10_000, 16, 7}, {100_000, 13, 5}, {262_144, 11, 5}}

// Implementations, by the names of their rows.
const (
	ours       = "w3filecoin"
	reference  = "go-data-segment"
	javascript = "@web3-storage/data-segment"
)

// phase is what one process reports: a line of JSON each, as soon as it is known.
type phase struct {
	Name  string    `json:"phase"` // "build", "proofs", "verify", "limit"
	Times []float64 `json:"times"` // in milliseconds; of "limit", nanoseconds per hash
	Root  string    `json:"root,omitempty"`
	Peak  int       `json:"peak"` // of resident memory so far, in KiB
}

// measured is what is known of one implementation and one number of pieces. Times are medians in milliseconds; a phase that did not end in
// time, or was not come to, has none.
type measured struct {
	Implementation string             `json:"implementation"`
	Pieces         int                `json:"pieces"`
	Rounds         int                `json:"rounds"`
	Times          map[string]float64 `json:"milliseconds"`
	// Peaks of resident memory in MiB, in a process that did this phase and those before it once.
	Peaks map[string]float64 `json:"peakMiB"`
	// Stopped is the phase in which the time was up.
	Stopped string `json:"stopped,omitempty"`
	// NanosPerHash is the time of one hash in a batch that stays in cache, and Limit the part of the build's time that the fewest hashes take
	// at that speed.
	NanosPerHash float64 `json:"nanosPerHash,omitempty"`
	Limit        float64 `json:"limit,omitempty"`

	samples map[string][]float64
	peaks   map[string][]float64
	root    string
}

func aggregates(ctx context.Context, w io.Writer) (any, error) {
	script, err := javascriptPeer()
	if err != nil {
		fmt.Fprintf(w, "\n%s is left out: %v\n", javascript, err)
	}
	fmt.Fprintf(w, `
### Aggregates of 32 GiB

Medians of processor time, one core; verify is all proofs against the aggregate's link. Peak is the resident memory of a process that builds,
makes every proof and verifies it once. Ratios are to %s. The limit is 4 hashes per piece, at the speed of one batch of 256 in cache.

| pieces | implementation | build | all proofs | verify all | peak | build, of the limit |
|---|---|---|---|---|---|---|
`, ours)
	var all []*measured
	for _, c := range aggregateCases {
		rows := []*measured{}
		for _, name := range []string{ours, reference, javascript} {
			if name == javascript && script == "" {
				continue
			}
			rows = append(rows, &measured{Implementation: name, Pieces: c.pieces, Times: map[string]float64{}, Peaks: map[string]float64{},
				samples: map[string][]float64{}, peaks: map[string][]float64{}})
		}
		for round := range c.rounds {
			for _, m := range rows {
				if m.Implementation == javascript && round > 0 && (c.pieces > 1000 || round > 2) {
					continue // once is long enough
				}
				if err := m.measure(ctx, script, c.height); err != nil {
					return nil, fmt.Errorf("%s, %d pieces: %w", m.Implementation, c.pieces, err)
				}
			}
		}
		for _, m := range rows {
			if m.root != "" && m.root != rows[0].root {
				return nil, fmt.Errorf("%d pieces: %s makes the root %s, %s makes %s", c.pieces, m.Implementation, m.root, ours, rows[0].root)
			}
			m.summarize()
			fmt.Fprintln(w, m.row(rows[0]))
		}
		all = append(all, rows...)
	}
	return all, nil
}

// measure runs one process and takes what it reports.
func (m *measured) measure(ctx context.Context, script string, height uint8) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	args := []string{strconv.Itoa(m.Pieces), strconv.Itoa(int(height))}
	var cmd *exec.Cmd
	if m.Implementation == javascript {
		cmd = exec.CommandContext(ctx, "node", append([]string{script}, args...)...)
	} else {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		cmd = exec.CommandContext(ctx, self, "-child", strings.Join(append([]string{m.Implementation}, args...), ","))
	}
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	left := []string{"build", "proofs", "verify"}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var p phase
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			return errors.Join(fmt.Errorf("decoding %q: %w", lines.Text(), err), cmd.Wait())
		}
		m.samples[p.Name] = append(m.samples[p.Name], p.Times...)
		if p.Peak > 0 {
			m.peaks[p.Name] = append(m.peaks[p.Name], float64(p.Peak)/1024)
		}
		if p.Root != "" {
			m.root = p.Root
		}
		if len(left) > 0 && p.Name == left[0] {
			left = left[1:]
		}
	}
	err = cmd.Wait()
	m.Rounds++
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && len(left) > 0:
		m.Stopped = left[0]
		return nil
	case err != nil:
		return fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	return lines.Err()
}

func (m *measured) summarize() {
	for name, times := range m.samples {
		if name != "limit" {
			m.Times[name] = median(times)
		}
	}
	for name, peaks := range m.peaks {
		m.Peaks[name] = median(peaks)
	}
	if m.NanosPerHash = median(m.samples["limit"]); m.NanosPerHash > 0 {
		m.Limit = 4 * float64(m.Pieces) * m.NanosPerHash / 1e6 / m.Times["build"]
	}
}

// row is the line of the table.
func (m *measured) row(base *measured) string {
	cell := func(name string) string {
		t, ok := m.Times[name]
		switch {
		case m.Stopped == name:
			return fmt.Sprintf("stopped at %s", patience)
		case !ok:
			return "-"
		case m == base:
			return milliseconds(t)
		}
		return fmt.Sprintf("%s (%.0fx)", milliseconds(t), t/base.Times[name])
	}
	peak, limit := "-", ""
	for _, name := range []string{"build", "proofs", "verify"} {
		if p, ok := m.Peaks[name]; ok {
			peak = fmt.Sprintf("%.0f MiB", p)
		}
	}
	if m.Limit > 0 {
		limit = fmt.Sprintf("%.0f %% of %.1f ns per hash", 100*m.Limit, m.NanosPerHash)
	}
	return fmt.Sprintf("| %d | %s | %s | %s | %s | %s | %s |",
		m.Pieces, m.Implementation, cell("build"), cell("proofs"), cell("verify"), peak, limit)
}

func milliseconds(t float64) string {
	switch {
	case t < 10:
		return fmt.Sprintf("%.2f ms", t)
	case t < 10_000:
		return fmt.Sprintf("%.0f ms", t)
	}
	return fmt.Sprintf("%.0f s", t/1000)
}

// javascriptPeer returns the script that measures the JavaScript package, if that can be run.
func javascriptPeer() (string, error) {
	if _, err := exec.LookPath("node"); err != nil {
		return "", err
	}
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("finding the module: %w", err)
	}
	root := strings.TrimSpace(string(out))
	if _, err := os.Stat(filepath.Join(root, "interop/node_modules", javascript)); err != nil {
		return "", err
	}
	return filepath.Join(root, "internal/benchpeers/aggregates.mjs"), nil
}

// aggregateChild measures one implementation in this process: "name,pieces,height".
func aggregateChild(spec string, w io.Writer) error {
	fields := strings.Split(spec, ",")
	if len(fields) != 3 {
		return fmt.Errorf("-child %q is not of the form name,pieces,height", spec)
	}
	n, err := strconv.Atoi(fields[1])
	if err != nil {
		return err
	}
	height, err := strconv.ParseUint(fields[2], 10, 8)
	if err != nil {
		return err
	}
	pieces, err := madeUp(n, uint8(height))
	if err != nil {
		return err
	}
	report := reporter{json.NewEncoder(w)}
	switch fields[0] {
	case ours:
		return childOurs(pieces, report)
	case reference:
		return childReference(pieces, report)
	}
	return fmt.Errorf("-child %q is no implementation", fields[0])
}

type reporter struct{ enc *json.Encoder }

func (r reporter) phase(name, root string, times ...float64) error {
	return r.enc.Encode(phase{Name: name, Times: times, Root: root, Peak: peakMemory()})
}

// peakMemory returns the most resident memory that this process has had, in KiB; 0 if that cannot be known.
func peakMemory() int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	kib, err := strconv.Atoi(fields[0])
	if err != nil {
		return 0
	}
	return kib
}

// madeUp returns n pieces of one size. aggregates.mjs makes up the same.
func madeUp(n int, height uint8) ([]piece.Link, error) {
	state := uint64(n)
	next := func() uint64 { // SplitMix64
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		return z ^ z>>31
	}
	pieces := make([]piece.Link, n)
	for i := range pieces {
		var root piece.Node
		for k := range 4 {
			binary.LittleEndian.PutUint64(root[8*k:], next())
		}
		root[31] &= 0x3f
		var err error
		if pieces[i], err = piece.FromRootAndHeight(root, height, 0); err != nil {
			return nil, err
		}
	}
	return pieces, nil
}

// timed repeats f for a while, and returns the time of each run.
func timed(f func() error) (times []float64, err error) {
	for began := time.Now(); len(times) < most && time.Since(began) < repeat; {
		runtime.GC() // what is left of the run before is not to be collected in this one
		start := cpuTime()
		if err := f(); err != nil {
			return nil, err
		}
		times = append(times, cpuTime()-start)
	}
	return times, nil
}

func childOurs(pieces []piece.Link, report reporter) error {
	var built *segment.Aggregate
	build := func() (err error) {
		built, err = segment.Build(aggregateDeal, pieces)
		return err
	}
	count := 0
	proofs := func() error {
		for _, proof := range built.Proofs() {
			count += len(proof.Subtree.Path) + len(proof.Index.Path)
		}
		return nil
	}
	verify := func() error { return segment.VerifyAll(built.Link(), built.Proofs()) }

	// Once for the memory, which repetitions would add garbage to.
	for _, p := range []struct {
		name string
		run  func() error
	}{{"build", build}, {"proofs", proofs}, {"verify", verify}} {
		start := cpuTime()
		if err := p.run(); err != nil {
			return err
		}
		root := built.Link().Root()
		if err := report.phase(p.name, hex.EncodeToString(root[:]), cpuTime()-start); err != nil {
			return err
		}
	}
	limit := nanosPerHash()
	for _, p := range []struct {
		name string
		run  func() error
	}{{"build", build}, {"proofs", proofs}, {"verify", verify}} {
		times, err := timed(p.run)
		if err != nil {
			return err
		}
		if err := report.enc.Encode(phase{Name: p.name, Times: times}); err != nil {
			return err
		}
	}
	return report.enc.Encode(phase{Name: "limit", Times: []float64{limit, nanosPerHash()}})
}

// nanosPerHash is the time of one hash in a batch of 256 pairs, which stay in the nearest caches.
func nanosPerHash() float64 {
	const batch = 256
	var (
		src   [2 * batch]piece.Node
		dst   [batch]piece.Node
		times []float64
	)
	for range 200 {
		start := time.Now()
		for range 4 {
			piece.HashPairs(dst[:], src[:])
		}
		times = append(times, float64(time.Since(start).Nanoseconds())/(4*batch))
	}
	return median(times)
}

func childReference(pieces []piece.Link, report reporter) error {
	infos := make([]abi.PieceInfo, len(pieces))
	for i, p := range pieces {
		infos[i] = abi.PieceInfo{Size: abi.PaddedPieceSize(p.PaddedSize()), PieceCID: p.V1()}
	}
	var built *datasegment.Aggregate
	build := func() (err error) {
		built, err = datasegment.NewAggregate(aggregateDeal, infos)
		return err
	}
	proofs := func() error {
		for i := range infos {
			if _, err := built.ProofForIndexEntry(i); err != nil {
				return err
			}
		}
		return nil
	}
	start := cpuTime()
	if err := build(); err != nil {
		return err
	}
	root := built.Tree.Root()
	if err := report.phase("build", hex.EncodeToString(root[:]), cpuTime()-start); err != nil {
		return err
	}
	start = cpuTime()
	if err := proofs(); err != nil {
		return err
	}
	if err := report.phase("proofs", "", cpuTime()-start); err != nil {
		return err
	}
	if err := verifyReference(built, infos, report); err != nil {
		return err
	}
	times, err := timed(build)
	if err != nil {
		return err
	}
	if err := report.enc.Encode(phase{Name: "build", Times: times}); err != nil {
		return err
	}
	times, err = timed(proofs)
	if err != nil {
		return err
	}
	return report.enc.Encode(phase{Name: "proofs", Times: times})
}

// verifyReference verifies every proof, a thousand at a time, so that neither making nor keeping them counts.
func verifyReference(built *datasegment.Aggregate, infos []abi.PieceInfo, report reporter) error {
	want, err := built.PieceCID()
	if err != nil {
		return err
	}
	var took float64
	for begin := 0; begin < len(infos); begin += 1000 {
		var proofs []*datasegment.InclusionProof
		end := min(begin+1000, len(infos))
		for i := begin; i < end; i++ {
			p, err := built.ProofForIndexEntry(i)
			if err != nil {
				return err
			}
			proofs = append(proofs, p)
		}
		start := cpuTime()
		for k, p := range proofs {
			aux, err := p.ComputeExpectedAuxData(datasegment.VerifierDataForPieceInfo(infos[begin+k]))
			if err != nil {
				return err
			}
			if aux.CommPa != want || aux.SizePa != aggregateDeal {
				return fmt.Errorf("proof %d is for %s", begin+k, aux.CommPa)
			}
		}
		took += cpuTime() - start
	}
	return report.phase("verify", "", took)
}
