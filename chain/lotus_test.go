package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/storacha/w3filecoin/dealtracker"
	"github.com/storacha/w3filecoin/piece"
)

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var exact = cmp.Options{cmp.Comparer(func(a, b piece.Link) bool { return a == b }), cmpopts.EquateEmpty()}

func TestDocumentedShapes(t *testing.T) {
	t.Run("tipset", func(t *testing.T) {
		var got tipset
		if err := decodeAnswer("ChainHead", http.StatusOK, readFile(t, "chain_head.json"), &got); err != nil {
			t.Fatal(err)
		}
		if err := got.check(); err != nil {
			t.Fatal(err)
		}
		if got.Height != 4863283 || len(got.Cids) != 2 || len(got.Blocks[1].Parents) != 2 {
			t.Errorf("decoded %+v", got)
		}
	})
	t.Run("event", func(t *testing.T) {
		got, err := decodeEvent(readFile(t, "event.json"))
		if err != nil {
			t.Fatal(err)
		}
		want := marketEvent{
			id:   "bafy2bzacedx244lybkiwuhzpz557crbi5xnqsimaew5jjzt2zanihv5quxskm/deal-published/85422958",
			kind: dealtracker.Published, deal: 85422958, client: "f035150", provider: "f01938287", epoch: 4863280,
			tipset: []cidLink{
				{"bafy2bzacea3wsdh6y3a36tb3skempjoxqpuyompjbmfeyf34fi3uy6uue42v4"},
				{"bafy2bzacebp3shtrn43k7g3unredz7fxn4gj533d3o43tqn2p2ipxxhrvchve"},
			},
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(marketEvent{})); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("deal", func(t *testing.T) {
		got, err := decodeDeal(7, readFile(t, "deal.json"))
		if err != nil {
			t.Fatal(err)
		}
		if v1 := got.Piece.V1().String(); v1 != "baga6ea4seaqn3jt6lrunp6ucihyxptqx6aemoxddzsa4eyocmydfpxbrwllqwna" {
			t.Errorf("piece is %s", v1)
		}
		want := dealtracker.Proposal{
			ID: 7, Piece: got.Piece, Provider: "f01206408", Client: "f01860352", StartEpoch: 2123070, EndEpoch: 3649467, Verified: true,
		}
		if diff := cmp.Diff(want, *got, exact); diff != "" {
			t.Error(diff)
		}
		if got.Piece.PaddedSize() != 16<<30 || got.Piece.Padding() != 0 {
			t.Errorf("piece has padded size %d and padding %d", got.Piece.PaddedSize(), got.Piece.Padding())
		}
	})
}

func TestEventsOfADeal(t *testing.T) {
	node := newFakeNode(t)
	node.null[4003], node.null[4004] = true, true
	node.addDeal(41, 100, 200)
	node.addDeal(42, 100, 201)
	node.add("deal-activated", 42, 4010)
	node.add("deal-published", 42, 4001)
	node.add("deal-published", 41, 4010)
	node.add("deal-terminated", 41, 4020)
	node.add("sector-activated", 43, 4002) // of another type, hence not asked for
	source, logged := node.open(nil)

	got, err := source.Events(t.Context(), 4000, 4999)
	if err != nil {
		t.Fatal(err)
	}
	deal := func(id, provider uint64) dealtracker.Proposal {
		return dealtracker.Proposal{
			ID: id, Piece: fakePiece(id), Provider: fmt.Sprintf("f0%d", provider), Client: "f0100", StartEpoch: 9000, EndEpoch: 600000,
			Verified: true,
		}
	}
	at := func(i int) string { return node.events[i].id() }
	want := []dealtracker.Event{
		{ID: at(1), Kind: dealtracker.Published, Epoch: 4001, Deal: deal(42, 201)},
		{ID: at(2), Kind: dealtracker.Published, Epoch: 4010, Deal: deal(41, 200)},
		{ID: at(0), Kind: dealtracker.Activated, Epoch: 4010, Deal: deal(42, 201)},
		{ID: at(3), Kind: dealtracker.Terminated, Epoch: 4020, Deal: deal(41, 200)},
	}
	if diff := cmp.Diff(want, got, exact); diff != "" {
		t.Error(diff)
	}
	if n := node.calls["StateMarketStorageDeal"]; n != 2 {
		t.Errorf("looked up deals %d times, want each of 2 once", n)
	}
	if logged.String() != "" {
		t.Errorf("logged %s", logged)
	}
	again, err := source.Events(t.Context(), 4000, 4999)
	if err != nil || cmp.Diff(got, again, exact) != "" {
		t.Errorf("second reading differs: %v %v", again, err)
	}
	if source.Name() == "lotus " || !strings.HasPrefix(source.Name(), "lotus 127.0.0.1:") {
		t.Errorf("name is %q", source.Name())
	}
}

func TestLongRangesAreSplit(t *testing.T) {
	node := newFakeNode(t)
	node.head = 10000
	for i, epoch := range []int64{0, 2879, 2880, 5759, 5760, 9999} {
		node.addDeal(uint64(i), 100, 200)
		node.add("deal-published", uint64(i), epoch)
	}
	source, _ := node.open(nil)
	got, err := source.Events(t.Context(), -900, 9999)
	if err != nil {
		t.Fatal(err)
	}
	var epochs []int64
	for _, e := range got {
		epochs = append(epochs, e.Epoch)
	}
	if diff := cmp.Diff([]int64{0, 2879, 2880, 5759, 5760, 9999}, epochs); diff != "" {
		t.Error(diff)
	}
}

// TestTruncatedAnswers: a node that returns at most 4 events drops the oldest without a word.
func TestTruncatedAnswers(t *testing.T) {
	node := newFakeNode(t)
	node.maxResults = 4
	for i := range uint64(23) {
		node.addDeal(i, 100, 200)
		node.add("deal-published", i, 4000+int64(i*i))
	}
	source, _ := node.open(func(c *Config) { c.MaxResults = 4 })
	got, err := source.Events(t.Context(), 4000, 4999)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 23 {
		t.Errorf("found %d events of 23", len(got))
	}

	for i := range uint64(4) {
		node.add("deal-activated", i, 4500)
	}
	if _, err := source.Events(t.Context(), 4000, 4999); err == nil {
		t.Error("an epoch with as many events as the node returns must be an error: there may be more")
	}
}

func TestClients(t *testing.T) {
	node := newFakeNode(t)
	node.addresses["f1abcdefghijklmnopqrstuvwxyz234567aaaaaaa"] = "t0101"
	for i := range uint64(4) {
		node.addDeal(i, 100+i, 200)
		node.add("deal-published", i, 4000+int64(i))
		node.events[i].client = 100 + i
	}
	source, _ := node.open(func(c *Config) {
		c.Clients = []string{"t0100", "f1abcdefghijklmnopqrstuvwxyz234567aaaaaaa", "f3neverseenonchain"}
	})
	got, err := source.Events(t.Context(), 3000, 4999)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Deal.Client != "f0100" || got[1].Deal.Client != "f0101" {
		t.Errorf("got %+v", got)
	}

	node.addresses = nil
	source, _ = node.open(func(c *Config) { c.Clients = []string{"f3neverseenonchain"} })
	if got, err := source.Events(t.Context(), 3000, 4999); len(got) > 0 || err != nil {
		t.Errorf("of a client that is not on chain got %v, %v", got, err)
	}
}

func TestVanishedDeals(t *testing.T) {
	node := newFakeNode(t)
	node.addDeal(1, 100, 200)
	node.past[1] = 4100 // gone from the head's state, still there before the tipset that ended it
	node.add("deal-published", 1, 4000)
	node.add("deal-completed", 1, 4100)
	node.add("deal-terminated", 2, 4200) // the node has no state of it at all
	node.add("deal-published", 3, 4300)
	source, logged := node.open(nil)
	got, err := source.Events(t.Context(), 4000, 4999)
	if err != nil {
		t.Fatal(err)
	}
	one := dealtracker.Proposal{ID: 1, Piece: fakePiece(1), Provider: "f0200", Client: "f0100", StartEpoch: 9000, EndEpoch: 600000, Verified: true}
	want := []dealtracker.Event{
		{ID: node.events[0].id(), Kind: dealtracker.Published, Epoch: 4000, Deal: one},
		{ID: node.events[1].id(), Kind: dealtracker.Completed, Epoch: 4100, Deal: one},
		{ID: node.events[2].id(), Kind: dealtracker.Terminated, Epoch: 4200, Deal: dealtracker.Proposal{ID: 2, Provider: "f0200", Client: "f0100"}},
	}
	if diff := cmp.Diff(want, got, exact); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(logged.String(), "deal=3") {
		t.Errorf("skipped deal is not in the log:\n%s", logged)
	}
}

func TestReorganisations(t *testing.T) {
	node := newFakeNode(t)
	node.addDeal(1, 100, 200)
	// Taken back at 4000, included again at 4005; listed in either order.
	node.add("deal-published", 1, 4005)
	node.events = append(node.events, fakeEvent{kind: "deal-published", deal: 1, client: 100, provider: 200, epoch: 4000, reverted: true})
	// Taken back and never seen again.
	node.events = append(node.events, fakeEvent{kind: "deal-activated", deal: 2, client: 100, provider: 200, epoch: 4001, reverted: true})
	source, _ := node.open(nil)
	got, err := source.Events(t.Context(), 4000, 4999)
	if err != nil {
		t.Fatal(err)
	}
	want := []dealtracker.Event{
		{ID: node.events[2].id(), Kind: dealtracker.Activated, Epoch: 4001, Reverted: true,
			Deal: dealtracker.Proposal{ID: 2, Provider: "f0200", Client: "f0100"}},
		{ID: node.events[0].id(), Kind: dealtracker.Published, Epoch: 4005, Deal: dealtracker.Proposal{
			ID: 1, Piece: fakePiece(1), Provider: "f0200", Client: "f0100", StartEpoch: 9000, EndEpoch: 600000, Verified: true}},
	}
	if diff := cmp.Diff(want, got, exact); diff != "" {
		t.Error(diff)
	}
}

// TestIncompleteNodes: whatever part of a range the node lacks, the answer is an error.
func TestIncompleteNodes(t *testing.T) {
	build := func(t *testing.T) *fakeNode {
		node := newFakeNode(t)
		for i := range uint64(100) {
			node.addDeal(i, 100, 200)
			node.add("deal-published", i, 4000+10*int64(i))
		}
		return node
	}
	t.Run("index begins late", func(t *testing.T) {
		node := build(t)
		for i := range 50 {
			node.events[i].hidden = true
		}
		source, _ := node.open(nil)
		if _, err := source.Events(t.Context(), 4001, 4999); !errors.Is(err, ErrHistory) {
			t.Errorf("error is %v, want ErrHistory", err)
		}
		if got, err := source.Events(t.Context(), 4500, 4999); len(got) != 50 || err != nil {
			t.Errorf("of the part that is indexed got %d events, %v", len(got), err)
		}
	})
	t.Run("index begins late, far into a long range", func(t *testing.T) {
		node := build(t)
		node.events[0].hidden = true
		source, _ := node.open(func(c *Config) { c.MaxRange = 400 })
		if _, err := source.Events(t.Context(), 3600, 4999); !errors.Is(err, ErrHistory) {
			t.Errorf("error is %v, want ErrHistory", err)
		}
	})
	t.Run("index lags behind", func(t *testing.T) {
		node := build(t)
		node.events[99].hidden = true
		source, _ := node.open(nil)
		if _, err := source.Events(t.Context(), 4000, 4990); !errors.Is(err, ErrHistory) {
			t.Errorf("error is %v, want ErrHistory", err)
		}
		if got, err := source.Events(t.Context(), 4000, 4989); len(got) != 99 || err != nil {
			t.Errorf("of the part that is indexed got %d events, %v", len(got), err)
		}
	})
	t.Run("beyond the head", func(t *testing.T) {
		node := build(t)
		source, _ := node.open(nil)
		if _, err := source.Events(t.Context(), 4000, 5000); err == nil {
			t.Error("events of the head cannot be known yet")
		}
	})
	t.Run("range is ignored", func(t *testing.T) {
		node := build(t)
		node.events = append(node.events, fakeEvent{raw: (&fakeEvent{kind: "deal-published", deal: 1, epoch: 3}).json(), epoch: 4500})
		source, _ := node.open(nil)
		if _, err := source.Events(t.Context(), 4000, 4999); err == nil || !strings.Contains(err.Error(), "epoch 3") {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("quiet chain", func(t *testing.T) {
		node := newFakeNode(t)
		node.head = 3
		source, _ := node.open(nil)
		if got, err := source.Events(t.Context(), 0, 2); len(got) > 0 || err != nil {
			t.Errorf("got %v, %v", got, err)
		}
		if got, err := source.Events(t.Context(), 3, 2); len(got) > 0 || err != nil {
			t.Errorf("of an empty range got %v, %v", got, err)
		}
	})
	t.Run("reorganised while read", func(t *testing.T) {
		node := build(t)
		calls := 0
		node.intercept = func(method string, w http.ResponseWriter) bool {
			if method != "ChainGetTipSetAfterHeight" {
				return false
			}
			if calls++; calls == 2 {
				fmt.Fprintf(w, `{"id":1,"result":{"Cids":[{"/":%q}],"Blocks":[{"Parents":[{"/":%q}]}],"Height":4001}}`,
					fakeCID("another"), fakeCID("fork"))
				return true
			}
			return false
		}
		source, _ := node.open(nil)
		if _, err := source.Events(t.Context(), 4000, 4999); err == nil || !strings.Contains(err.Error(), "reorganised") {
			t.Errorf("error is %v", err)
		}
	})
}

// TestUnreadable: what cannot be read is skipped and logged, and holds up nobody.
func TestUnreadable(t *testing.T) {
	good := (&fakeEvent{kind: "deal-published", deal: 1, client: 100, provider: 200, epoch: 4000}).json()
	for name, raw := range map[string]string{
		"not an object":    `7`,
		"no entries":       `{"entries":null,"emitter":"f05","height":4000,"msgCid":{"/":"` + fakeCID("m") + `"}}`,
		"other actor":      strings.Replace(good, `"f05"`, `"f06"`, 1),
		"no actor":         strings.Replace(good, `"f05"`, `""`, 1),
		"bad message":      strings.Replace(good, fakeCID("message deal-published 1"), "bafybad", 1),
		"unknown type":     strings.Replace(good, encodeText("deal-published"), encodeText("deal-improved"), 1),
		"type is a number": strings.Replace(good, encodeText("deal-published"), "AQ==", 1),
		"id is text":       strings.Replace(good, `"Value":"AQ=="`, `"Value":"`+encodeText("1")+`"`, 1),
		"id is null":       strings.Replace(good, `"Value":"AQ=="`, `"Value":"9g=="`, 1),
		"id is negative":   strings.Replace(good, `"Value":"AQ=="`, `"Value":"IA=="`, 1),
		"id has a tail":    strings.Replace(good, `"Value":"AQ=="`, `"Value":"AQE="`, 1),
		"id is huge":       strings.Replace(good, `"Value":"AQ=="`, `"Value":"G///////////"`, 1),
		"id is empty":      strings.Replace(good, `"Value":"AQ=="`, `"Value":""`, 1),
		"id is absent":     strings.Replace(good, `"Value":"AQ=="`, `"Value":null`, 1),
		"id twice":         strings.Replace(good, `"Key":"client"`, `"Key":"id"`, 1),
		"other codec":      strings.ReplaceAll(good, `81`, `85`),
		"before genesis":   strings.Replace(good, `"height":4000`, `"height":-1`, 1),
		"height is text":   strings.Replace(good, `"height":4000`, `"height":"4000"`, 1),
	} {
		t.Run("event: "+name, func(t *testing.T) {
			if raw == good {
				t.Fatal("the event is as it was")
			}
			if e, err := decodeEvent([]byte(raw)); err == nil {
				t.Fatalf("decoded %+v", e)
			}
			node := newFakeNode(t)
			node.addDeal(2, 100, 200)
			node.events = []fakeEvent{{raw: raw, epoch: 4000}}
			node.add("deal-published", 2, 4000)
			source, logged := node.open(nil)
			got, err := source.Events(t.Context(), 4000, 4100)
			if err != nil || len(got) != 1 || got[0].Deal.ID != 2 {
				t.Errorf("got %v, %v", got, err)
			}
			if !strings.Contains(logged.String(), "cannot be read") {
				t.Error("the event is not in the log")
			}
		})
	}

	deals := newFakeNode(t)
	deals.addDeal(1, 100, 200)
	whole := deals.deals[1]
	for name, raw := range map[string]string{
		"null":           `null`,
		"list":           `[]`,
		"no piece":       strings.Replace(whole, fakePiece(1).V1().String(), "", 1),
		"not a piece":    strings.Replace(whole, fakePiece(1).V1().String(), fakeCID("x"), 1),
		"piece v2":       strings.Replace(whole, fakePiece(1).V1().String(), fakePiece(1).String(), 1),
		"odd size":       strings.Replace(whole, "34359738368", "34359738369", 1),
		"negative size":  strings.Replace(whole, "34359738368", "-1", 1),
		"size is text":   strings.Replace(whole, "34359738368", `"34359738368"`, 1),
		"no provider":    strings.Replace(whole, `"f0200"`, `""`, 1),
		"odd client":     strings.Replace(whole, `"f0100"`, `"f0x"`, 1),
		"ends too early": strings.Replace(whole, `"EndEpoch":600000`, `"EndEpoch":8999`, 1),
		"epoch is real":  strings.Replace(whole, `"EndEpoch":600000`, `"EndEpoch":1e9.5`, 1),
	} {
		t.Run("deal: "+name, func(t *testing.T) {
			if raw == whole {
				t.Fatal("the deal is as it was")
			}
			node := newFakeNode(t)
			node.deals[1] = raw
			node.addDeal(2, 100, 200)
			node.add("deal-published", 1, 4000)
			node.add("deal-published", 2, 4000)
			source, logged := node.open(nil)
			got, err := source.Events(t.Context(), 4000, 4100)
			if name == "epoch is real" { // breaks the answer as a whole: no JSON at all
				if err == nil {
					t.Errorf("got %v", got)
				}
				return
			}
			if err != nil || len(got) != 1 || got[0].Deal.ID != 2 {
				t.Errorf("got %v, %v", got, err)
			}
			if !strings.Contains(logged.String(), "deal=1") {
				t.Error("the deal is not in the log")
			}
		})
	}

	t.Run("deal: node fails on it", func(t *testing.T) {
		node := newFakeNode(t)
		node.addDeal(2, 100, 200)
		node.dealErrors[1] = "failed to get proposal: cbor input had wrong number of fields"
		node.add("deal-published", 1, 4000)
		node.add("deal-published", 2, 4000)
		source, logged := node.open(nil)
		got, err := source.Events(t.Context(), 4000, 4100)
		if err != nil || len(got) != 1 || got[0].Deal.ID != 2 || !strings.Contains(logged.String(), "deal=1") {
			t.Errorf("got %v, %v, logged %s", got, err, logged)
		}
		// The same error for every deal is the node's own trouble.
		node.dealErrors[unusedDeal] = node.dealErrors[1]
		if got, err := source.Events(t.Context(), 4000, 4100); err == nil {
			t.Errorf("of a node that cannot read its state got %v", got)
		}
	})
}

func TestHead(t *testing.T) {
	node := newFakeNode(t)
	source, _ := node.open(func(c *Config) { c.Network.Finality = 150; c.Token = "secret" })
	check := func(t *testing.T, finalized int64) {
		t.Helper()
		got, err := source.Head(t.Context())
		if want := (dealtracker.Head{Epoch: 4999, Finalized: finalized}); got != want || err != nil {
			t.Errorf("head is %+v, %v, want %+v", got, err, want)
		}
	}
	t.Run("v2", func(t *testing.T) { check(t, 4900) })
	node.absent["v2/ChainGetTipSet"] = true
	t.Run("v1", func(t *testing.T) { check(t, 4900) })
	node.absent["v1/ChainGetFinalizedTipSet"] = true
	t.Run("depth", func(t *testing.T) { check(t, 4850) })
	if !node.tokens["Bearer secret"] || len(node.tokens) != 1 {
		t.Errorf("authorised by %v", node.tokens)
	}

	t.Run("no such path", func(t *testing.T) {
		node.intercept = func(method string, w http.ResponseWriter) bool {
			if method == "ChainHead" {
				return false
			}
			http.NotFound(w, nil)
			return true
		}
		check(t, 4850)
	})
	// A fault is not a lack: it must not change what is final.
	for _, status := range []int{http.StatusTooManyRequests, http.StatusBadGateway, http.StatusInternalServerError} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			node.intercept = func(method string, w http.ResponseWriter) bool {
				if method == "ChainHead" {
					return false
				}
				http.Error(w, "<html>", status)
				return true
			}
			if got, err := source.Head(t.Context()); err == nil {
				t.Errorf("head is %+v", got)
			}
		})
	}
	t.Run("ahead of the head", func(t *testing.T) {
		node.intercept, node.absent, node.finalized = nil, map[string]bool{}, 5000
		check(t, 4999)
	})
}

func TestAnswers(t *testing.T) {
	now := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name   string
		status int
		header http.Header
		body   string
		want   string // in the error; empty for success
		after  time.Duration
	}{
		{name: "result", status: 200, body: `{"jsonrpc":"2.0","id":1,"result":7}`},
		{name: "error with 200", status: 200, body: `{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no luck"}}`, want: "no luck"},
		{name: "error with 500", status: 500, body: `{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"not found"}}`, want: "-32601"},
		{name: "error without id", status: 400, body: `{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"parse"}}`, want: "parse"},
		{name: "page", status: 502, body: `<html>bad gateway</html>`, want: "HTTP 502"},
		{name: "page with 200", status: 200, body: `<html>`, want: "decoding answer"},
		{name: "nothing", status: 200, body: ``, want: "decoding answer"},
		{name: "half", status: 200, body: `{"jsonrpc":"2.0","id":1,"resu`, want: "decoding answer"},
		{name: "result with 500", status: 500, body: `{"jsonrpc":"2.0","id":1,"result":7}`, want: "HTTP 500"},
		{name: "neither", status: 200, body: `{"jsonrpc":"2.0","id":1}`, want: "neither"},
		{name: "other id", status: 200, body: `{"jsonrpc":"2.0","id":2,"result":7}`, want: "another request"},
		{name: "no id", status: 200, body: `{"jsonrpc":"2.0","result":7}`, want: "another request"},
		{name: "other type", status: 200, body: `{"jsonrpc":"2.0","id":1,"result":{}}`, want: "decoding result"},
		{name: "too large", status: 200, body: `{"jsonrpc":"2.0","id":1,"result":` + strings.Repeat(" ", 2000) + `7}`, want: "over 1000 bytes"},
		{name: "429", status: 429, body: `slow down`, want: "busy", after: 5 * time.Second},
		{name: "429 in seconds", status: 429, header: http.Header{"Retry-After": {"30"}}, want: "busy", after: 30 * time.Second},
		{name: "429 by date", status: 429, header: http.Header{"Retry-After": {now.Add(90 * time.Second).Format(http.TimeFormat)}},
			want: "busy", after: 90 * time.Second},
		{name: "429 for ever", status: 429, header: http.Header{"Retry-After": {"2000000000"}}, want: "busy", after: time.Hour},
		{name: "429 in the past", status: 429, header: http.Header{"Retry-After": {now.Add(-time.Hour).Format(http.TimeFormat)}}, want: "busy"},
		{name: "429 nonsense", status: 429, header: http.Header{"Retry-After": {"-3 weeks"}}, want: "busy", after: 5 * time.Second},
		{name: "503", status: 503, header: http.Header{"Retry-After": {"2"}}, want: "busy", after: 2 * time.Second},
		{name: "503 unexplained", status: 503, want: "HTTP 503"},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for key, values := range test.header {
					w.Header()[key] = values
				}
				w.WriteHeader(test.status)
				io.WriteString(w, test.body)
			}))
			defer server.Close()
			client := rpc{
				base: server.URL, http: server.Client(), timeout: 10 * time.Second, limit: 1000, now: func() time.Time { return now },
			}
			var got int
			err := client.call(t.Context(), "v1", "ChainSomething", &got)
			if test.want == "" {
				if err != nil || got != 7 {
					t.Errorf("got %d, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "ChainSomething") {
				t.Errorf("error is %v, want %q", err, test.want)
			}
			busy, ok := errors.AsType[interface {
				error
				RetryAfter() time.Duration
			}](err)
			if ok != (test.want == "busy") || ok && busy.RetryAfter() != test.after {
				t.Errorf("error is %#v, want to be asked to wait for %v", err, test.after)
			}
		})
	}

	t.Run("silence", func(t *testing.T) {
		release := make(chan struct{})
		server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
		defer server.Close()
		defer close(release)
		client := rpc{base: server.URL, http: server.Client(), timeout: 10 * time.Millisecond, limit: 1000, now: time.Now}
		if err := client.call(t.Context(), "v1", "ChainHead", nil); err == nil || !os.IsTimeout(errors.Unwrap(err)) {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		server := httptest.NewServer(http.NotFoundHandler())
		server.Close()
		client := rpc{base: server.URL, http: server.Client(), timeout: 10 * time.Second, limit: 1000, now: time.Now}
		if err := client.call(t.Context(), "v1", "ChainHead", nil); err == nil {
			t.Error("no error")
		}
	})
}

// TestFaultsAnywhere: wherever a call fails, Events fails as a whole, and says why.
func TestFaultsAnywhere(t *testing.T) {
	node := newFakeNode(t)
	node.addDeal(1, 100, 200)
	node.addresses["f3client"] = "f0100"
	node.add("deal-published", 1, 4000)
	source, _ := node.open(func(c *Config) { c.Clients = []string{"f3client"} })
	if got, err := source.Events(t.Context(), 3999, 4100); len(got) != 1 || err != nil {
		t.Fatalf("got %v, %v", got, err)
	}
	total := 0
	for _, n := range node.calls {
		total += n
	}
	for i := range total {
		seen := 0
		node.intercept = func(_ string, w http.ResponseWriter) bool {
			if seen++; seen == i+1 {
				w.Header().Set("Retry-After", "9")
				w.WriteHeader(http.StatusTooManyRequests)
				return true
			}
			return false
		}
		_, err := source.Events(t.Context(), 3999, 4100)
		if busy, ok := errors.AsType[*BusyError](err); !ok || busy.After != 9*time.Second {
			t.Errorf("call %d of %d: error is %v", i+1, total, err)
		}
	}
	node.intercept = nil
	if got, err := source.Events(t.Context(), 3999, 4100); len(got) != 1 || err != nil {
		t.Errorf("afterwards got %v, %v", got, err)
	}
}

func TestEpochTime(t *testing.T) {
	network := func(genesis int64, epoch time.Duration) *Lotus {
		l, err := NewLotus(Config{URL: "https://node.example", Network: Network{Genesis: genesis, Epoch: epoch, Finality: 1}})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	main, err := NewLotus(Config{URL: "https://node.example/rpc/v1", Network: Mainnet()})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		source      *Lotus
		epoch, want int64
	}{
		{main, 0, 1598306400},
		{main, 4863283, 1744204890}, // as the timestamp of that block says
		{main, -1, 1598306370},
		{network(1000, 200*time.Millisecond), 0, 1000},
		{network(1000, 200*time.Millisecond), 4, 1000},
		{network(1000, 200*time.Millisecond), 5, 1001},
		{network(1000, 200*time.Millisecond), -1, 999},
	} {
		if got := test.source.EpochTime(test.epoch); got != test.want {
			t.Errorf("epoch %d of a network from %d by %s is at %d, want %d", test.epoch, test.source.cfg.Network.Genesis,
				test.source.cfg.Network.Epoch, got, test.want)
		}
	}
}

// TestEpochTimeOfNonsense: a deal may name any epoch. Time still goes forward.
func TestEpochTimeOfNonsense(t *testing.T) {
	l, err := NewLotus(Config{URL: "https://node.example", Network: Mainnet()})
	if err != nil {
		t.Fatal(err)
	}
	epochs := []int64{math.MinInt64, -1 << 60, -1, 0, 1, 1 << 40, 1 << 60, math.MaxInt64}
	for i, epoch := range epochs[1:] {
		if before, after := l.EpochTime(epochs[i]), l.EpochTime(epoch); before > after {
			t.Errorf("epoch %d is at %d, epoch %d at %d", epochs[i], before, epoch, after)
		}
	}
}

func TestConfig(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no address":     {Network: Mainnet()},
		"no host":        {URL: "https:///rpc/v1", Network: Mainnet()},
		"websocket":      {URL: "wss://node.example", Network: Mainnet()},
		"query":          {URL: "https://node.example?key=1", Network: Mainnet()},
		"no network":     {URL: "https://node.example"},
		"no epochs":      {URL: "https://node.example", Network: Network{Genesis: 1, Finality: 900}},
		"odd epochs":     {URL: "https://node.example", Network: Network{Genesis: 1, Finality: 900, Epoch: time.Millisecond + 1}},
		"no finality":    {URL: "https://node.example", Network: Network{Genesis: 1, Epoch: time.Second}},
		"client":         {URL: "https://node.example", Network: Mainnet(), Clients: []string{"f01", "0xabc"}},
		"client id":      {URL: "https://node.example", Network: Mainnet(), Clients: []string{"f0abc"}},
		"negative limit": {URL: "https://node.example", Network: Mainnet(), MaxRange: -1},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := NewLotus(cfg); err == nil {
				t.Error("no error")
			}
		})
	}
	for _, url := range []string{"https://node.example/x", "https://node.example/x/", "https://node.example/x/rpc/v1", "https://node.example/x/rpc/v1/"} {
		l, err := NewLotus(Config{URL: url, Network: Calibration()})
		if err != nil || l.rpc.base != "https://node.example/x" || l.Name() != "lotus node.example" {
			t.Errorf("%s: %+v, %v", url, l, err)
		}
	}
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add(readFile(f, "event.json"))
	f.Add([]byte(`{"entries":[{"Key":"id","Codec":81,"Value":"9g=="}],"emitter":"f05"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEvent(b)
		if err != nil {
			return
		}
		if e.epoch < 0 || e.deal > math.MaxInt64 || !strings.Contains(e.id, "/"+string(e.kind)+"/") {
			t.Errorf("decoded %+v", e)
		}
		for _, address := range []string{e.client, e.provider} {
			if _, err := normalise(address); address != "" && err != nil {
				t.Error(err)
			}
		}
		again := inOrder([]marketEvent{e, e})
		if len(again) != 1 {
			t.Errorf("the same event twice is %d events", len(again))
		}
	})
}

func FuzzDecodeDeal(f *testing.F) {
	f.Add(readFile(f, "deal.json"))
	f.Add([]byte(`{"Proposal":{"PieceCID":null}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodeDeal(3, b)
		if err != nil {
			return
		}
		if !p.Piece.Defined() || p.Piece.Padding() != 0 || p.EndEpoch < p.StartEpoch || p.Provider[0] != 'f' || p.Client[0] != 'f' {
			t.Errorf("decoded %+v", p)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Add(200, readFile(f, "chain_head.json"))
	f.Add(500, []byte(`{"id":1,"error":{"code":1,"message":"x"}}`))
	f.Add(200, []byte(`{"id":1,"result":{"Cids":[],"Blocks":[null],"Height":-1}}`))
	f.Fuzz(func(t *testing.T, status int, b []byte) {
		var got tipset
		if err := decodeAnswer("ChainHead", status, b, &got); err == nil {
			if status != http.StatusOK || !json.Valid(b) {
				t.Errorf("HTTP %d %q was taken for an answer", status, b)
			}
			if got.check() == nil && (got.Height < 0 || len(got.Blocks) != len(got.Cids)) {
				t.Errorf("tipset %+v passed the check", got)
			}
		}
	})
}
