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
	r := cbor.NewReader(delegated.Nb)
	for range r.Map() {
		key := r.Key()
		want := r.Raw()
		if r.Err() != nil {
			break
		}
		if got := field(claimed.Nb, key); !bytes.Equal(got, want) {
			return fmt.Errorf("delegated for one value of %q only, claimed for another", key)
		}
	}
	return r.Done()
}

// abilityCovers: equal, or "*", or "space/*" for "space/anything".
func abilityCovers(delegated, claimed string) bool {
	if delegated == claimed || delegated == "*" {
		return true
	}
	namespace, all := strings.CutSuffix(delegated, "/*")
	return all && strings.HasPrefix(claimed, namespace+"/")
}

// field returns the raw value of a key in a map, nil if it is not there.
func field(m, key []byte) []byte {
	if m == nil {
		return nil
	}
	r := cbor.NewReader(m)
	for range r.Map() {
		k := r.Key()
		v := r.Raw()
		if r.Err() != nil {
			return nil
		}
		if bytes.Equal(k, key) {
			return v
		}
	}
	return nil
}
