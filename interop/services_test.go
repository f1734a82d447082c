package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/wire"
)

// layout is who signs as whom in a deployment of the published services, as lib/layouts.mjs has it. Everybody knows these keys.
type layout struct {
	name                                           string
	agent, storefront, aggregator, dealer, tracker capabilities.Signer
}

func layouts(t testing.TB) []layout {
	key := func(b byte) capabilities.Signer {
		s, err := wire.GenerateSigner(bytes.NewReader(bytes.Repeat([]byte{b}, 32)))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	as := func(s capabilities.Signer, name string) capabilities.Signer {
		did, err := wire.ParseDID(name)
		if err != nil {
			t.Fatal(err)
		}
		if s, err = s.WithDID(did); err != nil {
			t.Fatal(err)
		}
		return s
	}
	pipeline := as(key(3), "did:web:pipeline.test")
	return []layout{
		{"key", key(1), key(2), key(3), key(4), key(5)},
		{"web", key(1), as(key(2), "did:web:up.storefront.test"), pipeline, pipeline, pipeline},
	}
}

// Verifier implements [capabilities.Keys].
func (l layout) Verifier(_ context.Context, did capabilities.DID) (capabilities.Verifier, error) {
	for _, s := range []capabilities.Signer{l.storefront, l.aggregator, l.dealer, l.tracker} {
		if s.DID() == did {
			v, err := wire.VerifierOf(s.KeyDID())
			return v.WithDID(did), err
		}
	}
	return wire.VerifierOf(did)
}

// oneDID reports whether aggregator and dealer share their DID, so that no proof is needed between them.
func (l layout) oneDID() bool { return l.aggregator.DID() == l.dealer.DID() }

// pieceOfferTerms and aggregateOfferTerms are the terms of tasks between roles: with the executor's standing delegation.
func (l layout) pieceOfferTerms(t testing.TB) capabilities.Terms {
	return standing(t, l.aggregator, l.storefront, piececap.OfferAbility)
}

func (l layout) aggregateOfferTerms(t testing.TB) capabilities.Terms {
	return standing(t, l.dealer, l.aggregator, aggregatecap.OfferAbility)
}

func standing(t testing.TB, executor, invoker capabilities.Signer, can string) capabilities.Terms {
	if executor.DID() == invoker.DID() {
		return capabilities.Terms{}
	}
	d, err := capabilities.Delegate(executor, invoker.DID(), []capabilities.Grant{{Can: can, With: executor.DID().String()}}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	return capabilities.Terms{Proofs: []capabilities.Delegation{d}}
}

// invoke signs a task for the executor, invoked on the executor itself.
func invoke(t testing.TB, issuer, executor capabilities.Signer, c capabilities.Caveats, terms capabilities.Terms) capabilities.Task {
	t.Helper()
	return invokeOn(t, issuer, executor, executor, c, terms)
}

func invokeOn(t testing.TB, issuer, executor, resource capabilities.Signer, c capabilities.Caveats, terms capabilities.Terms) capabilities.Task {
	t.Helper()
	task, err := capabilities.Invoke(issuer, executor.DID(), resource.DID().String(), c, terms)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// enabled is the environment variable that `make interop` sets.
const enabled = "W3FILECOIN_INTEROP_NODE"

// node returns the Node binary, or skips the test.
func node(t *testing.T) string {
	if os.Getenv(enabled) != "1" {
		t.Skip("needs Node and the published JavaScript packages: `make interop` installs and runs them")
	}
	path, err := exec.LookPath("node")
	if err == nil {
		_, err = os.Stat("node_modules/@storacha/filecoin-api")
	}
	if err == nil {
		return path
	}
	const what = "cannot run the published services: %v; install Node 20, then `make interop`"
	if os.Getenv("CI") == "true" {
		t.Fatalf(what, err)
	}
	t.Skipf(what, err)
	return ""
}

// services are the published services in a process of their own.
type services struct {
	layout
	url string
}

// patience is how long the process may take to start and to end.
const patience = 30 * time.Second

func start(t *testing.T, l layout) *services {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(node(t), "server.mjs", l.name)
	cmd.Stderr = &log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() {
		late.Reset(patience)
		_ = stdin.Close() // the process ends with its input
		if err := cmd.Wait(); err != nil {
			t.Errorf("server.mjs: %v", err)
		}
		late.Stop()
		if t.Failed() {
			t.Logf("server.mjs wrote:\n%s", &log)
		}
	})
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		t.Fatalf("server.mjs does not say where it is: %v", err)
	}
	late.Stop()
	var said struct{ URL string }
	if err := json.Unmarshal(line, &said); err != nil {
		t.Fatal(err)
	}
	return &services{l, said.URL}
}

func (s *services) conn(role string) *client.Conn { return client.Dial(s.url+"/"+role, nil) }

// call executes a task at a role and returns its receipt, which is verified. The result is read into ok, or is the failure.
func (s *services) call(t *testing.T, role string, task capabilities.Task, ok capabilities.Struct, attach ...capabilities.Block) (
	*capabilities.Receipt, *capabilities.Failure) {
	t.Helper()
	m := new(capabilities.Message)
	m.AddInvocation(task.UCAN, append(attach, task.Proofs...)...)
	reply, err := s.conn(role).Execute(t.Context(), m)
	if err != nil {
		t.Fatalf("%s: %v", task.Can(), err)
	}
	r := reply.Receipt(task.Link())
	if r == nil {
		t.Fatalf("%s: the reply holds no receipt", task.Can())
	}
	if err := capabilities.VerifyReceipt(t.Context(), r, task.UCAN, s); err != nil {
		t.Fatalf("%s: %v", task.Can(), err)
	}
	err = capabilities.ReadResult(r.Out, ok)
	var failure *capabilities.Failure
	if err != nil && !errors.As(err, &failure) {
		t.Fatalf("%s: %v", task.Can(), err)
	}
	return r, failure
}

// do is call where no failure is expected.
func (s *services) do(t *testing.T, role string, task capabilities.Task, ok capabilities.Struct, attach ...capabilities.Block) *capabilities.Receipt {
	t.Helper()
	r, failure := s.call(t, role, task, ok, attach...)
	if failure != nil {
		t.Fatalf("%s: %v", task.Can(), failure)
	}
	return r
}

// fail is call where a failure of this name is expected.
func (s *services) fail(t *testing.T, name, role string, task capabilities.Task, attach ...capabilities.Block) *capabilities.Failure {
	t.Helper()
	_, failure := s.call(t, role, task, nothing{}, attach...)
	if failure == nil || failure.Name != name {
		t.Errorf("%s: %v, want failure %s", task.Can(), failure, name)
	}
	return failure
}

// nothing is a result of which nothing is read.
type nothing struct{}

func (nothing) Fields() []capabilities.Field { return nil }

// control makes the services do what their deployment did by cron jobs and queues. The answer is read into v, unless that is nil.
func (s *services) control(t *testing.T, method, path string, body []byte, v any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+"/control/"+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		t.Fatalf("%s: %s %s, %v", path, resp.Status, answer, err)
	}
	if v != nil {
		if err := json.Unmarshal(answer, v); err != nil {
			t.Fatal(err)
		}
	}
}

// madeAggregate is an aggregate that the published aggregator built, with the block that lists its pieces.
type madeAggregate struct {
	Aggregate piece.Link
	Pieces    string
}

func (s *services) aggregate(t *testing.T) (made []madeAggregate) {
	t.Helper()
	s.control(t, http.MethodPost, "aggregate", nil, &made)
	return made
}

func (s *services) deal(t *testing.T, p piece.Link, id uint64, provider string) {
	t.Helper()
	query := url.Values{"piece": {p.String()}, "id": {fmt.Sprint(id)}, "provider": {provider}}
	s.control(t, http.MethodPost, "deal?"+query.Encode(), nil, nil)
}

// follows checks the effects of a receipt.
func follows(t *testing.T, r *capabilities.Receipt, join cid.Cid, fork ...cid.Cid) {
	t.Helper()
	if !r.Join.Equals(join) || fmt.Sprint(r.Fork) != fmt.Sprint(fork) {
		t.Errorf("effects: fork %v join %s, want fork %v join %s", r.Fork, r.Join, fork, join)
	}
}
