package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/wire"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"w3filecoin": main})
}

// TestScripts runs testdata/*.txt. Beyond what testscript has, a script can say
//
//	exits CODE PROGRAM ARGS…    run a program that has to end with this exit code
//	answers FILE|CODE…          what the role at $URL answers to GET /status, one by one; the last again and again
//	conclude ABILITY…           for which tasks it has receipts; the chains files are not affected
//	asked N                     wait until it was asked for N statuses, or for GET /slow, which answers from the second time on
//	modes OCTAL FILE            check the permissions of a file
//	serves CONFIG               run all roles of a configuration beside the script, the storefront at $STOREFRONT_URL
//	json FILE                   check that a file, or stdout, is JSON and nothing else
//	buries DIR ROLE QUEUE N TEXT  make dead letters whose errors begin with the text
//	condemns DIR ROLE SUBJECT N CAUSE  note so many wrong offers with a subject
//	waiting DIR ROLE QUEUE N    check how many messages wait, none of them tried yet, and take them
//	holds [DIR ROLE]            have a database in use, or no more
//	halfcopied FROM TO ROLE     interrupt a copy of a database
//	ids NAME                    set $NAME to the only "id" of stdout
//
// In its folder are chains: chain.car holds, invalid.car holds and ends in a failure, forged.car has a signature changed, otherdeal.car names a deal that
// the dealer did not report, unfinished.car lacks the end, two.car proves the same as chain.car.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":      exits,
			"modes":      modes,
			"json":       isJSON,
			"serves":     serves,
			"buries":     buries,
			"condemns":   condemns,
			"waiting":    waiting,
			"holds":      holds,
			"halfcopied": halfcopied,
			"ids":        ids,
			"answers":    func(ts *testscript.TestScript, _ bool, args []string) { fake(ts).answers(ts, args) },
			"conclude":   func(ts *testscript.TestScript, _ bool, args []string) { fake(ts).conclude(args) },
			"asked":      func(ts *testscript.TestScript, _ bool, args []string) { fake(ts).wait(ts, args) },
		},
	})
}

func setup(env *testscript.Env) error {
	good := chaintest.New()
	forged := chaintest.New()
	forged.Links[piececap.AcceptAbility].Forge = chaintest.FlipSignature
	otherDeal := chaintest.New()
	otherDeal.Links[filecoin.AcceptAbility].OK.(*filecoin.AcceptOK).Aux.DealID++
	unfinished := chaintest.New()
	unfinished.Links[filecoin.AcceptAbility].Pending = true
	for name, c := range map[string]*chaintest.Chain{
		"chain.car": good, "two.car": good, "forged.car": forged, "otherdeal.car": otherDeal, "unfinished.car": unfinished,
		"invalid.car": chaintest.NewInvalid(),
	} {
		if err := os.WriteFile(filepath.Join(env.WorkDir, name), c.Message().Encode(), 0o600); err != nil {
			return err
		}
	}
	// Content for pieces of two sizes: one that makes an aggregate with little else, one that is too large.
	for name, size := range map[string]int{"big.txt": 1_500_000, "huge.txt": 3_000_000} {
		if err := os.WriteFile(filepath.Join(env.WorkDir, name), bytes.Repeat([]byte(name), size/len(name)), 0o600); err != nil {
			return err
		}
	}
	r := &fakeRole{chain: good, asks: make(chan struct{}, 1000)}
	r.conclude(chaintest.Abilities)
	server := httptest.NewServer(r)
	env.Defer(server.Close)
	env.Values[roleKey{}] = r
	env.Values[heldKey{}] = new(heldDatabase)
	// Programs under the race detector linger for a second when they end.
	env.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	env.Setenv("URL", server.URL)
	env.Setenv("HOST", server.Listener.Addr().String())
	env.Setenv("CONTENT", good.Content.String())
	env.Setenv("PIECE", good.Piece.String())
	env.Setenv("AGGREGATE", good.Aggregate.String())
	env.Setenv("AGGREGATEV1", good.Aggregate.V1().String())
	env.Setenv("OTHERPIECE", good.Other.String())
	env.Setenv("KEY", fmt.Sprintf("%s=%s", good.Storefront.DID(), good.Storefront.KeyDID()))
	for name, s := range map[string]capabilities.Signer{
		"AGENT": good.Agent, "STOREFRONT": good.Storefront, "COMPUTE": good.Compute, "AGGREGATOR": good.Aggregator, "DEALER": good.Dealer,
	} {
		env.Setenv(name, s.DID().String())
		if err := os.WriteFile(filepath.Join(env.WorkDir, strings.ToLower(name)+".pem"), s.PEM(), 0o600); err != nil {
			return err
		}
	}
	for can, l := range good.Links {
		env.Setenv("TASK_"+strings.ReplaceAll(can, "/", "_"), l.Task.Link().String())
	}
	return nil
}

func fake(ts *testscript.TestScript) *fakeRole { return ts.Value(roleKey{}).(*fakeRole) }

type roleKey struct{}

// fakeRole answers for receipts of a chain and for statuses that a script gives it.
type fakeRole struct {
	chain *chaintest.Chain
	asks  chan struct{} // one for each status that was asked for

	mu       sync.Mutex
	receipts map[cid.Cid][]byte
	statuses [][]byte
	codes    []int
	slept    bool
}

func (r *fakeRole) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if text, ok := strings.CutPrefix(req.URL.Path, "/receipt/"); ok {
		task, err := cid.Parse(text)
		b := r.receipts[task]
		if err != nil || b == nil {
			http.Error(w, "no receipt (yet)", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", client.ContentType)
		w.Write(b)
		return
	}
	if req.URL.Path == "/slow" {
		r.slow(w, req)
		return
	}
	if !strings.HasPrefix(req.URL.Path, "/status/") || len(r.codes) == 0 {
		http.NotFound(w, req)
		return
	}
	code, body := r.codes[0], r.statuses[0]
	if len(r.codes) > 1 {
		r.codes, r.statuses = r.codes[1:], r.statuses[1:]
	}
	w.WriteHeader(code)
	w.Write(body)
	r.asks <- struct{}{}
}

// slow serves a text, but to whoever asks first it sends nothing, as long as they wait.
func (r *fakeRole) slow(w http.ResponseWriter, req *http.Request) {
	if !r.slept {
		r.slept = true
		r.asks <- struct{}{}
		r.mu.Unlock()
		<-req.Context().Done()
		r.mu.Lock()
		return
	}
	io.WriteString(w, "From far away.\n")
}

func (r *fakeRole) answers(ts *testscript.TestScript, args []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.codes, r.statuses = nil, nil
	for _, a := range args {
		code, err := strconv.Atoi(a)
		if err == nil {
			r.codes, r.statuses = append(r.codes, code), append(r.statuses, []byte("as the script has it\n"))
			continue
		}
		var s capabilities.Status
		text := os.Expand(ts.ReadFile(a), ts.Getenv)
		ts.Check(json.Unmarshal([]byte(text), &s))
		r.codes, r.statuses = append(r.codes, http.StatusOK), append(r.statuses, []byte(text))
	}
}

func (r *fakeRole) conclude(abilities []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.receipts = map[cid.Cid][]byte{}
	for _, can := range abilities {
		r.receipts[r.chain.Links[can].Task.Link()] = r.chain.Conclusion(can).Encode()
	}
}

func (r *fakeRole) wait(ts *testscript.TestScript, args []string) {
	n, err := strconv.Atoi(strings.Join(args, " "))
	ts.Check(err)
	for range n {
		<-r.asks
	}
}

func exits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("running %s: %v", args[1], err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d\n%s", got, want, ts.ReadFile("stderr"))
	}
}

func modes(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has permissions %s, want %s", args[1], got, args[0])
	}
}

func isJSON(ts *testscript.TestScript, _ bool, args []string) {
	if !json.Valid([]byte(ts.ReadFile(args[0]))) {
		ts.Fatalf("%s is not one JSON value:\n%s", args[0], ts.ReadFile(args[0]))
	}
}

// TestReceiptForged: a receipt that its issuer did not sign is shown as such, with the exit code for that.
func TestReceiptForged(t *testing.T) {
	c := chaintest.New()
	c.Links[piececap.OfferAbility].Forge = chaintest.FlipSignature
	r := &fakeRole{chain: c}
	r.conclude(chaintest.Abilities)
	server := httptest.NewServer(r)
	defer server.Close()
	for _, args := range [][]string{
		{"receipt", c.Links[piececap.OfferAbility].Task.Link().String(), "--url", server.URL},
		{"receipt", c.Links[filecoin.OfferAbility].Task.Link().String(), "--url", server.URL, "--chain"},
	} {
		var out, errs strings.Builder
		if code := run(t.Context(), newApp(strings.NewReader(""), &out, &errs), args); code != exitUnproven {
			t.Errorf("%q: exit code %d, want %d\n%s", args, code, exitUnproven, &errs)
		}
		if !strings.Contains(out.String(), "INVALID") || !strings.Contains(errs.String(), "signature does not verify") {
			t.Errorf("%q prints\n%s\nand\n%s", args, &out, &errs)
		}
	}
}

// TestDelegateShowForged: likewise for a delegation.
func TestDelegateShowForged(t *testing.T) {
	d, err := capabilities.Delegate(chaintest.Key("mallory"), chaintest.Key("agent").DID(),
		[]capabilities.Grant{{Can: "piece/offer", With: chaintest.Key("aggregator").DID().String()}}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "forged.ucan")
	if err := os.WriteFile(file, capabilities.Archive(chaintest.Claimed(d, chaintest.Key("aggregator").DID())), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs strings.Builder
	code := run(t.Context(), newApp(strings.NewReader(""), &out, &errs), []string{"delegate", "show", file})
	if code != exitUnproven || out.Len() > 0 || !strings.Contains(errs.String(), wire.ErrSignature.Error()) {
		t.Errorf("exit code %d, prints\n%s\nand\n%s", code, &out, &errs)
	}
}
