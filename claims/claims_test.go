package claims_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	"github.com/storacha/w3filecoin/claims"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/enginetest"
	"github.com/storacha/w3filecoin/store/storetest"
	"github.com/storacha/w3filecoin/wire"
)

var self, agent, space, stranger, elsewhere = chaintest.Key("claims service"), chaintest.Key("agent"), chaintest.Key("space"), chaintest.Key("stranger"), chaintest.Key("claims service elsewhere")

func content(text string) cid.Cid {
	mh, err := multihash.Sum([]byte(text), multihash.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.Raw, mh)
}

// service is the claims service elsewhere.
type service struct {
	*testing.T
	err     error
	refusal *capabilities.Failure
	told    []capabilities.Task
}

func (s *service) Execute(_ context.Context, m *capabilities.Message) (*capabilities.Message, error) {
	if s.err != nil {
		return nil, s.err
	}
	m, err := wire.DecodeMessage(m.Encode(), wire.Limits{})
	if err != nil {
		s.Fatal(err)
	}
	task := capabilities.TaskOf(m, m.Invocations()[0])
	if task.Audience != elsewhere.DID() || task.Issuer != self.DID() || task.Expiration != nil {
		s.Errorf("%s is issued by %s for %s", task.Can(), task.Issuer, task.Audience)
	}
	s.told = append(s.told, task)
	r, err := capabilities.Issue(elsewhere, task.Link(), &assert.OK{}, capabilities.Effects{})
	if s.refusal != nil {
		r, err = capabilities.IssueFailure(elsewhere, task.Link(), s.refusal, capabilities.Effects{})
	}
	if err != nil {
		s.Fatal(err)
	}
	return capabilities.Conclusion(r, task, capabilities.Effects{}), nil
}

func (*service) Receipt(context.Context, cid.Cid) (*capabilities.Message, error) {
	return nil, capabilities.ErrNoReceipt
}

// world is the claims with what is around them, stepped by hand.
type world struct {
	storetest.Stage
	other   *service
	revoked map[cid.Cid]bool
	deps    claims.Deps
	service *claims.Service
}

func newWorld(t *testing.T, choose storetest.Chooser) *world {
	t.Helper()
	clock := storetest.NewClock()
	w := &world{Stage: storetest.NewStage(t, clock, enginetest.New(t, enginetest.Options{Now: clock.Now}), choose), other: &service{T: t}, revoked: map[cid.Cid]bool{}}
	w.Handlers = func() map[string]store.Handler { return w.service.Handlers() }
	w.deps = claims.Deps{
		Signer: self, Store: w.Driver, Keys: chaintest.Keys{}, Now: w.Clock.Now, Log: slog.New(slog.DiscardHandler),
		Revoked:  func(_ context.Context, c cid.Cid) (bool, error) { return w.revoked[c], nil },
		MayClaim: func(with string) bool { return with != stranger.DID().String() },
		Forward:  &capabilities.Peer{DID: elsewhere.DID(), Conn: w.other},
	}
	w.restart()
	return w
}

func (w *world) restart() {
	w.Helper()
	s, err := claims.New(w.deps)
	if err != nil {
		w.Fatal(err)
	}
	w.service = s
}

func (w *world) invoke(by capabilities.Signer, with string, c capabilities.Caveats, terms capabilities.Terms) capabilities.Task {
	w.Helper()
	task, err := capabilities.Invoke(by, self.DID(), with, c, terms)
	if err != nil {
		w.Fatal(err)
	}
	return task
}

// claim is a claim by the agent on its own DID.
func (w *world) claim(c capabilities.Caveats) capabilities.Task {
	w.Helper()
	return w.invoke(agent, agent.DID().String(), c, capabilities.Terms{})
}

func (w *world) execute(task capabilities.Task) (r *capabilities.Receipt, err error) {
	w.Helper()
	in := chaintest.Arrives(w, task)
	err = storetest.Again(func() error {
		r, err = w.service.Methods()[task.Can()](w.Context(), in)
		return err
	})
	return r, err
}

func (w *world) accept(task capabilities.Task) {
	w.Helper()
	r, err := w.execute(task)
	if err != nil {
		w.Fatalf("%s: %v", task.Can(), err)
	}
	if err := capabilities.VerifyReceipt(w.Context(), r, task.UCAN, chaintest.Keys{}); err != nil {
		w.Fatal(err)
	}
	if err := capabilities.ReadResult(r.Out, &assert.OK{}); err != nil {
		w.Fatal(err)
	}
}

// again calls a function that only reads, once more if the store was at fault.
func again[T any](w *world, read func() (T, error)) T {
	w.Helper()
	var v T
	err := storetest.Again(func() (err error) {
		v, err = read()
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
	return v
}

// about returns the links of the claims about content.
func (w *world) about(c cid.Cid) []cid.Cid {
	w.Helper()
	var links []cid.Cid
	for _, claim := range again(w, func() ([]capabilities.Task, error) { return w.service.Of(w.Context(), c.Hash()) }) {
		links = append(links, claim.Link())
	}
	return links
}

func (w *world) wantAbout(c cid.Cid, want ...capabilities.Task) {
	w.Helper()
	var links []cid.Cid
	for _, t := range want {
		links = append(links, t.Link())
	}
	if got := w.about(c); fmt.Sprint(got) != fmt.Sprint(links) {
		w.Errorf("about %s is claimed %v, want %v", c, got, links)
	}
}

func everything(store.Key) bool { return true }

// all are one claim of each ability about content.
func all(c, other cid.Cid) []capabilities.Caveats {
	return []capabilities.Caveats{
		&assert.Location{Content: assert.Content{Digest: c.Hash()}, Location: []string{"https://a.example/x", "http://b.example"}},
		&assert.Equals{Content: assert.Content{Link: c}, Equals: other},
		&assert.Inclusion{Content: assert.Content{Link: c}, Includes: other},
		&assert.Index{Content: assert.Content{Link: c}, Index: other},
	}
}

func TestClaims(t *testing.T) {
	w := newWorld(t, nil)
	c, other := content("content"), content("other")
	var made []capabilities.Task
	for _, caveats := range all(c, other) {
		task := w.claim(caveats)
		w.accept(task)
		made = append(made, task)
	}
	w.Run(time.Minute)
	if got := w.about(c); len(got) != len(made) {
		t.Errorf("%d claims, want %d", len(got), len(made))
	}
	w.wantAbout(other, made[1]) // what equals it is found by it
	w.wantAbout(content("third"))
	for _, task := range made {
		got := again(w, func() (capabilities.Task, error) { return w.service.Get(t.Context(), task.Link()) })
		if diff := cmp.Diff(task.Block(), got.Block(), cmp.Comparer(func(a, b cid.Cid) bool { return a == b })); diff != "" {
			t.Errorf("%s comes back changed: %s", task.Can(), diff)
		}
	}
	urls := again(w, func() ([]string, error) { return w.service.Locations(t.Context(), c) })
	if diff := cmp.Diff([]string{"https://a.example/x", "http://b.example"}, urls); diff != "" {
		t.Errorf("locations (-want +got): %s", diff)
	}
	if _, err := w.service.Get(t.Context(), c); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a claim that was never made: %v", err)
	}
	if len(w.other.told) != 0 {
		t.Errorf("told of %d claims of others", len(w.other.told))
	}
}

// TestProofsTravel: a claim on another's resource is kept with the chain that gives its issuer authority, and ends with it.
func TestProofsTravel(t *testing.T) {
	c := content("content")
	for name, end := range map[string]func(w *world, claim, proof capabilities.Task){
		"proof revoked": func(w *world, _, proof capabilities.Task) { w.revoked[proof.Link()] = true },
		"claim revoked": func(w *world, claim, _ capabilities.Task) { w.revoked[claim.Link()] = true },
		"expired":       func(w *world, _, _ capabilities.Task) { w.Clock.Advance(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			proof, err := capabilities.Delegate(space, agent.DID(), []capabilities.Grant{{Can: "assert/*", With: space.DID().String()}},
				capabilities.Terms{Expiration: w.Clock.Now().Add(time.Hour)})
			if err != nil {
				t.Fatal(err)
			}
			claim := w.invoke(agent, space.DID().String(), all(c, c)[0], capabilities.Terms{Proofs: []capabilities.Delegation{proof}})
			w.accept(claim)
			w.Run(time.Minute)
			got := again(w, func() (capabilities.Task, error) { return w.service.Get(t.Context(), claim.Link()) })
			if len(got.Proofs) != 1 || !got.Proofs[0].CID.Equals(proof.Link()) {
				t.Errorf("the claim has the proofs %v", got.Proofs)
			}
			end(w, claim, proof)
			w.wantAbout(c)
			if _, err := w.service.Get(t.Context(), claim.Link()); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("it is still there: %v", err)
			}
			if urls, err := w.service.Locations(t.Context(), c); err != nil || len(urls) != 0 {
				t.Errorf("its addresses are still used: %v, %v", urls, err)
			}
		})
	}
}

// own is a claim of the service's own, which is kept where it is made.
func (w *world) own(c cid.Cid) capabilities.Task {
	w.Helper()
	claim := w.invoke(self, self.DID().String(), &assert.Equals{Content: assert.Content{Link: c}, Equals: content("piece")}, capabilities.Terms{})
	if err := storetest.Again(func() error { return w.service.Keep(w.Context(), claim) }); err != nil {
		w.Fatal(err)
	}
	return claim
}

// TestFaultsOfTheStore: whatever fails, what was acknowledged is kept once, and the other service is told at least once, of one task.
func TestFaultsOfTheStore(t *testing.T) {
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict, storetest.Duplicate}
	storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
		w := newWorld(t, choose)
		c := content("content")
		task := w.claim(all(c, content("piece"))[1])
		w.accept(task)
		own := w.own(c)
		w.Run(24 * time.Hour)
		w.wantAbout(c, own, task)
		if len(w.about(content("piece"))) != 2 {
			t.Error("it is not found by the piece")
		}
		for _, told := range w.other.told {
			if !told.Link().Equals(w.other.told[0].Link()) {
				t.Error("told by two tasks")
			}
		}
		if len(w.other.told) == 0 || w.other.told[0].Can() != assert.EqualsAbility {
			t.Errorf("told %d times", len(w.other.told))
		}
		rows := w.Rows(everything)
		w.Replay()
		w.accept(task)
		w.own(c)
		w.Run(time.Hour)
		if diff := cmp.Diff(rows, w.Rows(everything)); diff != "" {
			t.Errorf("repeating all of it changes rows: %s", diff)
		}
	})
}

// TestForward: the other service is told until it has taken the claim.
func TestForward(t *testing.T) {
	w := newWorld(t, nil)
	w.other.err = errors.New("away")
	c := content("content")
	w.own(c)
	w.Run(time.Minute)
	w.other.err, w.other.refusal = nil, capabilities.Fail("Unauthorized", "not yet")
	w.Run(time.Hour)
	refused := len(w.other.told)
	if refused == 0 {
		t.Fatal("it was not tried again")
	}
	w.other.refusal = nil
	w.Run(3 * time.Hour)
	if n := len(w.other.told); n != refused+1 {
		t.Errorf("told %d times after it was taken", n-refused-1)
	}

	// On a resource of the other service, if it has delegated.
	proof, err := capabilities.Delegate(elsewhere, self.DID(), []capabilities.Grant{{Can: "assert/*", With: elsewhere.DID().String()}}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	w.deps.Forward.Proofs = []capabilities.Delegation{proof}
	w.restart()
	w.own(content("second"))
	w.Run(time.Minute)
	last := w.other.told[len(w.other.told)-1]
	if last.Resource() != elsewhere.DID().String() || len(last.Proofs) != 1 {
		t.Errorf("claimed on %s with %d proofs", last.Resource(), len(last.Proofs))
	}

	// Not wanted any more: what is under way ends.
	w.other.err = errors.New("away")
	w.own(content("third"))
	w.Run(time.Second)
	w.deps.Forward, w.other.err = nil, nil
	w.restart()
	before := len(w.other.told)
	w.Run(24 * time.Hour)
	if len(w.other.told) != before {
		t.Error("told although it is not configured")
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, nil)
	c := content("content")
	many := make([]string, 17)
	for i := range many {
		many[i] = fmt.Sprintf("https://%d.example", i)
	}
	at := func(urls ...string) capabilities.Caveats {
		return &assert.Location{Content: assert.Content{Link: c}, Location: urls}
	}
	long, err := multihash.Encode(make([]byte, 200), multihash.IDENTITY)
	if err != nil {
		t.Fatal(err)
	}
	for name, caveats := range map[string]capabilities.Caveats{
		"no address":          at(),
		"many addresses":      at(many...),
		"not an address":      at("somewhere"),
		"no host":             at("https:///x"),
		"a file":              at("file:///etc/passwd"),
		"credentials":         at("https://user:password@a.example"),
		"long address":        at("https://a.example/" + strings.Repeat("x", 2048)),
		"long multihash":      &assert.Location{Content: assert.Content{Digest: long}, Location: []string{"https://a.example"}},
		"equal to a long one": &assert.Equals{Content: assert.Content{Link: c}, Equals: cid.NewCidV1(cid.Raw, long)},
	} {
		if _, err := w.execute(w.claim(caveats)); !failed(err, capabilities.MalformedCapability) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, caveats := range all(c, c) {
		if _, err := w.execute(w.invoke(stranger, stranger.DID().String(), caveats, capabilities.Terms{})); !failed(err, capabilities.Unauthorized) {
			t.Errorf("%s by a stranger: %v", caveats.Ability(), err)
		}
	}
	if rows := w.Rows(everything); len(rows) != 0 {
		t.Errorf("the refusals left %d rows", len(rows))
	}
}

func failed(err error, name string) bool {
	f := (*capabilities.Failure)(nil)
	return errors.As(err, &f) && f.Name == name
}

// TestOwnComesFirst: nobody hides what the service claims behind many claims.
func TestOwnComesFirst(t *testing.T) {
	w := newWorld(t, nil)
	c := content("content")
	for i := range 120 {
		w.accept(w.invoke(agent, agent.DID().String(), all(c, c)[2], capabilities.Terms{Nonce: fmt.Sprint(i)}))
	}
	own := w.own(c)
	w.Run(time.Minute)
	if got := w.about(c); len(got) != 100 || !got[0].Equals(own.Link()) {
		t.Errorf("%d claims, the first is %v", len(got), got[0])
	}
}

// TestParts: an address of a part of the content is none of the content.
func TestParts(t *testing.T) {
	w := newWorld(t, nil)
	c := content("content")
	w.accept(w.claim(&assert.Location{Content: assert.Content{Link: c}, Location: []string{"https://a.example"}, Range: &assert.Range{Offset: 1, Length: 2}}))
	w.Run(time.Minute)
	if urls, err := w.service.Locations(t.Context(), c); err != nil || len(urls) != 0 {
		t.Errorf("locations: %v, %v", urls, err)
	}
}

func TestNewRefuses(t *testing.T) {
	w := newWorld(t, nil)
	for name, spoil := range map[string]func(*claims.Deps){
		"no signer":      func(d *claims.Deps) { d.Signer = capabilities.Signer{} },
		"no store":       func(d *claims.Deps) { d.Store = nil },
		"no keys":        func(d *claims.Deps) { d.Keys = nil },
		"no revocations": func(d *claims.Deps) { d.Revoked = nil },
		"no clock":       func(d *claims.Deps) { d.Now = nil },
		"no log":         func(d *claims.Deps) { d.Log = nil },
	} {
		deps := w.deps
		spoil(&deps)
		if _, err := claims.New(deps); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestMain(m *testing.M) { enginetest.Main(m) }

// TestOnDouble: all of it once more, on the distributed engine, whose services fail now and then.
func TestOnDouble(t *testing.T) {
	enginetest.Again(t, enginetest.Double, ".", "")
}
