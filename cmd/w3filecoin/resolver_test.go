package main

import (
	"bytes"
	"math/rand/v2"
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
