package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/wire"
)

// process is a server that this program has started and will end.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
	log   tail
	gc    gcTrace
}

// patience is how long a process may take to begin or to end.
const patience = 20 * time.Second

// start runs a program and decodes the JSON value that it prints when it is ready.
func start(ready any, env []string, name string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(name, args...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	errs, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	var pipes sync.WaitGroup
	decoded := make(chan error, 1)
	pipes.Go(func() {
		decoded <- json.NewDecoder(out).Decode(ready)
		_, _ = io.Copy(io.Discard, out)
	})
	pipes.Go(func() {
		for lines := bufio.NewScanner(errs); lines.Scan(); {
			if !p.gc.read(lines.Text()) {
				p.log.add(lines.Text())
			}
		}
	})
	go func() {
		pipes.Wait()
		_ = p.cmd.Wait() // how it ended is in its log
		close(p.ended)
	}()
	select {
	case err = <-decoded:
	case <-time.After(patience):
		err = errors.New("it is not ready")
	}
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("starting %s: %w\n%s", name, err, p.log.text())
	}
	return p, nil
}

// stop ends the process, by force if it does not end by itself.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// profile begins a profile by SIGUSR1 and ends it by SIGUSR2, if one is wanted.
func (p *process) profile(wanted bool, sig syscall.Signal) {
	if wanted {
		_ = p.cmd.Process.Signal(sig) // a process that has ended fails the measurement anyway
	}
}

// tail keeps the last lines of a log.
type tail struct {
	mu    sync.Mutex
	lines []string
}

func (t *tail) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lines = append(t.lines, line); len(t.lines) > 20 {
		t.lines = t.lines[1:]
	}
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, "\n")
}

// gcTrace adds up what the garbage collector of a Go process says of itself with GODEBUG=gctrace=1.
type gcTrace struct {
	mu  sync.Mutex
	cpu time.Duration
}

// "gc 7 @0.6s 2%: 0.01+1.4+0.02 ms clock, 0.03+0.1/1.2/0.4+0.05 ms cpu, 4->4->1 MB, ...": the third group is the time of all cores: to begin,
// to mark (assisting, dedicated, in idle time), to end.
var gcLine = regexp.MustCompile(`^gc \d+ @.* ([0-9.]+)\+([0-9.]+)/([0-9.]+)/([0-9.]+)\+([0-9.]+) ms cpu`)

func (g *gcTrace) read(line string) bool {
	m := gcLine.FindStringSubmatch(line)
	if m == nil {
		return strings.HasPrefix(line, "gc ") || strings.HasPrefix(line, "scvg")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, part := range m[1:] {
		ms, _ := strconv.ParseFloat(part, 64)
		g.cpu += time.Duration(ms * float64(time.Millisecond))
	}
	return true
}

func (g *gcTrace) total() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cpu
}

// usage is what a process has used so far.
type usage struct {
	cpu, gc time.Duration
	rss     int64 // bytes, at the moment
	peak    int64 // bytes, ever
}

// clockTick is the unit of /proc/{pid}/stat: USER_HZ is 100 on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

func (p *process) usage() (usage, error) {
	dir := "/proc/" + strconv.Itoa(p.cmd.Process.Pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return usage{}, err
	}
	// What follows the name, which is in brackets: state is the first field, utime the twelfth, stime the thirteenth.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 13 {
		return usage{}, fmt.Errorf("%s/stat is too short", dir)
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	status, err3 := os.ReadFile(dir + "/status")
	if err := errors.Join(err1, err2, err3); err != nil {
		return usage{}, err
	}
	u := usage{cpu: time.Duration(user+system) * clockTick, gc: p.gc.total()}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			u.rss = kib << 10
		case "VmHWM":
			u.peak = kib << 10
		}
	}
	return u, nil
}

// metrics reads the sums of a server's measurements, by name and labels.
func metrics(ctx context.Context, url string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("reading metrics: %w", err)
	}
	defer resp.Body.Close()
	values := map[string]float64{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		line := lines.Text()
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			if v, err := strconv.ParseFloat(line[i+1:], 64); err == nil {
				values[line[:i]] = v
			}
		}
	}
	return values, lines.Err()
}

// node is a running `w3filecoin serve`.
type node struct {
	*process
	urls map[string]string // by role
	dids map[string]capabilities.DID
	dir  string
}

var roleNames = []string{"storefront", "aggregator", "dealer", "dealtracker", "compute"}

// serve starts roles in a new directory below dir. settings is TOML that follows the sections made here; those that it names are left to it.
func serve(binary, dir string, signers map[string]capabilities.Signer, settings map[string]string) (*node, error) {
	data, err := os.MkdirTemp(dir, "node-")
	if err != nil {
		return nil, err
	}
	if data, err = filepath.Abs(data); err != nil {
		return nil, err
	}
	var config strings.Builder
	fmt.Fprintf(&config, "data = %q\nroles = [", filepath.Join(data, "data"))
	for _, role := range roleNames {
		if _, ok := signers[role]; ok {
			fmt.Fprintf(&config, "%q, ", role)
		}
	}
	config.WriteString("]\n")
	for _, role := range roleNames {
		signer, ok := signers[role]
		if !ok {
			continue
		}
		key := filepath.Join(data, role+".key")
		if err := os.WriteFile(key, []byte(signer.Format()), 0o600); err != nil {
			return nil, err
		}
		fmt.Fprintf(&config, "[%s]\nkey = %q\nlisten = \"127.0.0.1:0\"\n%s\n", role, key, settings[role])
	}
	config.WriteString(settings[""])
	file := filepath.Join(data, "w3filecoin.toml")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		return nil, err
	}
	var announced []struct{ Role, URL, DID string }
	p, err := start(&announced, []string{"GODEBUG=gctrace=1"}, binary, "serve", "--json", "--log", "warn", "--config", file)
	if err != nil {
		return nil, err
	}
	n := &node{process: p, urls: map[string]string{}, dids: map[string]capabilities.DID{}, dir: data}
	for _, a := range announced {
		n.urls[a.Role] = a.URL
		if s, ok := signers[a.Role]; ok {
			n.dids[a.Role] = s.DID()
		}
	}
	return n, nil
}

// close ends the node and removes its directory.
func (n *node) close() error {
	n.stop()
	return os.RemoveAll(n.dir)
}

// signersOf makes keys for roles.
func signersOf(roles ...string) (map[string]capabilities.Signer, error) {
	signers := map[string]capabilities.Signer{}
	for _, r := range roles {
		s, err := newSigner()
		if err != nil {
			return nil, err
		}
		signers[r] = s
	}
	return signers, nil
}

// neighbour is the setting for a role that runs nowhere: it is known and has delegated, but is never reached.
func neighbour(dir, section, can string, from capabilities.Signer, to capabilities.DID) (string, error) {
	text := fmt.Sprintf("[%s]\ndid = %q\nurl = \"http://127.0.0.1:9\"\n", section, from.DID())
	if can == "" {
		return text, nil
	}
	d, err := capabilities.Delegate(from, to, []capabilities.Grant{{Can: can, With: from.DID().String()}}, capabilities.Terms{})
	if err != nil {
		return "", err
	}
	file, err := filepath.Abs(filepath.Join(dir, section+".proof"))
	if err != nil {
		return "", err
	}
	return text + fmt.Sprintf("proof = %q\n", file), os.WriteFile(file, capabilities.Archive(d), 0o600)
}

// peer is the JavaScript storefront.
type peer struct {
	*process
	url string
	did capabilities.DID
}

func startPeer(script string) (*peer, error) {
	var ready struct{ URL, DID string }
	p, err := start(&ready, nil, "node", script)
	if err != nil {
		return nil, err
	}
	did, err := wire.ParseDID(ready.DID)
	if err != nil {
		p.stop()
		return nil, err
	}
	return &peer{p, ready.URL, did}, nil
}
