package s3_test

import (
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/source/s3"
)

// TestContentOf: a key names the content for which the bucket would look there, and nothing else.
func TestContentOf(t *testing.T) {
	raw := cid.MustParse("bafkreibkkmj6prwzfko7zcaf6vk4xrbjfiqhjzumcwrxcf5qmxkmtg45ma")
	car := cid.NewCidV1(source.CAR, raw.Hash())
	other := cid.MustParse("bafkreie6qwolwjzyxwevyzbwbqc7kfhqtpyuhhsu7fn2oabedx4h3o5qtu")
	b, err := s3.Open(s3.Config{Bucket: "b", Region: "r", Prefix: "in/", Keys: []string{"{multihash}", "{car}/{car}.car", "x-{base58}.blob", "raw/{raw}"}})
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]cid.Cid{
		"in/" + source.MultihashName(raw):                                    raw,
		"in/" + car.String() + "/" + car.String() + ".car":                   car,
		source.Fill("in/x-{base58}.blob", raw):                               raw,
		"in/raw/" + raw.String():                                             raw,
		source.MultihashName(raw):                                            cid.Undef, // not below the prefix
		"in/" + raw.String():                                                 cid.Undef,
		"in/" + car.String() + "/" + other.String() + ".car":                 cid.Undef,
		"in/" + car.String() + "/" + car.String() + ".car.idx":               cid.Undef,
		"in/deep/" + source.MultihashName(raw):                               cid.Undef,
		"in/" + source.MultihashName(raw)[:40]:                               cid.Undef,
		"in/movie.mp4":                                                       cid.Undef,
		"in/":                                                                cid.Undef,
		"in/raw/bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi": cid.Undef,
	} {
		if got := b.ContentOf(key); got != want {
			t.Errorf("%s names %s, want %s", key, got, want)
		}
	}
	if b.Covers("elsewhere") || !b.Covers("in/x") {
		t.Error("the prefix says what the bucket covers")
	}
}
