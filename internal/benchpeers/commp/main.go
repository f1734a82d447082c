//go:build benchpeers

// Commp hashes pieces by several implementations and says how long that took: one process of `make bench-peers`. The
// build tag lets it choose the kernel of package piece.
//
// With -peak it hashes one file once and prints its own peak memory. Else it answers requests, one line of JSON each, so
// that whoever asks can let implementations take turns.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/filecoin-project/go-data-segment/fr32"
	"github.com/filecoin-project/go-data-segment/merkletree"
	commp "github.com/filecoin-project/go-fil-commp-hashhash"

	"github.com/storacha/w3filecoin/piece"
)

// A request asks for one implementation to hash the first Size bytes of the input, Repeat times.
type request struct {
	Name   string
	Mode   string // memory, stream or content
	Size   int
	Cores  int
	Repeat int
}

type answer struct {
	Root    string
	Seconds float64 // of one repetition
	CPU     float64 // seconds of all cores, of one repetition
	GHz     float64 // the clock while it ran
	Kernels []string
}

func main() {
	log.SetFlags(0)
	size := flag.Int("size", 0, "bytes of input")
	path := flag.String("file", "", "where the input is")
	peak := flag.String("peak", "", "hash the file once by the implementation of this name")
	flag.Parse()
	var err error
	if *peak != "" {
		err = printPeak(*peak, *path)
	} else {
		err = serve(*path, *size)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func serve(path string, size int) error {
	payload := make([]byte, size)
	if _, err := rand.NewChaCha8([32]byte{1}).Read(payload); err != nil {
		return err
	}
	if err := os.WriteFile(path, payload, 0o600); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(answer{Kernels: piece.Kernels()}); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return err
		}
		a, err := r.run(payload[:r.Size], path)
		if err != nil {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (r request) run(payload []byte, path string) (answer, error) {
	runtime.GOMAXPROCS(r.Cores)
	runtime.GC()
	before := clock()
	var root piece.Node
	var err error
	cpu, start := cpuTime(), time.Now()
	for range r.Repeat {
		switch r.Mode {
		case "memory":
			root, err = inMemory(r.Name, payload, r.Cores)
		case "stream":
			root, err = streamed(r.Name, path, r.Cores)
		case "content":
			root, err = content(r.Name, payload, r.Cores)
		default:
			err = fmt.Errorf("no mode %q", r.Mode)
		}
		if err != nil {
			return answer{}, err
		}
	}
	n := float64(r.Repeat)
	a := answer{Root: fmt.Sprintf("%x", root), Seconds: time.Since(start).Seconds() / n, CPU: (cpuTime() - cpu) / n}
	a.GHz = (before + clock()) / 2
	return a, nil
}

func inMemory(name string, payload []byte, cores int) (piece.Node, error) {
	switch name {
	case "go-fil-commp-hashhash":
		var calc commp.Calc
		if _, err := calc.Write(payload); err != nil {
			return piece.Node{}, err
		}
		root, _, err := calc.Digest()
		return piece.Node(root), err
	case "go-data-segment":
		return dataSegment(payload)
	default:
		h := piece.NewHasher(piece.WithKernel(name), piece.WithWorkers(cores))
		if _, err := h.Write(payload); err != nil {
			return piece.Node{}, err
		}
		link, err := h.Sum()
		return link.Root(), err
	}
}

// dataSegment is the way from bytes to a root that go-data-segment has: padding, and a tree that stays in memory.
func dataSegment(payload []byte) (piece.Node, error) {
	padded, err := piece.PaddedSizeOf(uint64(len(payload)))
	if err != nil {
		return piece.Node{}, err
	}
	in := payload
	if unpadded := int(piece.UnpaddedSize(padded)); len(in) < unpadded {
		in = append(make([]byte, 0, unpadded), in...)[:unpadded]
	}
	out := make([]byte, padded)
	fr32.Pad(in, out)
	leaves := make([]merkletree.Node, padded/piece.NodeSize)
	for i := range leaves {
		leaves[i] = merkletree.Node(out[i*piece.NodeSize:])
	}
	return piece.Node(*merkletree.GrowTreeHashedLeafs(leaves).Root()), nil
}

func streamed(name, path string, cores int) (piece.Node, error) {
	f, err := os.Open(path)
	if err != nil {
		return piece.Node{}, err
	}
	defer f.Close()
	switch name {
	case "go-fil-commp-hashhash":
		var calc commp.Calc
		if _, err := io.CopyBuffer(&calc, onlyReader{f}, make([]byte, 1<<20)); err != nil {
			return piece.Node{}, err
		}
		root, _, err := calc.Digest()
		return piece.Node(root), err
	case "go-data-segment":
		payload, err := io.ReadAll(f)
		if err != nil {
			return piece.Node{}, err
		}
		return dataSegment(payload)
	default:
		h := piece.NewHasher(piece.WithKernel(name), piece.WithWorkers(cores))
		if _, err := h.ReadFrom(f); err != nil {
			return piece.Node{}, err
		}
		link, err := h.Sum()
		return link.Root(), err
	}
}

// onlyReader hides the ways around a buffer that a file has.
type onlyReader struct{ io.Reader }

// content computes the SHA-256 of the payload as well.
func content(name string, payload []byte, cores int) (piece.Node, error) {
	switch name {
	case "go-fil-commp-hashhash":
		var calc commp.Calc
		sum := sha256.New()
		r := onlyReader{bytes.NewReader(payload)}
		if _, err := io.CopyBuffer(io.MultiWriter(&calc, sum), r, make([]byte, 1<<20)); err != nil {
			return piece.Node{}, err
		}
		root, _, err := calc.Digest()
		return piece.Node(root), err
	case "go-data-segment":
		return piece.Node{}, errors.New("it has no such function")
	default:
		c, err := piece.HashReader(context.Background(), bytes.NewReader(payload),
			piece.WithKernel(name), piece.WithWorkers(cores))
		return c.Piece.Root(), err
	}
}

// clock measures the clock of the core, in GHz: 64-bit multiplications that wait for each other take three cycles each
// on the processors of the last fifteen years.
func clock() float64 {
	best := 0.0
	for range 5 {
		x := uint64(time.Now().UnixNano()) | 1
		m := x
		start := time.Now()
		const n = 30_000
		for range n {
			x *= m
		}
		elapsed := time.Since(start)
		if x == 0 {
			panic("a product of odd numbers is odd")
		}
		best = max(best, 3*n/float64(elapsed.Nanoseconds()))
	}
	return best
}

func cpuTime() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // cannot fail for this process
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(u.Utime) + seconds(u.Stime)
}

// printPeak prints the root of a file and the most memory that this process ever had, in bytes.
func printPeak(name, path string) error {
	root, err := streamed(name, path, runtime.GOMAXPROCS(0))
	if err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("peak memory is read from /proc: %w", err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		return fmt.Errorf("reading VmHWM: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"Root": fmt.Sprintf("%x", root), "Bytes": kib << 10})
}
