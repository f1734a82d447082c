package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/storacha/w3filecoin/piece"
)

// TestResolverFiles: what a storage provider downloads from a network in one process, piece by piece and as one file,
// is what was offered and what was dealt.
func TestResolverFiles(t *testing.T) {
	aside(t)
	r := rand.New(rand.NewPCG(seed(t), 0))
	n := newTogether(t)
	var contents []content
	var first *offering
	for range 3 {
		c := newContent(t, r, 0)
		o, err := n.offer(t.Context(), n.front, c)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = o
		}
		contents = append(contents, c)
	}
	n.settle(t, r, patience)
	st, err := first.standing(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range contents {
		if got := download(t, n.front.url+"/piece/"+c.piece.String(), ""); !bytes.Equal(got, c.bytes) {
			t.Errorf("piece %s: %d bytes came, not its %d", c.piece, len(got), len(c.bytes))
		}
	}
	whole := download(t, n.front.url+"/aggregate/"+st.Aggregate, "")
	if sum, err := piece.Sum(whole); err != nil || sum.String() != st.Aggregate {
		t.Errorf("the file of aggregate %s, %d bytes, is %s, %v", st.Aggregate, len(whole), sum, err)
	}
	if !bytes.Contains(whole, contents[0].bytes) {
		t.Error("the content is not in the aggregate")
	}
	n.stop()
}

// TestSources: content that was never stored here is copied into custody from a source, validated there and dealt; what a
// source has under a wrong name is not, and the piece says why it waits.
func TestSources(t *testing.T) {
	aside(t)
	r := rand.New(rand.NewPCG(seed(t), 0))
	good, bad := newContent(t, r, 0), newContent(t, r, 5000)
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch strings.TrimPrefix(r.URL.Path, "/ipfs/") {
		case good.cid.String():
			w.Write(good.bytes)
		case bad.cid.String():
			w.Write(make([]byte, 5000))
		default:
			http.NotFound(w, r)
		}
	}))
	defer gateway.Close()
	n := newTogether(t, fmt.Sprintf("sources = [%q]\nallow_hosts = [%q]", gateway.URL+"/ipfs/{raw}", strings.TrimPrefix(gateway.URL, "http://")))
	if _, err := n.invoke(t.Context(), n.front, good); err != nil {
		t.Fatal(err)
	}
	n.settle(t, r, patience)
	if got := download(t, n.front.url+"/piece/"+good.piece.String(), ""); !bytes.Equal(got, good.bytes) {
		t.Errorf("%d bytes came, not its %d", len(got), len(good.bytes))
	}
	o, err := n.invoke(t.Context(), n.front, bad)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the reason is shown", func(ctx context.Context) error {
		st, err := o.standing(ctx)
		if err != nil {
			return err
		}
		if st.State != "submitted" || !strings.Contains(st.Reason, "other bytes under this name") {
			return fmt.Errorf("it is %s, because: %s", st.State, st.Reason)
		}
		return nil
	})
	n.stop()
}
