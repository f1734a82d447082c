package piece_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	commcid "github.com/filecoin-project/go-fil-commcid"
	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multibase"
	"github.com/multiformats/go-varint"

	"github.com/storacha/w3filecoin/piece"
)

// The piece of 127 bytes each of 0, 1, 2 and 3, from FRC-0069.
const (
	fourQuads    = "bafkzcibcaaces3nobte6ezpp4wqan2age2s5yxcatzotcvobhgcmv5wi2xh5mbi"
	fourQuadsV1  = "baga6ea4seaqes3nobte6ezpp4wqan2age2s5yxcatzotcvobhgcmv5wi2xh5mbi"
	fourQuadsHex = "01559120220004496dae0cc9e265efe5a006e80626a5dc5c409e5d3155c13984caf6c8d5cfd605"
	contentCID   = "bafkreifyvxca2ataososycsc3zx5cclsjq2hs4vhsiig372cpoeqs2po2m"
)

func mustParse(t testing.TB, s string) piece.Link {
	t.Helper()
	l, err := piece.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// randomRoot returns a root with its two top bits clear.
func randomRoot(rng *rand.Rand) piece.Node {
	var root piece.Node
	for i := range root {
		root[i] = byte(rng.Uint32())
	}
	root[31] &= 0x3f
	return root
}

// Vectors of FRC-0069, "Test Cases".
func TestParseVectors(t *testing.T) {
	const empty64 = "bafkzcibcaap6mqafu276g53zko4k23xzh4h4uecjwicbmvhsuqi7o4bhthhm4aq"
	tests := []struct {
		name, link, v1 string
		height         uint8
		padding        uint64
		payload        uint64
	}{
		{"four quads", fourQuads, fourQuadsV1, 4, 0, 508},
		{"one zero quad", "bafkzcibcaabdomn3tgwgrh3g532zopskstnbrd2n3sxfqbze7rxt7vqn7veigmy",
			"baga6ea4seaqdomn3tgwgrh3g532zopskstnbrd2n3sxfqbze7rxt7vqn7veigmy", 2, 0, 127},
		{"128 zeros", "bafkzcibcpybwiktap34inmaex4wbs6cghlq5i2j2yd2bb2zndn5ep7ralzphkdy",
			"baga6ea4seaqgiktap34inmaex4wbs6cghlq5i2j2yd2bb2zndn5ep7ralzphkdy", 3, 126, 128},
		{"32 GiB of zeros", "bafkzcibcaapao7s73y24kcutaosvacpdjgfe5pw76ooefnyqw4ynr3d2y6x2mpq",
			"baga6ea4seaqao7s73y24kcutaosvacpdjgfe5pw76ooefnyqw4ynr3d2y6x2mpq", 30, 0, 32 << 30 / 128 * 127},
		{"64 GiB of zeros", empty64,
			"baga6ea4seaqomqafu276g53zko4k23xzh4h4uecjwicbmvhsuqi7o4bhthhm4aq", 31, 0, 64 << 30 / 128 * 127},
		{"four quads and four quads of zeros", "bafkzcibcaac542av3szurbbscwuu3zjssvfwbpsvbjf6y3tukvlgl2nf5rha6pa",
			"baga6ea4seaqn42av3szurbbscwuu3zjssvfwbpsvbjf6y3tukvlgl2nf5rha6pa", 5, 0, 1016},
		{"four quads and 4 zeros", "bafkzcibd7abqlxticxolgseegik2stpfgkkuwyf6kufex3doorkvmzpjuxwe4dz4",
			"baga6ea4seaqn42av3szurbbscwuu3zjssvfwbpsvbjf6y3tukvlgl2nf5rha6pa", 5, 504, 512},
		{"four quads and 5 zeros", "bafkzcibd64bqlxticxolgseegik2stpfgkkuwyf6kufex3doorkvmzpjuxwe4dz4",
			"baga6ea4seaqn42av3szurbbscwuu3zjssvfwbpsvbjf6y3tukvlgl2nf5rha6pa", 5, 503, 513},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			l := mustParse(t, tc.link)
			if l.Height() != tc.height || l.Padding() != tc.padding || l.PayloadSize() != tc.payload {
				t.Errorf("height %d, padding %d, payload %d; want %d, %d, %d",
					l.Height(), l.Padding(), l.PayloadSize(), tc.height, tc.padding, tc.payload)
			}
			if got, want := l.PaddedSize(), uint64(32)<<tc.height; got != want {
				t.Errorf("padded size %d, want %d", got, want)
			}
			if got := l.V1().String(); got != tc.v1 {
				t.Errorf("V1 = %s, want %s", got, tc.v1)
			}
			checkRoundTrips(t, l)
			fromRoot, err := piece.FromRoot(l.Root(), tc.payload)
			if err != nil || fromRoot != l {
				t.Errorf("FromRoot = %v, %v", fromRoot, err)
			}
		})
	}
}

// checkRoundTrips checks that every encoding of l decodes to l again.
func checkRoundTrips(t *testing.T, l piece.Link) {
	t.Helper()
	check := func(form string, got piece.Link, err error) {
		t.Helper()
		if err != nil || got != l {
			t.Errorf("%s of %v gives %v, %v", form, l, got, err)
		}
	}
	got, err := piece.Parse(l.String())
	check("String", got, err)
	got, err = piece.FromCID(l.CID())
	check("CID", got, err)
	got, err = piece.FromRootAndHeight(l.Root(), l.Height(), l.Padding())
	check("root, height and padding", got, err)

	b, err := l.MarshalBinary()
	if err != nil || !bytes.Equal(b, l.CID().Bytes()) {
		t.Errorf("MarshalBinary = %x, %v, want %x", b, err, l.CID().Bytes())
	}
	got, err = piece.FromBytes(b)
	check("MarshalBinary", got, err)
	got = piece.Link{}
	err = got.UnmarshalBinary(b)
	check("UnmarshalBinary", got, err)

	j, err := json.Marshal(map[piece.Link]piece.Link{l: l})
	if err != nil || string(j) != fmt.Sprintf(`{%q:%q}`, l, l) {
		t.Errorf("JSON = %s, %v", j, err)
	}
	var m map[piece.Link]piece.Link
	if err := json.Unmarshal(j, &m); err != nil || m[l] != l {
		t.Errorf("JSON of %v gives %v, %v", l, m, err)
	}

	whole, err := piece.FromV1(l.V1(), l.PaddedSize())
	if err != nil || whole.Root() != l.Root() || whole.Height() != l.Height() || whole.Padding() != 0 {
		t.Errorf("FromV1 = %v, %v", whole, err)
	}
	if v1, err := piece.ParseV1(l.V1().String()); err != nil || v1 != l.V1() {
		t.Errorf("ParseV1 = %v, %v", v1, err)
	}
	// A peer's encoder agrees. It takes payloads from 127 bytes.
	root := l.Root()
	if l.PayloadSize() >= 127 {
		peer, err := commcid.DataCommitmentToPieceCidv2(root[:], l.PayloadSize())
		if err != nil || peer != l.CID() {
			t.Errorf("go-fil-commcid gives %v, %v, want %v", peer, err, l)
		}
	}
	if peer, err := commcid.DataCommitmentV1ToCID(root[:]); err != nil || peer != l.V1() {
		t.Errorf("go-fil-commcid gives v1 %v, %v, want %v", peer, err, l.V1())
	}
}

func TestLinksOfAllSizes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	sizes := []uint64{1, 2, 63, 64, 65, 126, 127, 128, piece.MaxPayloadSize - 1, piece.MaxPayloadSize}
	for h := piece.MinHeight; h < piece.MaxHeight; h++ {
		full := piece.UnpaddedSize(32 << h)
		sizes = append(sizes, full, full+1, full+1+rng.Uint64N(full-1))
	}
	for _, size := range sizes {
		l, err := piece.FromRoot(randomRoot(rng), size)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if l.PayloadSize() != size {
			t.Errorf("%d bytes: payload size %d", size, l.PayloadSize())
		}
		if padded, err := piece.PaddedSizeOf(size); err != nil || padded != l.PaddedSize() {
			t.Errorf("%d bytes: padded size %d, %v; want %d", size, padded, err, l.PaddedSize())
		}
		checkRoundTrips(t, l)
	}
}

func TestInvalidParts(t *testing.T) {
	root := mustParse(t, fourQuads).Root()
	dirty := root
	dirty[31] |= 0x40
	tests := []struct {
		name    string
		root    piece.Node
		height  uint8
		padding uint64
		want    error
	}{
		{"no height", root, 0, 0, nil},
		{"height below a quad", root, 1, 0, nil},
		{"height above 64 GiB", root, 32, 0, nil},
		{"height 255", root, 255, 0, nil},
		{"all padding", root, 2, 127, piece.ErrEmpty},
		{"all padding of a larger piece", root, 3, 254, piece.ErrEmpty},
		{"padding over the capacity", root, 2, 128, nil},
		{"payload fits half the piece", root, 3, 127, nil},
		{"payload fits half the largest piece", root, 31, piece.MaxPayloadSize / 2, nil},
		{"padding near 2^63", root, 31, 1<<63 - 1, nil},
		{"root of 255 bits", dirty, 4, 0, nil},
		{"zero root", piece.Node{}, 4, 0, nil},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			l, err := piece.FromRootAndHeight(tc.root, tc.height, tc.padding)
			if err == nil {
				t.Fatalf("accepted: %v", l)
			}
			if l.Defined() {
				t.Errorf("returned %v with error %v", l, err)
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			// The same parts on the wire are refused as well.
			b := []byte{0x01, 0x55, 0x91, 0x20, byte(varint.UvarintSize(tc.padding) + 33)}
			b = append(b, varint.ToUvarint(tc.padding)...)
			b = append(append(b, tc.height), tc.root[:]...)
			if l, err := piece.FromBytes(b); err == nil {
				t.Errorf("decoded: %v", l)
			} else if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("decoding: error %v, want %v", err, tc.want)
			}
		})
	}
	// The largest legal paddings.
	for h := uint8(piece.MinHeight); h <= piece.MaxHeight; h++ {
		padding := piece.UnpaddedSize(32<<h)/2 - 1
		if h == piece.MinHeight {
			padding = 126
		}
		if _, err := piece.FromRootAndHeight(root, h, padding); err != nil {
			t.Error(err)
		}
	}
	if _, err := piece.FromRoot(root, 0); !errors.Is(err, piece.ErrEmpty) {
		t.Errorf("empty payload: %v", err)
	}
	if _, err := piece.FromRoot(root, piece.MaxPayloadSize+1); !errors.Is(err, piece.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if _, err := piece.FromV1(mustParse(t, fourQuads).V1(), 511); err == nil {
		t.Error("FromV1 accepted a size that is no power of two")
	}
	if _, err := piece.FromV1(mustParse(t, fourQuads).CID(), 512); !errors.Is(err, piece.ErrNotPiece) {
		t.Errorf("FromV1 of a v2 CID: %v", err)
	}
	if _, err := piece.ParseV1(fourQuads); !errors.Is(err, piece.ErrNotPiece) {
		t.Errorf("ParseV1 of a v2 CID: %v", err)
	}
	if _, err := piece.ParseV1(contentCID); !errors.Is(err, piece.ErrNotPiece) {
		t.Errorf("ParseV1 of a content CID: %v", err)
	}
	if _, err := piece.ParseV1("x"); err == nil {
		t.Error("ParseV1 accepted x")
	}
	if _, err := piece.FromV1(cid.Undef, 512); !errors.Is(err, piece.ErrNotPiece) {
		t.Errorf("FromV1 of no CID: %v", err)
	}
}

func TestInvalidBytes(t *testing.T) {
	valid, err := hex.DecodeString(fourQuadsHex)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := piece.FromBytes(valid); err != nil || l != mustParse(t, fourQuads) {
		t.Fatalf("FromBytes = %v, %v", l, err)
	}
	with := func(i int, v byte) []byte {
		b := slices.Clone(valid)
		b[i] = v
		return b
	}
	digest := valid[5:]
	overlong := append([]byte{0x01, 0x55, 0x91, 0x20, 0x23, 0x80, 0x00}, digest[1:]...)
	long := append([]byte{0x01, 0x55, 0x91, 0x20, 10 + 33}, bytes.Repeat([]byte{0xff}, 10)...)
	long = append(long, digest[1:]...)
	content, err := cid.Decode(contentCID)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		b    []byte
		want error
	}{
		{"nothing", nil, nil},
		{"one byte", []byte{1}, nil},
		{"cut short", valid[:len(valid)-1], nil},
		{"trailing byte", append(slices.Clone(valid), 0), nil},
		{"short digest, consistent length", with(4, 0x21)[:len(valid)-1], nil},
		{"length byte too small", with(4, 0x21), nil},
		{"length byte too large", with(4, 0x23), nil},
		{"padding not minimal", overlong, nil},
		{"padding of ten bytes", long, nil},
		{"CID version 2", with(0, 2), nil},
		{"dag-cbor codec", with(1, 0x71), piece.ErrNotPiece},
		{"other multihash", with(2, 0x92), nil},
		{"v1", mustParse(t, fourQuads).V1().Bytes(), piece.ErrV1},
		{"content CID", content.Bytes(), piece.ErrNotPiece},
		{"content CID version 0", cid.NewCidV0(content.Hash()).Bytes(), piece.ErrNotPiece},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			l, err := piece.FromBytes(tc.b)
			if err == nil {
				t.Fatalf("accepted: %v", l)
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			kept := mustParse(t, fourQuads)
			if err := kept.UnmarshalBinary(tc.b); err == nil || kept != mustParse(t, fourQuads) {
				t.Errorf("UnmarshalBinary: %v, left %v", err, kept)
			}
		})
	}
}

func TestInvalidText(t *testing.T) {
	c := mustParse(t, fourQuads).CID()
	hexText, err := c.StringOfBase(multibase.Base16)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, s string
		want    error
	}{
		{"nothing", "", nil},
		{"multibase prefix only", "b", nil},
		{"upper case", strings.ToUpper(fourQuads), nil},
		{"base 16", hexText, nil},
		{"line break", fourQuads[:10] + "\n" + fourQuads[10:], nil},
		{"space after", fourQuads + " ", nil},
		{"unused bits set", fourQuads[:len(fourQuads)-1] + "j", nil},
		{"path after", fourQuads + "/x", nil},
		{"v1", fourQuadsV1, piece.ErrV1},
		{"content CID", contentCID, piece.ErrNotPiece},
		{"content CID version 0", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", piece.ErrNotPiece},
		{"long", "b" + strings.Repeat("a", 1<<16), nil},
		{"long base 58", "z" + strings.Repeat("2", 4<<20), nil}, // minutes, if it were decoded
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			l, err := piece.Parse(tc.s)
			if err == nil {
				t.Fatalf("accepted: %v", l)
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			kept := mustParse(t, fourQuads)
			if err := kept.UnmarshalText([]byte(tc.s)); err == nil || kept != mustParse(t, fourQuads) {
				t.Errorf("UnmarshalText: %v, left %v", err, kept)
			}
		})
	}
	// Other spellings reach a link through the cid package.
	decoded, err := cid.Decode(hexText)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := piece.FromCID(decoded); err != nil || l.String() != fourQuads {
		t.Errorf("FromCID of base 16: %v, %v", l, err)
	}
}

func TestUndefined(t *testing.T) {
	var l piece.Link
	if l.Defined() || l.CID().Defined() || l.V1().Defined() || l.String() != "undefined" {
		t.Errorf("zero link looks defined: %v", l)
	}
	if b, err := l.MarshalBinary(); err == nil {
		t.Errorf("MarshalBinary = %x", b)
	}
	if b, err := l.MarshalText(); err == nil {
		t.Errorf("MarshalText = %s", b)
	}
	if _, err := piece.FromCID(cid.Undef); !errors.Is(err, piece.ErrNotPiece) {
		t.Errorf("FromCID(Undef): %v", err)
	}
	if l.Compare(l) != 0 || l.Compare(mustParse(t, fourQuads)) >= 0 || mustParse(t, fourQuads).Compare(l) <= 0 {
		t.Error("zero link is not the smallest")
	}
}

func TestCompareIsByteOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	var links []piece.Link
	for range 300 {
		h := uint8(piece.MinHeight + rng.IntN(5))
		l, err := piece.FromRootAndHeight(randomRoot(rng), h, rng.Uint64N(piece.UnpaddedSize(32<<h)/2-1))
		if err != nil {
			t.Fatal(err)
		}
		links = append(links, l)
	}
	byBytes := slices.Clone(links)
	slices.SortFunc(byBytes, func(a, b piece.Link) int { return bytes.Compare(a.CID().Bytes(), b.CID().Bytes()) })
	slices.SortFunc(links, piece.Link.Compare)
	if diff := cmp.Diff(byBytes, links, cmp.Comparer(func(a, b piece.Link) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestSizes(t *testing.T) {
	for _, size := range []uint64{0, 1, 64, 127, 129, 1 << 37, 1<<36 + 1, 1 << 63} {
		if h, err := piece.HeightOf(size); err == nil {
			t.Errorf("HeightOf(%d) = %d", size, h)
		}
	}
	for h := uint8(piece.MinHeight); h <= piece.MaxHeight; h++ {
		if got, err := piece.HeightOf(32 << h); err != nil || got != h {
			t.Errorf("HeightOf(%d) = %d, %v", 32<<h, got, err)
		}
	}
	if piece.MinPaddedSize != 128 || piece.MaxPaddedSize != 64<<30 || piece.MaxPayloadSize != 64<<30/128*127 {
		t.Error("sizes are off")
	}
	if _, err := piece.PaddedSizeOf(0); !errors.Is(err, piece.ErrEmpty) {
		t.Errorf("PaddedSizeOf(0): %v", err)
	}
	if _, err := piece.PaddedSizeOf(1 << 63); !errors.Is(err, piece.ErrTooLarge) {
		t.Errorf("PaddedSizeOf(2^63): %v", err)
	}
}

func TestDecodingDoesNotAllocate(t *testing.T) {
	b := mustParse(t, fourQuads).CID().Bytes()
	c := mustParse(t, fourQuads).CID()
	if n := testing.AllocsPerRun(100, func() {
		if _, err := piece.FromBytes(b); err != nil {
			t.Fatal(err)
		}
		if _, err := piece.FromCID(c); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("decoding allocates %v times", n)
	}
}

func FuzzFromBytes(f *testing.F) {
	for _, s := range []string{fourQuads, fourQuadsV1, contentCID,
		"bafkzcibd64bqlxticxolgseegik2stpfgkkuwyf6kufex3doorkvmzpjuxwe4dz4"} {
		c, err := cid.Decode(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(c.Bytes())
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := piece.FromBytes(b)
		if err != nil {
			if l.Defined() {
				t.Fatalf("%v with error %v", l, err)
			}
			return
		}
		if got, err := l.MarshalBinary(); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("%x encodes to %x, %v", b, got, err)
		}
		if again, err := piece.FromRoot(l.Root(), l.PayloadSize()); err != nil || again != l {
			t.Fatalf("%v is not what its root and size give: %v, %v", l, again, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{fourQuads, fourQuadsV1, contentCID, "f" + fourQuadsHex, "", "b", "bafk\n", "QmX"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := piece.Parse(s)
		if err != nil {
			return
		}
		if l.String() != s {
			t.Fatalf("%q parses to %v", s, l)
		}
	})
}
