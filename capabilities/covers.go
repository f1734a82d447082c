package capabilities

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// Covers reports whether a delegated capability gives the authority for a claimed one: the ability matches, the resource is the
// same, and every caveat that was delegated is repeated with the same value. What the delegation leaves open, the claim
// may choose. The rule is the same for every ability of the protocol (derivation in the w3-filecoin capabilities: with, content,
// piece, pieces, aggregate and group must be equal where the delegation sets them); a caveat unknown to us is not passed over.
func Covers(delegated, claimed wire.Capability) error {
	if !abilityCovers(delegated.Can, claimed.Can) {
		return fmt.Errorf("%s was delegated, not %s", delegated.Can, claimed.Can)
	}
	if delegated.With != claimed.With && delegated.With != "ucan:*" {
		return fmt.Errorf("delegated on %s, not on %s", delegated.With, claimed.With)
	}
	if delegated.Nb == nil {
		return nil
	}
	// Both maps have their keys in order, so one pass over them is enough.
	want := cbor.NewReader(delegated.Nb)
	got := fieldReader{r: cbor.NewReader(claimed.Nb)}
	if claimed.Nb != nil {
		got.left = got.r.Map()
	}
	for range want.Map() {
		key := want.Key()
		value := want.Raw()
		if want.Err() != nil {
			break
		}
		if !bytes.Equal(got.find(key), value) {
			return fmt.Errorf("delegated for one value of %q only, claimed for another", key)
		}
	}
	return want.Done()
}

// abilityCovers: equal, or "*", or "space/*" for "space/anything".
func abilityCovers(delegated, claimed string) bool {
	if delegated == claimed || delegated == "*" {
		return true
	}
	namespace, all := strings.CutSuffix(delegated, "/*")
	return all && strings.HasPrefix(claimed, namespace+"/")
}

// fieldReader finds values in a map by ascending keys.
type fieldReader struct {
	r    *cbor.Reader
	left int
	key  []byte // the last one read, if there was one before
	raw  []byte
}

// find returns the raw value of a key that comes after all that were asked for before, nil if it is not there.
func (f *fieldReader) find(key []byte) []byte {
	for f.raw == nil || cbor.CompareKeys(string(f.key), string(key)) < 0 {
		if f.left == 0 {
			return nil
		}
		f.left--
		f.key, f.raw = f.r.Key(), f.r.Raw()
		if f.r.Err() != nil {
			f.left = 0
			return nil
		}
	}
	if !bytes.Equal(f.key, key) {
		return nil
	}
	return f.raw
}
