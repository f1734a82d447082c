package source

import (
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multibase"
	"github.com/multiformats/go-multihash"
)

// contentOf returns the content CID of b.
func contentOf(t testing.TB, codec uint64, b []byte) cid.Cid {
	t.Helper()
	sum := sha256.Sum256(b)
	mh, err := multihash.Encode(sum[:], multihash.SHA2_256)
	if err != nil {
		t.Fatal(err)
	}
	return cid.NewCidV1(codec, mh)
}

// pattern returns the payload of a vector: byte k is k*7 + seed*13.
func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for k := range b {
		b[k] = byte(k*7 + seed*13)
	}
	return b
}

func TestParseContent(t *testing.T) {
	const golden = "bafkreifyvxca2ataososycsc3zx5cclsjq2hs4vhsiig372cpoeqs2po2m"
	raw := contentOf(t, Raw, pattern(500, 0))
	car := contentOf(t, CAR, pattern(500, 0))
	if raw.String() != golden {
		t.Fatalf("content CID of the vector: got %s, want %s", raw, golden)
	}
	base58, err := raw.StringOfBase(multibase.Base58BTC)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := multihash.Encode([]byte("0123456789abcdef0123456789abcdef"), multihash.IDENTITY)
	if err != nil {
		t.Fatal(err)
	}
	short, err := multihash.Encode(make([]byte, 20), multihash.SHA2_256)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, text  string
		want        cid.Cid
		unsupported bool
	}{
		{name: "raw", text: golden, want: raw},
		{name: "CAR", text: car.String(), want: car},
		{name: "base58", text: base58, want: raw},
		{name: "CIDv0", text: cid.NewCidV0(raw.Hash()).String(), unsupported: true},
		{name: "dag-pb", text: cid.NewCidV1(cid.DagProtobuf, raw.Hash()).String(), unsupported: true},
		{name: "identity hash", text: cid.NewCidV1(Raw, identity).String(), unsupported: true},
		{name: "truncated hash", text: cid.NewCidV1(Raw, short).String(), unsupported: true},
		{name: "piece CID v2", text: "bafkzcibcbaclqmjihrn77x7qjo3m5zmdbpfuiqcwbcj76o5aocs6ewukzmzpkpq", unsupported: true},
		{name: "empty"},
		{name: "traversal", text: "../../etc/passwd"},
		{name: "slash inside", text: golden[:20] + "/" + golden[20:]},
		{name: "suffix", text: golden + ".car"},
		{name: "one character short", text: golden[:len(golden)-1]},
		{name: "too long", text: "b" + strings.Repeat("a", 1<<16)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseContent(tt.text)
			if got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if (err == nil) != tt.want.Defined() || errors.Is(err, ErrUnsupported) != tt.unsupported {
				t.Errorf("error %v", err)
			}
		})
	}
	if err := Check(cid.Undef); !errors.Is(err, ErrUnsupported) {
		t.Errorf("undefined CID: %v", err)
	}
}

func FuzzParseContent(f *testing.F) {
	for _, s := range []string{
		"bafkreifyvxca2ataososycsc3zx5cclsjq2hs4vhsiig372cpoeqs2po2m",
		"bagbaieraqvxca2ataososycsc3zx5cclsjq2hs4vhsiig372cpoeqs2po2m",
		"QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n", "../x", "z", "b", "", "f01551220",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseContent(s)
		if err != nil {
			if c.Defined() {
				t.Fatalf("%q: both a CID and %v", s, err)
			}
			return
		}
		if err := Check(c); err != nil {
			t.Fatalf("%q was parsed, but: %v", s, err)
		}
		again, err := ParseContent(c.String())
		if err != nil || again != c {
			t.Fatalf("%q: %s parses to %s, %v", s, c, again, err)
		}
		if name := MultihashName(c); len(name) != 56 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz234567") != "" {
			t.Fatalf("%q: file name %q", s, name)
		}
	})
}
