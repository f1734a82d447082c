package devnet

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/store/storetest"
)

const testEpoch = 200 * time.Millisecond

// world is a chain with a node that serves it and a clock that moves it.
type world struct {
	t     *testing.T
	clock *storetest.FakeClock
	chain *Chain
	url   string
}

func newWorld(t *testing.T, change func(*ChainConfig)) *world {
	t.Helper()
	w := &world{t: t, clock: storetest.NewClockAt(time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC))}
	cfg := ChainConfig{Epoch: testEpoch, PublishDelay: 2, ActivateDelay: 5, Lifetime: 40, Finality: 10, Now: w.clock.Now}
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.chain, err = OpenChain(cfg); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(w.chain.Handler())
	t.Cleanup(server.Close)
	w.url = server.URL
	return w
}

// to moves the chain to an epoch.
func (w *world) to(epoch int64) {
	w.t.Helper()
	w.clock.Advance(time.Duration(epoch-w.chain.Epoch()) * testEpoch)
	if got := w.chain.Epoch(); got != epoch {
		w.t.Fatalf("chain is at %d, want %d", got, epoch)
	}
}

func (w *world) post(version, body string) (status int, answer string) {
	w.t.Helper()
	resp, err := http.Post(w.url+"/rpc/"+version, "application/json", strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// call returns the result of a call as a tree of JSON values, or the error's message.
func (w *world) call(method, params string) (result any, failure string) {
	w.t.Helper()
	version := "v1"
	if method == "ChainGetTipSet" {
		version = "v2"
	}
	status, body := w.post(version, fmt.Sprintf(`{"jsonrpc":"2.0","id":9,"method":"Filecoin.%s","params":%s}`, method, params))
	var answer struct {
		ID     int
		Result any
		Error  *struct {
			Code    int
			Message string
		}
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK || answer.ID != 9 {
		w.t.Fatalf("%s%s: HTTP %d %s: %v", method, params, status, body, err)
	}
	if answer.Error != nil {
		return nil, answer.Error.Message
	}
	return answer.Result, ""
}

// at returns what lies at a path in a tree of JSON values.
func at(v any, path ...any) any {
	for _, step := range path {
		switch s := step.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[s]
		case int:
			l, _ := v.([]any)
			if s >= len(l) {
				return nil
			}
			v = l[s]
		}
	}
	return v
}

// summary lists events as "type@epoch", with "!" for reverted ones.
func summary(events any) []string {
	list, _ := events.([]any)
	out := []string{}
	for _, e := range list {
		kind := at(e, "entries", 0, "Value").(string)
		for _, k := range eventKinds {
			entries, err := (&event{Kind: k, Client: "f01", Provider: "f02"}).entries()
			if err != nil {
				panic(err)
			}
			if encoded, _ := json.Marshal(entries[0].Value); string(encoded) == `"`+kind+`"` {
				kind = string(k)
			}
		}
		if at(e, "reverted") == true {
			kind = "!" + kind
		}
		out = append(out, fmt.Sprintf("%s@%v", kind, at(e, "height")))
	}
	return out
}

func testPiece(n byte) piece.Link {
	l, err := piece.FromRootAndHeight(piece.Node{n, 1}, 20, 0)
	if err != nil {
		panic(err)
	}
	return l
}

func (w *world) publish(n byte) Deal {
	w.t.Helper()
	d, err := w.chain.Publish(w.t.Context(), Proposal{Piece: testPiece(n), Provider: "f01000", Client: "f01001"})
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func TestLifeOfADeal(t *testing.T) {
	w := newWorld(t, nil)
	w.to(7)
	d := w.publish(1)
	want := Deal{ID: 1, Piece: testPiece(1), Provider: "f01000", Client: "f01001", Published: 9, Activated: 14, Terminated: -1,
		StartEpoch: 29, EndEpoch: 69}
	if d != want {
		t.Fatalf("published %+v, want %+v", d, want)
	}
	events := func(epoch int64) []string {
		result, failure := w.call("GetActorEventsRaw", fmt.Sprintf(`[{"addresses":["f05"],"fromHeight":0,"toHeight":%d}]`, epoch))
		if failure != "" {
			t.Fatal(failure)
		}
		return summary(result)
	}
	state := func() any {
		result, failure := w.call("StateMarketStorageDeal", `[1,null]`)
		if failure != "" {
			return failure
		}
		return at(result, "State", "SectorStartEpoch")
	}
	const gone = "deal 1 not found - deal may not have completed sealing before deal proposal start epoch, or deal may have been slashed"
	for _, step := range []struct {
		epoch  int64
		events []string
		state  any
	}{
		{7, []string{}, gone},
		{9, []string{}, gone}, // in the head tipset, not executed yet
		{10, []string{"deal-published@9"}, -1.0},
		{14, []string{"deal-published@9"}, -1.0},
		{15, []string{"deal-published@9", "deal-activated@14"}, 14.0},
		{69, []string{"deal-published@9", "deal-activated@14"}, 14.0},
		{70, []string{"deal-published@9", "deal-activated@14", "deal-completed@69"}, gone},
	} {
		w.to(step.epoch)
		if got := events(step.epoch); cmp.Diff(step.events, got) != "" {
			t.Errorf("at epoch %d events are %v, want %v", step.epoch, got, step.events)
		}
		if got := state(); got != step.state {
			t.Errorf("at epoch %d state is %v, want %v", step.epoch, got, step.state)
		}
	}

	// As of the tipset that ended it the deal is still there.
	result, _ := w.call("ChainGetTipSetAfterHeight", `[69,null]`)
	key, _ := json.Marshal(at(result, "Cids"))
	result, failure := w.call("StateMarketStorageDeal", fmt.Sprintf(`[1,%s]`, key))
	if failure != "" {
		t.Fatal(failure)
	}
	proposal := at(result, "Proposal")
	for path, want := range map[string]any{
		"PieceSize": 33554432.0, "Client": "f01001", "Provider": "f01000", "StartEpoch": 29.0, "EndEpoch": 69.0, "ProviderCollateral": "0",
	} {
		if got := at(proposal, path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	if got := at(proposal, "PieceCID", "/"); got != testPiece(1).V1().String() {
		t.Errorf("PieceCID is %v", got)
	}
	// A deal that has ended may be made again.
	if again := w.publish(1); again.ID != 2 {
		t.Errorf("published %+v", again)
	}
}

func TestDealsThatFail(t *testing.T) {
	w := newWorld(t, nil)
	d, err := w.chain.Publish(t.Context(), Proposal{Piece: testPiece(1), Provider: "f01000", Client: "f01001", NeverActivate: true})
	if err != nil {
		t.Fatal(err)
	}
	lost := w.publish(2)
	if err := w.chain.Terminate(lost.ID); err == nil {
		t.Error("a deal that is not active was terminated")
	}
	w.to(20)
	if err := w.chain.Terminate(lost.ID); err != nil {
		t.Fatal(err)
	}
	if err := w.chain.Terminate(lost.ID); err == nil {
		t.Error("a deal was terminated twice")
	}
	w.to(d.StartEpoch + 1)
	result, _ := w.call("GetActorEventsRaw", `[{"fromHeight":0,"toHeight":100}]`)
	want := []string{"deal-published@2", "deal-published@2", "deal-activated@7", "deal-terminated@21"}
	if got := summary(result); cmp.Diff(want, got) != "" {
		t.Errorf("events are %v, want %v", got, want)
	}
	for _, id := range []uint64{d.ID, lost.ID} {
		if _, failure := w.call("StateMarketStorageDeal", fmt.Sprintf("[%d,[]]", id)); !strings.Contains(failure, "not found") {
			t.Errorf("deal %d: %q", id, failure)
		}
	}
}

func TestPublishTwice(t *testing.T) {
	w := newWorld(t, nil)
	first := w.publish(1)
	w.to(30)
	if again := w.publish(1); again != first {
		t.Errorf("published %+v, then %+v", first, again)
	}
	if other := w.publish(2); other.ID == first.ID {
		t.Error("another piece has the same deal")
	}
	elsewhere, err := w.chain.Publish(t.Context(), Proposal{Piece: testPiece(1), Provider: "f01002", Client: "f01001"})
	if err != nil || elsewhere.ID == first.ID {
		t.Errorf("another provider has the deal %+v, %v", elsewhere, err)
	}
	for name, p := range map[string]Proposal{
		"no piece":    {Provider: "f01000", Client: "f01001"},
		"no provider": {Piece: testPiece(1), Client: "f01001"},
		"no client":   {Piece: testPiece(1), Provider: "f01000", Client: "f1abc"},
	} {
		if d, err := w.chain.Publish(t.Context(), p); err == nil {
			t.Errorf("%s: published %+v", name, d)
		}
	}
	if n := len(w.chain.Deals()); n != 3 {
		t.Errorf("%d deals, want 3", n)
	}
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "chain.json")
	w := newWorld(t, func(c *ChainConfig) { c.Path = path })
	w.to(5)
	d := w.publish(1)
	w.to(8)
	if err := w.chain.Reorg(2, false); err != nil {
		t.Fatal(err)
	}
	before, _ := w.call("ChainHead", `[]`)
	deals := w.chain.Deals()

	cfg := w.chain.cfg
	reopened, err := OpenChain(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.chain = reopened
	server := httptest.NewServer(reopened.Handler())
	defer server.Close()
	w.url = server.URL
	if after, _ := w.call("ChainHead", `[]`); cmp.Diff(before, after) != "" {
		t.Errorf("head differs: %s", cmp.Diff(before, after))
	}
	if diff := cmp.Diff(deals, reopened.Deals(), cmp.Comparer(func(a, b piece.Link) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if again := w.publish(1); again.ID != d.ID {
		t.Errorf("published %+v again as %+v", d, again)
	}
	if next := w.publish(2); next.ID != d.ID+1 {
		t.Errorf("the next deal is %d", next.ID)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("directory holds %v, %v", left, err)
	}

	other := cfg
	other.Genesis = cfg.Now().Unix() - 1000
	if _, err := OpenChain(other); err == nil {
		t.Error("a chain was opened with another genesis")
	}
	other.Genesis = reopened.Genesis().Unix()
	if _, err := OpenChain(other); err != nil {
		t.Error(err)
	}
	other = ChainConfig{Genesis: cfg.Now().Unix() - 3000, Epoch: cfg.Epoch, Now: cfg.Now}
	if old, err := OpenChain(other); err != nil || old.Genesis().Unix() != other.Genesis || old.Epoch() < int64(3000*time.Second/cfg.Epoch) {
		t.Errorf("a chain that began 3000 s ago: %+v, %v", old, err)
	}
	cfg.Epoch *= 2
	if _, err := OpenChain(cfg); err == nil {
		t.Error("a chain was opened with epochs of another length")
	}
	for name, content := range map[string]string{"garbage": "{", "empty": "{}"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenChain(cfg); err == nil {
			t.Errorf("%s was opened as a chain", name)
		}
	}
}

// TestNotDurable: what could not be written did not happen.
func TestNotDurable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *ChainConfig) { c.Path = filepath.Join(dir, "chain.json") })
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if d, err := w.chain.Publish(t.Context(), Proposal{Piece: testPiece(1), Provider: "f01", Client: "f02"}); err == nil {
		t.Errorf("published %+v", d)
	}
	if deals := w.chain.Deals(); len(deals) != 0 {
		t.Errorf("deals are %v", deals)
	}
}

// walk follows the parents from the head to the genesis and returns the first CID of each tipset by epoch.
func (w *world) walk() []string {
	w.t.Helper()
	var cids []string
	for epoch := range w.chain.Epoch() + 1 {
		result, failure := w.call("ChainGetTipSetAfterHeight", fmt.Sprintf("[%d,[]]", epoch))
		if failure != "" || at(result, "Height") != float64(epoch) {
			w.t.Fatalf("tipset at %d: %v %s", epoch, result, failure)
		}
		parent := at(result, "Blocks", 0, "Parents", 0, "/")
		if epoch == 0 && parent != nil || epoch > 0 && parent != cids[epoch-1] {
			w.t.Fatalf("tipset at %d stands on %v, not on the one before it", epoch, parent)
		}
		cids = append(cids, at(result, "Cids", 0, "/").(string))
	}
	return cids
}

func TestReorg(t *testing.T) {
	for _, test := range []struct {
		name         string
		depth        int64
		drop, listed bool
		want         []string // in the end
	}{
		{"activation moves", 3, false, false, []string{"deal-published@2", "deal-activated@11"}},
		{"both move", 9, false, false, []string{"deal-published@11", "deal-activated@17"}},
		{"both move, listed", 9, false, true,
			[]string{"deal-published@11", "deal-activated@17", "!deal-published@2", "!deal-activated@8"}},
		{"activation is lost", 3, true, false, []string{"deal-published@2"}},
		{"both are lost, listed", 9, true, true, []string{"!deal-published@2", "!deal-activated@8"}},
		{"nothing was there", 1, true, true, []string{"deal-published@2", "deal-activated@8"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, func(c *ChainConfig) { c.ActivateDelay = 6; c.ShowReverted = test.listed })
			w.publish(1)
			w.to(10)
			before := w.walk()
			if err := w.chain.Reorg(test.depth, test.drop); err != nil {
				t.Fatal(err)
			}
			after := w.walk()
			for epoch := range before {
				if replaced := before[epoch] != after[epoch]; replaced != (int64(epoch) > 10-test.depth) {
					t.Errorf("tipset at %d replaced: %t", epoch, replaced)
				}
			}
			w.to(20)
			result, failure := w.call("GetActorEventsRaw", `[{"fromHeight":0,"toHeight":20}]`)
			if failure != "" {
				t.Fatal(failure)
			}
			if got := summary(result); cmp.Diff(test.want, got) != "" {
				t.Errorf("events are %v, want %v", got, test.want)
			}
			// The index agrees with the receipts, tipset by tipset, and knows the abandoned ones as well.
			for epoch, cid := range after[:10] {
				events, _ := w.call("GetActorEventsRaw", fmt.Sprintf(`[{"tipsetKey":[{"/":%q}]}]`, cid))
				receipts, failure := w.call("ChainGetParentReceipts", fmt.Sprintf(`[{"/":%q}]`, after[epoch+1]))
				if failure != "" || len(summary(events)) != len(receipts.([]any)) {
					t.Errorf("tipset at %d has events %v and receipts %v %s", epoch, summary(events), receipts, failure)
				}
			}
			abandoned, _ := w.call("GetActorEventsRaw", fmt.Sprintf(`[{"tipsetKey":[{"/":%q}]}]`, before[2]))
			if got, wasReverted := summary(abandoned), before[2] != after[2]; len(got) != 1 || strings.HasPrefix(got[0], "!") != wasReverted {
				t.Errorf("events of the tipset of the publication are %v", got)
			}
		})
	}
	w := newWorld(t, nil)
	w.to(30)
	for _, depth := range []int64{-1, 0, 11, 31} {
		if err := w.chain.Reorg(depth, false); err == nil {
			t.Errorf("reorganised %d epochs", depth)
		}
	}
}

func TestNodeFaults(t *testing.T) {
	w := newWorld(t, nil)
	w.publish(1)
	w.to(20)
	const head = `{"jsonrpc":"2.0","id":1,"method":"Filecoin.ChainHead","params":[]}`

	w.chain.FailNext(1, Failure{Status: 429, RetryAfter: 3 * time.Second})
	w.chain.FailNext(1, Failure{Status: 200, Body: "<html>"})
	resp, err := http.Post(w.url+"/rpc/v1", "application/json", strings.NewReader(head))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "3" {
		t.Errorf("HTTP %d, Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
	if status, body := w.post("v2", head); status != 200 || body != "<html>" {
		t.Errorf("HTTP %d %s", status, body)
	}

	w.chain.SetLag(15)
	if result, _ := w.call("ChainHead", `[]`); at(result, "Height") != 5.0 {
		t.Errorf("a node that lags by 15 of 20 epochs is at %v", at(result, "Height"))
	}
	if result, _ := w.call("GetActorEventsRaw", `[{"fromHeight":0,"toHeight":20}]`); len(summary(result)) != 1 {
		t.Errorf("it knows of %v", summary(result))
	}
	w.chain.SetLag(0)

	w.chain.ForgetBefore(3)
	if result, _ := w.call("GetActorEventsRaw", `[{"fromHeight":0,"toHeight":20}]`); cmp.Diff([]string{"deal-activated@7"}, summary(result)) != "" {
		t.Errorf("a node with an index from epoch 3 knows of %v", summary(result))
	}
	w.chain.ForgetBefore(0)
}

func TestFinality(t *testing.T) {
	w := newWorld(t, nil)
	for _, epoch := range []int64{0, 9, 10, 25} {
		w.to(epoch)
		want := float64(max(0, epoch-10))
		v1, _ := w.call("ChainGetFinalizedTipSet", `[]`)
		v2, _ := w.call("ChainGetTipSet", `[{"tag":"finalized"}]`)
		if at(v1, "Height") != want || at(v2, "Height") != want {
			t.Errorf("at epoch %d final are %v and %v, want %v", epoch, at(v1, "Height"), at(v2, "Height"), want)
		}
	}
	if latest, _ := w.call("ChainGetTipSet", `[{"tag":"latest"}]`); at(latest, "Height") != 25.0 {
		t.Errorf("latest is %v", at(latest, "Height"))
	}
	if got, want := at(must(w.call("ChainHead", `[]`)), "Blocks", 0, "Timestamp"), float64(w.chain.Genesis().Unix()+5); got != want {
		t.Errorf("25 epochs of 200 ms after %v it is %v", w.chain.Genesis().Unix(), got)
	}
}

func must(v any, failure string) any {
	if failure != "" {
		panic(failure)
	}
	return v
}

func TestQueries(t *testing.T) {
	w := newWorld(t, nil)
	w.publish(1)
	w.to(4000)
	for _, test := range []struct {
		method, params string
		want           int    // events
		failure        string // or this
	}{
		{"GetActorEventsRaw", `[{"fromHeight":0,"toHeight":2880}]`, 3, ""},
		{"GetActorEventsRaw", `[{"fromHeight":0,"toHeight":2881}]`, 0, "too large (maximum: 2880)"},
		{"GetActorEventsRaw", `[{"fromHeight":2,"toHeight":1}]`, 0, "must be after"},
		{"GetActorEventsRaw", `[{"fromHeight":-1,"toHeight":1}]`, 0, "greater than or equal to 0"},
		{"GetActorEventsRaw", `[{}]`, 0, ""},
		{"GetActorEventsRaw", `[]`, 0, ""},
		{"GetActorEventsRaw", `[{"addresses":["f06"],"fromHeight":0,"toHeight":100}]`, 0, ""},
		{"GetActorEventsRaw", `[{"addresses":["f06","t05"],"fromHeight":0,"toHeight":100}]`, 3, ""},
		{"GetActorEventsRaw", `[{"fromHeight":0,"toHeight":100,"fields":{"$type":[{"codec":81,"value":"bmRlYWwtcHVibGlzaGVk"}]}}]`, 1, ""},
		{"GetActorEventsRaw", `[{"fromHeight":0,"toHeight":100,"fields":{"$type":[{"codec":85,"value":"bmRlYWwtcHVibGlzaGVk"}]}}]`, 0, ""},
		{"GetActorEventsRaw", `[{"fromHeight":0,"toHeight":100,"fields":{"client":[{"codec":81,"value":"GQPp"}]}}]`, 3, ""}, // 1001
		{"GetActorEventsRaw", `[{"fromHeight":0,"toHeight":100,"fields":{"client":[{"codec":81,"value":"GQPo"}]}}]`, 0, ""}, // 1000
		{"GetActorEventsRaw", `[{"fromHeight":0,"toHeight":100,"fields":{"client":[]}}]`, 3, ""},
		{"GetActorEventsRaw", `[{"fromHeight":0,"tipsetKey":[{"/":"bafy"}]}]`, 0, "cannot specify both"},
		{"GetActorEventsRaw", `[{"tipsetKey":[{"/":"bafy"}]}]`, 0, "unmarshaling CID"},
		{"GetActorEventsRaw", `[{"tipsetKey":[{"/":"bafkqaaa"}]}]`, 0, "not found"},
		{"GetActorEventsRaw", `[7]`, 0, "unmarshaling params"},
		{"ChainGetTipSetAfterHeight", `[4001,null]`, 0, "greater than start point"},
		{"ChainGetTipSetAfterHeight", `["x"]`, 0, "unmarshaling params"},
		{"ChainGetParentReceipts", `[{"/":"bafkqaaa"}]`, 0, "not found"},
		{"ChainGetTipSet", `[{"tag":"newest"}]`, 0, "invalid tag"},
		{"StateMarketStorageDeal", `[-1,null]`, 0, "unmarshaling params"},
		{"StateMarketStorageDeal", `[1,[{"/":"bafkqaaa"}]]`, 0, "not found"},
		{"StateLookupID", `["f1abc"]`, 0, "actor not found"},
	} {
		result, failure := w.call(test.method, test.params)
		if test.failure == "" && failure != "" || !strings.Contains(failure, test.failure) {
			t.Errorf("%s%s fails with %q, want %q", test.method, test.params, failure, test.failure)
		}
		if test.method == "GetActorEventsRaw" && len(summary(result)) != test.want {
			t.Errorf("%s%s returns %v, want %d", test.method, test.params, summary(result), test.want)
		}
	}
	if id, failure := w.call("StateLookupID", `["f01234",[]]`); id != "f01234" {
		t.Errorf("StateLookupID is %v %s", id, failure)
	}
	if status, body := w.post("v1", `{"jsonrpc":"2.0","id":1,"method":"Filecoin.Version","params":[]}`); status != 500 ||
		!strings.Contains(body, "-32601") {
		t.Errorf("HTTP %d %s", status, body)
	}
	if status, _ := w.post("v1", `{`); status != 400 {
		t.Errorf("HTTP %d", status)
	}
	if status, _ := w.post("v1", strings.Repeat(" ", maxCall+1)); status != 413 {
		t.Errorf("HTTP %d", status)
	}
	if status, _ := w.post("v0", `{}`); status != 404 {
		t.Errorf("HTTP %d", status)
	}
}

func TestChainConfig(t *testing.T) {
	for name, cfg := range map[string]ChainConfig{
		"odd epoch":       {Epoch: time.Microsecond},
		"negative delay":  {PublishDelay: -1},
		"negative length": {Lifetime: -1},
		"begins later":    {Genesis: time.Now().Add(time.Hour).Unix()},
		"unreachable":     {Path: filepath.Join(t.TempDir(), "no", "such", "folder")},
	} {
		if _, err := OpenChain(cfg); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	c, err := OpenChain(ChainConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if c.EpochDuration() != 30*time.Second || c.Finality() != 900 {
		t.Errorf("epochs of %s, finality %d", c.EpochDuration(), c.Finality())
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(`{"jsonrpc":"2.0","id":1,"method":"Filecoin.ChainHead","params":[]}`)
	f.Add(`{"id":1,"method":"Filecoin.GetActorEventsRaw","params":[{"fromHeight":0,"toHeight":9,"tipsetKey":[]}]}`)
	f.Add(`{"id":1,"method":"Filecoin.StateMarketStorageDeal","params":[1,[{"/":"bafkqaaa"}]]}`)
	f.Add(`{"id":1,"method":"Filecoin.ChainGetParentReceipts","params":[{"/":"bafkqaaa"}]}`)
	clock := storetest.NewClock()
	c, err := OpenChain(ChainConfig{Epoch: testEpoch, Now: clock.Now})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := c.Publish(f.Context(), Proposal{Piece: testPiece(1), Provider: "f01000", Client: "f01001"}); err != nil {
		f.Fatal(err)
	}
	clock.Advance(20 * testEpoch)
	f.Fuzz(func(t *testing.T, body string) {
		for _, methods := range []map[string]method{methodsV1, methodsV2} {
			status, answer := c.answer([]byte(body), methods)
			if _, err := json.Marshal(answer); err != nil || status < 200 {
				t.Errorf("%q is answered with HTTP %d %v: %v", body, status, answer, err)
			}
		}
	})
}
