package roles

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multibase"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/wire"
)

// knownClaims are claims about one multihash.
type knownClaims struct {
	about multihash.Multihash
	list  []capabilities.Task
	err   error
}

func (k *knownClaims) Of(_ context.Context, hash multihash.Multihash) ([]capabilities.Task, error) {
	if !bytes.Equal(hash, k.about) {
		return nil, k.err
	}
	return k.list, k.err
}

func (k *knownClaims) Get(_ context.Context, claim cid.Cid) (capabilities.Task, error) {
	for _, t := range k.list {
		if t.Link().Equals(claim) {
			return t, k.err
		}
	}
	return capabilities.Task{}, errors.Join(k.err, store.ErrNotFound)
}

func TestClaimRoutes(t *testing.T) {
	signer := func(b byte) capabilities.Signer {
		s, err := wire.SignerOfSeed(bytes.Repeat([]byte{b}, 32))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	space, agent := signer(1), signer(2)
	hash, err := multihash.Sum([]byte("content"), multihash.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	content := cid.NewCidV1(cid.Raw, hash)
	until := time.Unix(1_785_578_400, 0)
	proof, err := capabilities.Delegate(space, agent.DID(), []capabilities.Grant{{Can: "assert/*", With: space.DID().String()}}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	var list []capabilities.Task
	for _, at := range []string{"https://a.example", "https://b.example"} {
		claim, err := capabilities.Invoke(agent, space.DID(), space.DID().String(),
			&assert.Location{Content: assert.Content{Link: content}, Location: []string{at}},
			capabilities.Terms{Expiration: until, Proofs: []capabilities.Delegation{proof}})
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, claim)
	}
	known := &knownClaims{about: hash, list: list}
	mux := http.NewServeMux()
	for pattern, h := range ClaimRoutes(known, slog.New(slog.DiscardHandler)) {
		mux.Handle(pattern, h)
	}
	server := httptest.NewServer(mux)
	defer server.Close()
	get := func(path, accept string) (int, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", accept)
		resp, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, b
	}
	base58, err := multibase.Encode(multibase.Base58BTC, hash)
	if err != nil {
		t.Fatal(err)
	}
	base32, err := multibase.Encode(multibase.Base32, hash)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{base58, base32, content.String(), cid.NewCidV1(0x0202, hash).String(), cid.NewCidV0(hash).String()} {
		code, body := get("/claims/"+name, "")
		roots, blocks, err := wire.ReadCAR(body, wire.Limits{})
		if code != http.StatusOK || err != nil || len(roots) != 2 || len(blocks) != 3 {
			t.Fatalf("%s: status %d, %d roots and %d blocks, %v", name, code, len(roots), len(blocks), err)
		}
		for i, root := range roots {
			if !root.Equals(list[i].Link()) {
				t.Errorf("%s: claim %d is %s, want %s", name, i, root, list[i].Link())
			}
		}
	}
	_, body := get("/claims/"+content.String(), "application/json")
	var told struct{ Claims []map[string]any }
	if err := json.Unmarshal(body, &told); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"claim": list[0].Link().String(), "ability": "assert/location", "issuer": agent.DID().String(), "audience": space.DID().String(),
		"with": space.DID().String(), "expiration": "2026-08-01T10:00:00Z",
		"caveats": map[string]any{"content": map[string]any{"/": content.String()}, "location": []any{"https://a.example"}},
	}
	if len(told.Claims) != 2 {
		t.Fatalf("%d claims", len(told.Claims))
	}
	if diff := cmp.Diff(want, told.Claims[0]); diff != "" {
		t.Errorf("JSON (-want +got): %s", diff)
	}

	code, body := get("/claim/"+list[1].Link().String(), "*/*")
	if roots, blocks, err := wire.ReadCAR(body, wire.Limits{}); code != http.StatusOK || err != nil || len(roots) != 1 || len(blocks) != 2 {
		t.Errorf("one claim: status %d, %d roots and %d blocks, %v", code, len(roots), len(blocks), err)
	}
	code, body = get("/claim/"+list[0].Link().String(), "application/json")
	var one map[string]any
	if err := json.Unmarshal(body, &one); err != nil || code != http.StatusOK {
		t.Fatalf("status %d, %v", code, err)
	}
	if diff := cmp.Diff(want, one); diff != "" {
		t.Errorf("JSON of one (-want +got): %s", diff)
	}

	unknown := wire.EncodeBlock([]byte{0xa0}).CID.String()
	if code, body := get("/claims/"+unknown, "application/json"); code != http.StatusOK || strings.Contains(string(body), "null") {
		t.Errorf("no claims: status %d, %s", code, body)
	}
	for path, want := range map[string]int{
		"/claim/" + unknown: 404, "/claim/x": 400, "/claims/x": 400, "/claims/z": 400, "/claims/" + strings.Repeat("z", 300): 400,
	} {
		if code, _ := get(path, ""); code != want {
			t.Errorf("%s: status %d, want %d", path, code, want)
		}
	}
	known.err = errors.New("a secret of ours")
	for _, path := range []string{"/claims/" + content.String(), "/claim/" + list[0].Link().String()} {
		if code, body := get(path, "application/json"); code != http.StatusServiceUnavailable || strings.Contains(string(body), "secret") {
			t.Errorf("%s of a store at fault: status %d, %s", path, code, body)
		}
	}
}
