package wire

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/multiformats/go-multibase"
)

func TestBase58(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 2000 {
		b := make([]byte, rng.IntN(80))
		for j := range b {
			b[j] = byte(rng.IntN(256))
		}
		if i%3 == 0 && len(b) > 0 {
			clear(b[:rng.IntN(len(b))]) // leading zeros
		}
		want, err := multibase.Encode(multibase.Base58BTC, b)
		if err != nil {
			t.Fatal(err)
		}
		got := appendBase58([]byte{'z'}, b)
		if string(got) != want {
			t.Fatalf("%x is %s, want %s", b, got, want)
		}
		back, ok := appendUnbase58([]byte{7}, want[1:])
		if !ok || !bytes.Equal(back[1:], b) || back[0] != 7 {
			t.Fatalf("%s is %x, want %x", want, back[1:], b)
		}
	}
	for c := range 256 {
		_, ok := appendUnbase58(nil, "2"+string([]byte{byte(c)}))
		if want := strings.IndexByte(base58Alphabet, byte(c)) >= 0; ok != want {
			t.Errorf("digit 0x%x: %v, want %v", c, ok, want)
		}
	}
}
