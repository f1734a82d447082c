package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/roles/client"
)

// TestUploadLimits: a process keeps the limits of uploads that it is configured with, across its restart. What they refuse is not stored, what is stored costs
// nothing, and offers are not counted with it.
func TestUploadLimits(t *testing.T) {
	aside(t)
	const limit = 2
	n := newTogether(t, "[storefront.upload_limits]\nagent_count = 2")
	r := rand.New(rand.NewPCG(seed(t), 0))
	put := func(c content) error {
		_, err := client.PutBlob(t.Context(), client.Upload{
			Conn: n.front.conn, Agent: n.front.agent, Storefront: n.front.storefront, Keys: n.front.keys, Space: n.front.with, HTTP: n.front.http, Patience: patience,
			Terms: capabilities.Terms{Nonce: fmt.Sprint(r.Uint64())},
		}, blob.Blob{Digest: blob.Digest(c.cid.Hash()), Size: uint64(len(c.bytes))}, func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(c.bytes)), nil
		})
		return err
	}
	var stored []content
	var refused *capabilities.Failure
	// A day may end meanwhile, one at most.
	for len(stored) <= 2*limit {
		c := newContent(t, r, 5000)
		err := put(c)
		if errors.As(err, &refused) {
			if held, err := n.front.holds(t.Context(), c.cid); held || err != nil {
				t.Errorf("what was refused is there: %t, %v", held, err)
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, c)
		n.stop()
		n.start()
		n.ready()
	}
	if refused == nil || refused.Name != capabilities.QuotaExceeded || len(stored) < limit {
		t.Fatalf("%d were stored, then: %v", len(stored), refused)
	}
	for _, c := range stored {
		if err := put(c); err != nil {
			t.Errorf("what is stored costs something: %v", err)
		}
		if _, err := n.invoke(t.Context(), n.front, c); err != nil {
			t.Errorf("an offer: %v", err)
		}
	}
	n.stop()
}
