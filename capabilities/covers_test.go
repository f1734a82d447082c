package capabilities_test

import (
	"slices"
	"testing"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// TestCoversCaveats tries all maps of four keys, each absent or with one of two values, as what is delegated and as what is claimed.
func TestCoversCaveats(t *testing.T) {
	keys := []string{"b", "aa", "", "c"}
	slices.SortFunc(keys, cbor.CompareKeys)
	const all = 3 * 3 * 3 * 3
	decode := func(n int) (nb []byte, values [4]int) {
		count := 0
		for i := range keys {
			if values[i] = n % 3; values[i] != 0 {
				count++
				nb = append(cbor.AppendText(nb, keys[i]), byte(values[i]))
			}
			n /= 3
		}
		return append(cbor.AppendMap(nil, count), nb...), values
	}
	covered := 0
	for d := range all {
		delegated, set := decode(d)
		for c := range all {
			claimed, got := decode(c)
			want := true
			for i, v := range set {
				want = want && (v == 0 || v == got[i])
			}
			err := capabilities.Covers(wire.Capability{Can: "*", With: "a:b", Nb: delegated}, wire.Capability{Can: "x/y", With: "a:b", Nb: claimed})
			if (err == nil) != want {
				t.Fatalf("delegated %x, claimed %x: %v", delegated, claimed, err)
			}
			if want {
				covered++
			}
		}
		err := capabilities.Covers(wire.Capability{Can: "*", With: "a:b", Nb: delegated}, wire.Capability{Can: "x/y", With: "a:b"})
		if (err == nil) != (d == 0) {
			t.Fatalf("delegated %x, nothing claimed: %v", delegated, err)
		}
	}
	if covered != 5*5*5*5 { // per key: 3 where it is free, 2 where it is set
		t.Errorf("%d of %d are covered", covered, all*all)
	}
}
