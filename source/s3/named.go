package s3

import (
	"slices"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multibase"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/source"
)

// Covers reports whether a key is below the bucket's prefix.
func (b *Bucket) Covers(key string) bool { return strings.HasPrefix(key, b.cfg.Prefix) }

// ContentOf returns the content that lies under a key if the bucket is one of content and the key is one of its: undefined for any other key.
// The codec is CAR if the key has it so, else raw.
func (b *Bucket) ContentOf(key string) cid.Cid {
	rest, ok := strings.CutPrefix(key, b.cfg.Prefix)
	if !ok {
		return cid.Undef
	}
	for _, word := range strings.FieldsFunc(rest, func(r rune) bool { return !isLetterOrDigit(r) }) {
		content, ok := named(word)
		if ok && slices.Contains(b.keys(content), key) {
			return content
		}
	}
	return cid.Undef
}

func isLetterOrDigit(r rune) bool {
	return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
}

// named reads what placeholders of keys stand for.
func named(word string) (cid.Cid, bool) {
	if len(word) < 40 || len(word) > 128 {
		return cid.Undef, false
	}
	if c, err := source.ParseContent(word); err == nil {
		return c, true
	}
	_, b, err := multibase.Decode(word)
	if err != nil {
		return cid.Undef, false
	}
	hash, err := multihash.Cast(b)
	if err != nil {
		return cid.Undef, false
	}
	c := cid.NewCidV1(source.Raw, hash)
	return c, source.Check(c) == nil
}
