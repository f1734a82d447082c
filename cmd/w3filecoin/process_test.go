package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"github.com/storacha/w3filecoin/broker"
	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/roles/client"
)

// What tests with processes share: the binary, its runs, and an eye that sees them from outside only, over HTTP.

// patience is how long anything may take that should not take long: machines are busy at times.
const patience = 90 * time.Second

// number returns what an environment variable says, or the default. Those of tests begin otherwise than those that configure the program.
func number(t testing.TB, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// soak reports whether tests may take their time.
func soak(t testing.TB) bool { return number(t, "W3FILECOIN_SOAK", 0) > 0 }

// aside lets a test run beside others: it waits more than it works. Where it is measured it runs alone.
func aside(t *testing.T) {
	if !soak(t) {
		t.Parallel()
	}
}

// seed returns the seed of a test that leaves something to chance, and prints it. W3FILECOIN_SEED repeats one.
func seed(t testing.TB) uint64 {
	t.Helper()
	n := number(t, "W3FILECOIN_SEED", rand.Uint64())
	t.Logf("W3FILECOIN_SEED=%d", n)
	t.Cleanup(func() { // the last to be called: after all that is said of a failure
		if t.Failed() {
			t.Logf("failed with W3FILECOIN_SEED=%d", n)
		}
	})
	return n
}

// command prepares a run of the binary, which TestMain has put into PATH under its own name. It gets none of the test's settings.
func command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("w3filecoin")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	for _, env := range os.Environ() {
		if !strings.HasPrefix(env, "W3FILECOIN_") {
			cmd.Env = append(cmd.Env, env)
		}
	}
	return cmd
}

// cli runs a command to its end and returns what it printed.
func cli(t testing.TB, args ...string) string {
	t.Helper()
	cmd := command(t, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("w3filecoin %s: %v\n%s", strings.Join(args, " "), err, &errs)
	}
	return strings.TrimSpace(out.String())
}

// addresses returns free addresses to listen on. They lie below the ports that the system hands out, so that nobody takes one while its role is
// down.
func addresses(t testing.TB, n int) []string {
	t.Helper()
	free := map[string]bool{}
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		if l, err := net.Listen("tcp", address); err == nil {
			free[address] = true
			l.Close()
		}
		if len(free) == n {
			break
		}
	}
	var list []string
	for address := range free {
		list = append(list, address)
	}
	if len(list) < n {
		t.Fatal("there are no free ports")
	}
	return list
}

// daemon is a `w3filecoin serve` that a test starts, ends and starts again.
type daemon struct {
	t      testing.TB
	name   string
	config string   // file
	roles  []string // URLs that answer once it is ready
	log    *journal // of all its runs

	cmd   *exec.Cmd
	ended chan struct{}
	err   error // how it ended
}

// newDaemon prepares one. Its log is kept beside its configuration.
func newDaemon(t testing.TB, name, config string, urls ...string) *daemon {
	t.Helper()
	file, err := os.Create(strings.TrimSuffix(config, ".toml") + ".log")
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, name: name, config: config, roles: urls, log: &journal{name: name, file: file}}
	t.Cleanup(func() {
		if d.running() {
			d.cmd.Process.Kill()
			<-d.ended
		}
		file.Close()
		if t.Failed() {
			t.Logf("the last of %s's log:\n%s", name, d.log.tail())
		}
	})
	return d
}

func (d *daemon) running() bool {
	if d.cmd == nil {
		return false
	}
	select {
	case <-d.ended:
		return false
	default:
		return true
	}
}

func (d *daemon) start() {
	d.t.Helper()
	// Its stderr is a pipe, not a file: limits on files do not concern it.
	d.cmd = command(d.t, "serve", "--json", "--config", d.config)
	d.cmd.Stderr = d.log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.ended = make(chan struct{})
	go func() {
		d.err = d.cmd.Wait()
		d.log.cut()
		close(d.ended)
	}()
}

// ready waits until all roles answer.
func (d *daemon) ready() {
	d.t.Helper()
	for _, role := range d.roles {
		eventually(d.t, d.name+" is ready", func(ctx context.Context) error {
			if !d.running() {
				d.t.Fatalf("%s ended before it was ready: %v", d.name, d.err)
			}
			return answers(ctx, role+"/readyz")
		})
	}
}

// kill ends it as a power failure would, as far as a process can tell.
func (d *daemon) kill() {
	d.t.Helper()
	if !d.running() {
		d.t.Fatalf("%s ended by itself: %v", d.name, d.err)
	}
	if err := d.cmd.Process.Kill(); err != nil {
		d.t.Fatal(err)
	}
	<-d.ended
}

// stop asks it to end, and waits until it has.
func (d *daemon) stop() {
	d.t.Helper()
	d.ask()
	d.await()
}

// ask asks it to end, as a service manager does.
func (d *daemon) ask() {
	d.t.Helper()
	if !d.running() {
		d.t.Fatalf("%s ended by itself: %v", d.name, d.err)
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
}

// await waits until it has ended as it was asked to.
func (d *daemon) await() {
	d.t.Helper()
	select {
	case <-d.ended:
	case <-time.After(patience):
		d.t.Fatalf("%s does not end", d.name)
	}
	if d.err != nil {
		d.t.Errorf("%s, asked to end: %v", d.name, d.err)
	}
}

// journal reads the log of a process as it is written: JSON lines, and what is anything else is a fault.
type journal struct {
	name string
	file io.Writer

	mu      sync.Mutex
	rest    []byte
	last    []string // lines
	errors  []string // of level error
	garbage []string // no log lines: a panic, a report of the race detector
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.file.Write(b); err != nil {
		return 0, err
	}
	j.rest = append(j.rest, b...)
	for {
		line, rest, ok := bytes.Cut(j.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		j.rest = rest
		j.last = append(j.last, string(line))
		if len(j.last) > 20 {
			j.last = j.last[1:]
		}
		var entry struct {
			Level string `json:"level"`
		}
		switch err := json.Unmarshal(line, &entry); {
		case err != nil || entry.Level == "":
			j.garbage = append(j.garbage, string(line))
		case entry.Level == "ERROR":
			j.errors = append(j.errors, string(line))
		}
	}
}

// cut forgets a line that the end of the process has cut short.
func (j *journal) cut() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rest = nil
}

func (j *journal) tail() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.last, "\n")
}

// clean checks that nothing went wrong that the log knows of.
func (j *journal) clean(t testing.TB) {
	t.Helper()
	j.healthy(t)
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, line := range j.errors {
		if i == 10 {
			t.Errorf("%s: %d more errors", j.name, len(j.errors)-i)
			break
		}
		t.Errorf("%s logged %s", j.name, line)
	}
}

// healthy checks that there is nothing but log lines, and returns how many are errors.
func (j *journal) healthy(t testing.TB) int {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.garbage) > 0 {
		t.Errorf("%s wrote what is no log:\n%s", j.name, strings.Join(j.garbage[:min(len(j.garbage), 60)], "\n"))
	}
	return len(j.errors)
}

// eventually repeats an attempt until it succeeds.
func eventually(t testing.TB, what string, attempt func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := repeat(ctx, attempt); err != nil {
		t.Fatalf("%s: not within %s: %v", what, patience, err)
	}
}

// repeat repeats an attempt until it succeeds or ctx ends; the error is then that of the last attempt that had its time.
func repeat(ctx context.Context, attempt func(ctx context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	last := ctx.Err()
	for {
		err := attempt(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return cmp.Or(last, err)
		}
		last = err
		select {
		case <-ctx.Done():
			return last
		case <-tick.C:
		}
	}
}

// answers checks that a URL answers with HTTP 200.
func answers(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// content is bytes that nobody else has, and their names.
type content struct {
	bytes []byte
	cid   cid.Cid
	piece piece.Link
}

// newContent makes up content of 1 to 120 KiB, or of a size.
func newContent(t testing.TB, r *rand.Rand, size int) content {
	t.Helper()
	if size == 0 {
		size = 1<<10 + r.IntN(119<<10)
	}
	var key [32]byte
	for i := range key {
		key[i] = byte(r.Uint32())
	}
	c := content{bytes: make([]byte, size)}
	rand.NewChaCha8(key).Read(c.bytes)
	var err error
	if c.cid, c.piece, err = hashContent(t.Context(), bytes.NewReader(c.bytes)); err != nil {
		t.Fatal(err)
	}
	return c
}

// offering is content that was offered at a storefront.
type offering struct {
	content
	at   *offerer
	task cid.Cid
	// acknowledged is the receipt of filecoin/offer.
	acknowledged cid.Cid
}

// eye sees a network from outside. It remembers what it was promised and every receipt that it has seen. It is safe for concurrent use.
type eye struct {
	keys capabilities.Keys
	// aggregator and dealer are where these roles answer.
	aggregator, dealer *offerer
	// lags: the store's indexes may show a row later than it was written. An offer that was just acknowledged is then known by its receipt only.
	lags bool

	mu       sync.Mutex
	open     []*offering // acknowledged, not seen to have ended
	done     []*offering
	receipts map[cid.Cid]cid.Cid // by task
	included map[string]string   // aggregate, by storefront and piece
	deals    map[string]uint64   // by aggregate
	looks    int                 // how often an offer was looked at
}

func newEye(keys capabilities.Keys, aggregator, dealer *offerer) *eye {
	return &eye{keys: keys, aggregator: aggregator, dealer: dealer,
		receipts: map[cid.Cid]cid.Cid{}, included: map[string]string{}, deals: map[string]uint64{}}
}

// offer stores content at a storefront and offers it, once.
func (e *eye) offer(ctx context.Context, at *offerer, c content) (*offering, error) {
	if err := at.store(ctx, c.cid, "content", bytes.NewReader(c.bytes), int64(len(c.bytes))); err != nil {
		return nil, fmt.Errorf("storing %s: %w", c.cid, err)
	}
	return e.invoke(ctx, at, c)
}

// invoke offers content that is stored already, once.
func (e *eye) invoke(ctx context.Context, at *offerer, c content) (*offering, error) {
	task, r, err := client.Offer(ctx, at.conn, at.agent, at.storefront, at.with, filecoin.Offer{Content: c.cid, Piece: c.piece},
		capabilities.Terms{Proofs: at.proofs}, e.keys)
	if err != nil {
		return nil, fmt.Errorf("offering %s: %w", c.cid, err)
	}
	o := &offering{content: c, at: at, task: task.Link(), acknowledged: r.Link()}
	o.bytes = nil
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, again := e.receipts[o.task]; !again {
		e.open = append(e.open, o)
	}
	return o, e.saw(o.task, o.acknowledged)
}

// promised offers content until it is acknowledged: roles may be away, and answers may be lost. Only a refusal ends it early.
func (e *eye) promised(ctx context.Context, at *offerer, c content) (o *offering, err error) {
	var refused *capabilities.Failure
	err = repeat(ctx, func(ctx context.Context) error {
		if o, err = e.offer(ctx, at, c); errors.As(err, &refused) {
			return nil
		}
		return err
	})
	if refused != nil {
		return nil, refused
	}
	return o, err
}

// saw remembers the receipt of a task; it is the same each time. The lock is held.
func (e *eye) saw(task, receipt cid.Cid) error {
	if first, ok := e.receipts[task]; ok && first != receipt {
		return fmt.Errorf("the receipt of task %s has changed: %s, then %s", task, first, receipt)
	}
	e.receipts[task] = receipt
	return nil
}

// standing asks the storefront where an offer stands.
func (o *offering) standing(ctx context.Context) (capabilities.PieceStatus, error) {
	var s capabilities.Status
	if err := o.at.getJSON(ctx, "/status/"+o.piece.String(), &s); err != nil {
		return capabilities.PieceStatus{}, fmt.Errorf("the status of acknowledged offer %s: %w", o.task, err)
	}
	for _, p := range s.Pieces {
		if p.Content == o.cid.String() || p.Content == "" {
			return p, nil
		}
	}
	return capabilities.PieceStatus{}, fmt.Errorf("the status of acknowledged offer %s names another content: %+v", o.task, s)
}

// look checks what a storefront says of an offer that it has acknowledged: it is known and in flight, or has ended in a deal that its chain proves; and
// no receipt has changed.
func (e *eye) look(ctx context.Context, o *offering) (ended bool, err error) {
	s, err := o.standing(ctx)
	unlisted := e.lags && errors.Is(err, capabilities.ErrNoReceipt)
	if err != nil && !unlisted {
		return false, err
	}
	chain, err := client.Follow(ctx, o.at.conn, o.task)
	if err != nil {
		return false, fmt.Errorf("the chain of acknowledged offer %s: %w", o.task, err)
	}
	if unlisted {
		// No index is needed for a piece once anything has followed from its offer.
		if s.State = "submitted"; slices.ContainsFunc(chain.Steps()[1:], func(s client.Step) bool { return s.Receipt != nil }) {
			if s, err = o.standing(ctx); err != nil {
				return false, err
			}
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.looks++
	for _, step := range chain.Steps() {
		if step.Receipt == nil {
			continue
		}
		if err := e.saw(step.Task, step.Receipt.Link()); err != nil {
			return false, fmt.Errorf("%s: %w", step.Ability, err)
		}
	}
	switch s.State {
	case "submitted", "validated", "offered", "aggregated":
	case "dealt":
		if !chain.Concluded() {
			return false, fmt.Errorf("offer %s is dealt, but its chain has no end", o.task)
		}
	default:
		return false, fmt.Errorf("offer %s, with good content, is %s: %s", o.task, s.State, s.Reason)
	}
	if !chain.Concluded() {
		return false, nil
	}
	p, err := chain.Verify(ctx, e.keys)
	if err != nil {
		return false, fmt.Errorf("offer %s: %w", o.task, err)
	}
	if p.Failure != nil {
		return false, fmt.Errorf("offer %s, with good content, failed: %w", o.task, p.Failure)
	}
	if p.Content != o.cid || p.Piece != o.piece {
		return false, fmt.Errorf("the chain of offer %s proves something of %s, %s", o.task, p.Content, p.Piece)
	}
	aggregate, key := p.Aggregate.String(), o.at.storefront.String()+" "+o.piece.String()
	if other, ok := e.included[key]; ok && other != aggregate {
		return false, fmt.Errorf("piece %s is in two aggregates, %s and %s", o.piece, other, aggregate)
	}
	if other, ok := e.deals[aggregate]; ok && other != p.Deal.DealID {
		return false, fmt.Errorf("aggregate %s has two deals, %d and %d", aggregate, other, p.Deal.DealID)
	}
	e.included[key], e.deals[aggregate] = aggregate, p.Deal.DealID
	return true, nil
}

// check looks at every offer that has not ended yet, and again at some that have.
func (e *eye) check(ctx context.Context, r *rand.Rand, again int) error {
	e.mu.Lock()
	open := slices.Clone(e.open)
	e.mu.Unlock()
	_, err := e.lookAt(ctx, r, open, again)
	return err
}

// lookAt looks at offers that have not ended yet, and again at some that have. It returns how many of the former have ended now.
func (e *eye) lookAt(ctx context.Context, r *rand.Rand, open []*offering, again int) (count int, err error) {
	e.mu.Lock()
	some := slices.Clone(open)
	for range min(again, len(e.done)) {
		some = append(some, e.done[r.IntN(len(e.done))])
	}
	e.mu.Unlock()
	var mu sync.Mutex
	ended := map[*offering]bool{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i, o := range some {
		group.Go(func() error {
			end, err := e.look(ctx, o)
			if err != nil {
				return err
			}
			if i >= len(open) {
				if !end {
					return fmt.Errorf("offer %s had ended and has not any more", o.task)
				}
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			ended[o] = end
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var left []*offering
	for _, o := range e.open {
		if ended[o] {
			e.done = append(e.done, o)
			count++
		} else {
			left = append(left, o)
		}
	}
	e.open = left
	return count, nil
}

// settle waits until all offers have ended, by what their storefronts say. Where the last ones wait for more volume it offers some, at the storefront
// of one of them.
func (e *eye) settle(t testing.TB, r *rand.Rand, within time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	var filled time.Time
	for i := 0; ; i++ {
		e.mu.Lock()
		var o *offering
		if i < len(e.open) {
			o = e.open[i]
		}
		e.mu.Unlock()
		if o == nil {
			return
		}
		var last capabilities.PieceStatus
		err := repeat(ctx, func(ctx context.Context) (err error) {
			if last, err = o.standing(ctx); err != nil {
				return err
			}
			switch last.State {
			case "dealt":
				return nil
			case "invalid", "failed", "expired":
				t.Errorf("offer %s, with good content, is %s: %s", o.task, last.State, last.Reason)
				return nil
			}
			if missing := e.missing(ctx, o); missing > 0 && time.Since(filled) > 3*time.Second {
				filled = time.Now()
				if _, err := e.promised(ctx, o.at, newContent(t, r, int(missing)/128*127)); err != nil {
					t.Errorf("offering more: %v", err)
				}
			}
			return fmt.Errorf("it is %+v", last)
		})
		if err != nil {
			t.Fatalf("offer %s has not ended within %s: %v", o.task, within, err)
		}
	}
}

// missing returns how many padded bytes the aggregator waits for before it can close with a piece, 0 if it does not.
func (e *eye) missing(ctx context.Context, o *offering) (padded uint64) {
	var s capabilities.Status
	if e.aggregator.getJSON(ctx, "/status/"+o.piece.String(), &s) != nil {
		return 0
	}
	for _, p := range s.Pieces {
		if n, _ := fmt.Sscanf(p.Reason, "volume: %d padded bytes", &padded); n == 1 {
			return max(padded, 128<<10)
		}
	}
	return 0
}

// documents reads the offer documents of the dealer: their keys by aggregate, and the aggregate of each piece.
func (e *eye) documents(t testing.TB) (documents, offered map[string]string) {
	t.Helper()
	documents, offered = map[string]string{}, map[string]string{}
	for after := ""; ; {
		var page broker.List
		if err := e.dealer.getJSON(t.Context(), "/offers?limit=1000&after="+after, &page); err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Offers {
			var doc struct {
				Aggregate string   `json:"aggregate"`
				Pieces    []string `json:"pieces"`
			}
			if err := e.dealer.getJSON(t.Context(), "/offers/"+o.Key, &doc); err != nil {
				t.Fatal(err)
			}
			if other, ok := documents[doc.Aggregate]; ok && other != o.Key {
				t.Errorf("aggregate %s is offered twice, in %s and %s", doc.Aggregate, other, o.Key)
			}
			documents[doc.Aggregate] = o.Key
			for _, p := range doc.Pieces {
				if other, ok := offered[p]; ok && other != doc.Aggregate {
					t.Errorf("piece %s is offered in two aggregates, %s and %s", p, other, doc.Aggregate)
				}
				offered[p] = doc.Aggregate
			}
		}
		if after = page.Next; after == "" {
			return documents, offered
		}
	}
}

// concluded checks that every offer has ended well and that nothing was done twice: each piece of a storefront is in one aggregate, each aggregate
// in one document, with one deal, and the chain has no other deals.
func (e *eye) concluded(t testing.TB, chainFile string) {
	t.Helper()
	if err := e.check(t.Context(), nil, 0); err != nil {
		t.Fatal(err)
	}
	if n := len(e.open); n > 0 {
		t.Fatalf("%d offers have not ended, the first is %s", n, e.open[0].task)
	}
	ours := map[uint64]bool{}
	for _, id := range e.deals {
		ours[id] = true
	}
	documents, offered := e.documents(t)
	// The list is read from an index, which may show what was there some time ago.
	for tries := 0; e.lags && len(documents) < len(ours) && tries < 20; tries++ {
		documents, offered = e.documents(t)
	}
	known := map[string]bool{}
	for _, o := range e.done {
		known[o.piece.String()] = true
		if want := e.included[o.at.storefront.String()+" "+o.piece.String()]; offered[o.piece.String()] != want {
			t.Errorf("piece %s was offered to providers in %q, its chain says %q", o.piece, offered[o.piece.String()], want)
		}
	}
	for p, aggregate := range offered {
		if !known[p] {
			t.Errorf("aggregate %s has piece %s, which nobody offered", aggregate, p)
		}
	}
	b, err := os.ReadFile(chainFile)
	if err != nil {
		t.Fatal(err)
	}
	var chain struct {
		Deals []struct {
			ID uint64 `json:"id"`
		} `json:"deals"`
	}
	if err := json.Unmarshal(b, &chain); err != nil {
		t.Fatal(err)
	}
	if len(ours) != len(e.deals) || len(chain.Deals) != len(ours) || len(documents) != len(ours) {
		t.Errorf("%d aggregates have %d deals; there are %d documents, and the chain has %d deals",
			len(e.deals), len(ours), len(documents), len(chain.Deals))
	}
	t.Logf("checked: %d offers, %d receipts that never changed, %d looks, %d aggregates with one document and one deal each",
		len(e.done), len(e.receipts), e.looks, len(ours))
}

// newKey makes a key with the program and returns its DID.
func newKey(t testing.TB, file string) string {
	t.Helper()
	return cli(t, "key", "generate", "-o", file)
}

// signerOf reads a key file.
func signerOf(t testing.TB, file string) capabilities.Signer {
	t.Helper()
	s, err := readSigner(file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// dial asks a role who it is.
func dial(t testing.TB, url string, agent capabilities.Signer, keys capabilities.Keys) *offerer {
	t.Helper()
	o, err := dialStorefront(t.Context(), url, agent)
	if err != nil {
		t.Fatal(err)
	}
	o.keys, o.app = keys, newApp(nil, io.Discard, io.Discard)
	return o
}

func writeConfig(t testing.TB, file, text string) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// together is a network in one process, with a simulated chain and provider.
type together struct {
	*daemon
	*eye
	// front and other are two agents at its storefront.
	front, other *offerer
	data         string
}

// newTogether starts one, with settings beside the usual ones: tables, or lines of the storefront's.
func newTogether(t testing.TB, settings ...string) *together {
	t.Helper()
	var lines, tables []string
	for _, text := range settings {
		if strings.HasPrefix(strings.TrimSpace(text), "[") {
			tables = append(tables, text)
		} else {
			lines = append(lines, text)
		}
	}
	dir := t.ArtifactDir()
	a := addresses(t, 6)
	n := &together{data: filepath.Join(dir, "data")}
	config := writeConfig(t, filepath.Join(dir, "w3filecoin.toml"), fmt.Sprintf(`
data = "data"
[storefront]
%s
listen = %q
max_piece = "4MiB"
content_retry = "100ms"
pull = "2s"
[aggregator]
listen = %q
sizes = ["1MiB", "2MiB", "4MiB", "8MiB"]
budget = "500ms"
pull = "2s"
[dealer]
listen = %q
sizes = ["1MiB", "2MiB", "4MiB", "8MiB"]
poll = "50ms"
[dealtracker]
listen = %q
poll = "100ms"
[compute]
listen = %q
[devnet]
enabled = true
listen = %q
epoch = "50ms"
`, strings.Join(lines, "\n"), a[0], a[1], a[2], a[3], a[4], a[5])+strings.Join(tables, "\n"))
	var urls []string
	for _, address := range a[:5] {
		urls = append(urls, "http://"+address)
	}
	n.daemon = newDaemon(t, "w3filecoin", config, urls...)
	n.start()
	n.ready()
	keys := roles.NewKeys(roles.KeysConfig{Now: time.Now})
	agent := func(b byte) capabilities.Signer {
		file := filepath.Join(dir, fmt.Sprintf("agent%d.pem", b))
		newKey(t, file)
		return signerOf(t, file)
	}
	one := agent(1)
	n.front, n.other = dial(t, urls[0], one, keys), dial(t, urls[0], agent(2), keys)
	n.eye = newEye(keys, dial(t, urls[1], one, keys), dial(t, urls[2], one, keys))
	return n
}

func (n *together) chainFile() string { return filepath.Join(n.data, "devnet.json") }
