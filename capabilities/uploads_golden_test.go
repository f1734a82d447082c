package capabilities_test

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	"github.com/storacha/w3filecoin/capabilities/blob"
	httpcap "github.com/storacha/w3filecoin/capabilities/http"
	"github.com/storacha/w3filecoin/capabilities/space"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/capabilities/upload"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// block is bytes as the JavaScript packages made them.
type block struct{ CID, Hex string }

// uploads is what interop/vectors.mjs writes.
type uploads struct {
	Address struct {
		URL     string
		Headers map[string]string
		Expires uint64
	}
	UCANs    map[string]block `json:"ucans"`
	Receipts map[string]block
}

func testSigner(t testing.TB, b byte) capabilities.Signer {
	t.Helper()
	seed := make([]byte, 32)
	for i := range seed {
		seed[i] = b
	}
	s, err := wire.SignerOfSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestGoldenUploads signs what the JavaScript packages make of uploads and claims again, and gets the same bytes; and what they made is read
// back whole.
func TestGoldenUploads(t *testing.T) {
	b, err := os.ReadFile("testdata/js-uploads.json")
	if err != nil {
		t.Fatal(err)
	}
	var g uploads
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	agent, storefront, owner := testSigner(t, 1), testSigner(t, 2), testSigner(t, 7)
	mh, err := multihash.Sum([]byte("a blob"), multihash.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	bytes := blob.Blob{Digest: blob.Digest(mh), Size: 6}
	content, car := bytes.CID(), cid.NewCidV1(0x0202, mh)
	inSpace := blob.Space{DID: owner.DID()}
	seen := map[string]bool{}
	check := func(name string, u *capabilities.UCAN) {
		t.Helper()
		seen[name] = true
		if got := (block{u.Link().String(), hex.EncodeToString(u.Block().Bytes)}); got != g.UCANs[name] {
			t.Errorf("%s\n got %v\nwant %v", name, got, g.UCANs[name])
		}
	}
	sign := func(name string, issuer, audience, with capabilities.Signer, c, back capabilities.Caveats, terms capabilities.Terms) capabilities.Task {
		t.Helper()
		task, err := capabilities.Invoke(issuer, audience.DID(), with.DID().String(), c, terms)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		check(name, task.UCAN)
		if err := task.Caveats(back); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(capabilities.Encode(c), capabilities.Encode(back)); diff != "" {
			t.Errorf("%s comes back changed: %s", name, diff)
		}
		return task
	}

	proof, err := capabilities.Delegate(owner, agent.DID(), []capabilities.Grant{{Can: "space/blob/*", With: owner.DID().String()}}, capabilities.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	check("delegation of space/blob/*", proof.UCAN)
	add := sign("space/blob/add", agent, storefront, owner, &space.BlobAdd{Blob: bytes}, new(space.BlobAdd),
		capabilities.Terms{Proofs: []capabilities.Delegation{proof}})
	for name, c := range map[string][2]capabilities.Caveats{
		"space/blob/get/0/1": {&space.BlobGet{Digest: bytes.Digest}, new(space.BlobGet)},
		"space/blob/list":    {&space.BlobList{Cursor: "next", Size: 7}, new(space.BlobList)},
		"space/blob/remove":  {&space.BlobRemove{Digest: bytes.Digest}, new(space.BlobRemove)},
		"space/index/add":    {&space.IndexAdd{Index: car}, new(space.IndexAdd)},
		"upload/add":         {&upload.Add{Root: content, Shards: ucan.Links{car}}, new(upload.Add)},
	} {
		sign(name, agent, storefront, owner, c[0], c[1], capabilities.Terms{})
	}

	allocate := sign("blob/allocate", storefront, storefront, storefront, &blob.Allocate{Blob: bytes, Cause: add.Link(), Space: inSpace},
		new(blob.Allocate), capabilities.Terms{})
	provider, err := bytes.Digest.Provider()
	if err != nil {
		t.Fatal(err)
	}
	fact, err := httpcap.KeysFact(provider)
	if err != nil {
		t.Fatal(err)
	}
	put := sign("http/put", provider, provider, provider, &httpcap.Put{
		Body:    bytes,
		URL:     capabilities.Await{Selector: ".out.ok.address.url", Task: allocate.Link()},
		Headers: capabilities.Await{Selector: ".out.ok.address.headers", Task: allocate.Link()},
	}, new(httpcap.Put), capabilities.Terms{Facts: [][]byte{fact}})
	sign("blob/accept", storefront, storefront, storefront,
		&blob.Accept{Blob: bytes, Space: inSpace, Put: capabilities.Await{Selector: ".out.ok", Task: put.Link()}}, new(blob.Accept), capabilities.Terms{})

	for name, ok := range map[string]*blob.AllocateOK{
		"allocated": {Size: 6, Address: &blob.Address{URL: g.Address.URL, Headers: g.Address.Headers, Expires: g.Address.Expires}},
		"there":     {},
	} {
		r, err := capabilities.Issue(storefront, allocate.Link(), ok, capabilities.Effects{})
		if err != nil {
			t.Fatal(err)
		}
		if got := (block{r.Link().String(), hex.EncodeToString(r.Block().Bytes)}); got != g.Receipts[name] {
			t.Errorf("receipt %s\n got %v\nwant %v", name, got, g.Receipts[name])
		}
		var back blob.AllocateOK
		if err := capabilities.ReadResult(r.Out, &back); err != nil {
			t.Error(err)
		} else if diff := cmp.Diff(ok, &back); diff != "" {
			t.Errorf("receipt %s comes back changed: %s", name, diff)
		}
	}
	sign("ucan/conclude", storefront, storefront, storefront, &ucan.Conclude{Receipt: cid.MustParse(g.Receipts["allocated"].CID)}, new(ucan.Conclude),
		capabilities.Terms{Facts: [][]byte{ucan.LinksFact(cid.MustParse(g.Receipts["allocated"].CID), allocate.Link())}})

	at := []string{"http://storefront.test/content/x"}
	for name, c := range map[string][2]capabilities.Caveats{
		"assert/location":            {&assert.Location{Content: assert.Content{Digest: mh}, Location: at, Space: owner.DID().Bytes()}, new(assert.Location)},
		"assert/location of a range": {&assert.Location{Content: assert.Content{Link: content}, Location: at, Range: &assert.Range{Offset: 3, Length: 4}}, new(assert.Location)},
		"assert/equals":              {&assert.Equals{Content: assert.Content{Link: content}, Equals: car}, new(assert.Equals)},
		"assert/inclusion":           {&assert.Inclusion{Content: assert.Content{Link: car}, Includes: content, Proof: car}, new(assert.Inclusion)},
		"assert/index":               {&assert.Index{Content: assert.Content{Link: content}, Index: car}, new(assert.Index)},
	} {
		task, err := capabilities.Invoke(storefront, owner.DID(), storefront.DID().String(), c[0], capabilities.Terms{})
		if err != nil {
			t.Fatal(err)
		}
		check(name, task.UCAN)
		if err := task.Caveats(c[1]); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(capabilities.Encode(c[0]), capabilities.Encode(c[1])); diff != "" {
			t.Errorf("%s comes back changed: %s", name, diff)
		}
	}
	for name := range g.UCANs {
		if !seen[name] {
			t.Errorf("nothing was compared with %q", name)
		}
	}
}

// FuzzUploadCaveats: no caveats of a client end the process, and what is read is written as it was.
func FuzzUploadCaveats(f *testing.F) {
	kinds := []func() capabilities.Caveats{
		func() capabilities.Caveats { return new(space.BlobAdd) }, func() capabilities.Caveats { return new(space.BlobList) },
		func() capabilities.Caveats { return new(blob.Allocate) }, func() capabilities.Caveats { return new(blob.Accept) },
		func() capabilities.Caveats { return new(httpcap.Put) }, func() capabilities.Caveats { return new(upload.Add) },
		func() capabilities.Caveats { return new(assert.Location) }, func() capabilities.Caveats { return new(assert.Inclusion) },
		func() capabilities.Caveats { return new(assert.Index) },
	}
	b, err := os.ReadFile("testdata/js-uploads.json")
	if err != nil {
		f.Fatal(err)
	}
	var g uploads
	if err := json.Unmarshal(b, &g); err != nil {
		f.Fatal(err)
	}
	for _, u := range g.UCANs {
		raw, err := hex.DecodeString(u.Hex)
		if err != nil {
			f.Fatal(err)
		}
		decoded, err := wire.DecodeUCAN(capabilities.Block{CID: cid.MustParse(u.CID), Bytes: raw})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(decoded.Capabilities[0].Nb)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if cbor.Valid(raw) != nil {
			return
		}
		for _, kind := range kinds {
			c := kind()
			if capabilities.Decode(raw, c) != nil {
				continue
			}
			again, written := kind(), capabilities.Encode(c)
			if err := capabilities.Decode(written, again); err != nil {
				t.Fatalf("%s: what was read cannot be read again: %v", c.Ability(), err)
			}
			if diff := cmp.Diff(written, capabilities.Encode(again)); diff != "" {
				t.Errorf("%s changes: %s", c.Ability(), diff)
			}
		}
	})
}
