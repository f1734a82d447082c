package broker_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/broker"
	"github.com/storacha/w3filecoin/dealer"
	"github.com/storacha/w3filecoin/devnet"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/store/memory"
)

// TestProviderReadsIt: a provider finds the documents over HTTP, wherever they are mounted, and deals what they name.
func TestProviderReadsIt(t *testing.T) {
	now := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	market, err := devnet.OpenChain(devnet.ChainConfig{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	documents, err := broker.OpenDocuments(broker.DocumentsConfig{Store: memory.New(memory.Options{Now: time.Now, IndexLag: -1}), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	content := map[string][]byte{}
	mux := http.NewServeMux()
	mux.Handle("/spade/", http.StripPrefix("/spade", documents.Handler()))
	mux.HandleFunc("GET /piece/{piece}", func(w http.ResponseWriter, r *http.Request) { w.Write(content[r.PathValue("piece")]) })
	server := httptest.NewServer(mux)
	defer server.Close()
	provider, err := devnet.OpenProvider(devnet.ProviderConfig{
		Address: "f01000", Client: "f01001", Offers: server.URL + "/spade", Pieces: []string{server.URL + "/piece/{piece}"}, Market: market, Log: log,
		Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	offer := func(n int, at time.Time) piece.Link {
		t.Helper()
		payload := fmt.Appendf(nil, "payload %d", n)
		p, err := piece.Sum(payload)
		if err != nil {
			t.Fatal(err)
		}
		content[p.String()] = payload
		a, err := segment.Build(4096, []piece.Link{p})
		if err != nil {
			t.Fatal(err)
		}
		o := dealer.Offer{Aggregate: a.Link(), Pieces: []piece.Link{p}, Collection: "did:key:z6Mk", OfferedAt: at}
		if _, err := documents.Publish(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		return a.Link()
	}
	step := func(want int) {
		t.Helper()
		if got, err := provider.Step(t.Context()); got != want || err != nil {
			t.Fatalf("step ended %d offers, %v, want %d; refused %v, waiting %v", got, err, want, provider.Refusals(), provider.Waiting())
		}
	}
	var offered []piece.Link
	for n := range 120 { // more than a page
		offered = append(offered, offer(n, now.Add(-time.Duration(n)*time.Minute)))
	}
	step(120)
	offered = append(offered, offer(200, now.Add(-30*time.Hour))) // published late
	step(1)
	step(0)
	for _, a := range offered {
		if _, ok, err := market.Find(t.Context(), "f01000", a); !ok || err != nil {
			t.Errorf("no deal for %s: %v, refused %v", a, err, provider.Refusals())
		}
	}
	if n := len(market.Deals()); n != len(offered) {
		t.Errorf("%d deals for %d offers", n, len(offered))
	}
}
