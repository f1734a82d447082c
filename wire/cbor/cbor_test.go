package cbor_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/ipld/go-ipld-prime/codec/dagjson"
	"github.com/ipld/go-ipld-prime/node/basicnode"

	"github.com/storacha/w3filecoin/wire/cbor"
)

const (
	rawCID   = "bafkreifyvxca2ataososycsc3zx5cclsjq2hs4vhsiig372cpoeqs2po2m"
	pieceCID = "bafkzcibcbaclqmjihrn77x7qjo3m5zmdbpfuiqcwbcj76o5aocs6ewukzmzpkpq"
	v0CID    = "QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sample is one value of every kind, nested.
func sample(t testing.TB) []byte {
	t.Helper()
	b := cbor.AppendMap(nil, 9)
	b = cbor.AppendText(b, "i")
	b = cbor.AppendInt(b, math.MinInt64)
	b = cbor.AppendText(b, "t")
	b = cbor.AppendText(b, "tab\t quote\" back\\ é \u2028 \U0001f41f")
	b = cbor.AppendText(b, "u")
	b = cbor.AppendUint(b, math.MaxInt64)
	b = cbor.AppendText(b, "v0")
	b = cbor.AppendLink(b, cid.MustParse(v0CID))
	b = cbor.AppendText(b, "bool")
	b = cbor.AppendArray(b, 3)
	b = cbor.AppendBool(b, true)
	b = cbor.AppendBool(b, false)
	b = cbor.AppendNull(b)
	b = cbor.AppendText(b, "list")
	b = cbor.AppendArray(b, 2)
	b = cbor.AppendArray(b, 0)
	b = cbor.AppendMap(b, 0)
	b = cbor.AppendText(b, "piece")
	b = cbor.AppendLink(b, cid.MustParse(pieceCID))
	b = cbor.AppendText(b, "zbyte")
	b = cbor.AppendBytes(b, []byte{0, 1, 0xff})
	b = cbor.AppendText(b, "double")
	b = cbor.AppendFloat(b, -1.5e-9)
	return b
}

func TestAppendIsCanonical(t *testing.T) {
	tests := []struct {
		name string
		got  []byte
		want string
	}{
		{"zero", cbor.AppendUint(nil, 0), "00"},
		{"23", cbor.AppendUint(nil, 23), "17"},
		{"24", cbor.AppendUint(nil, 24), "1818"},
		{"255", cbor.AppendUint(nil, 255), "18ff"},
		{"256", cbor.AppendUint(nil, 256), "190100"},
		{"65536", cbor.AppendUint(nil, 65536), "1a00010000"},
		{"2^32", cbor.AppendUint(nil, 1<<32), "1b0000000100000000"},
		{"max", cbor.AppendUint(nil, math.MaxUint64), "1bffffffffffffffff"},
		{"-1", cbor.AppendInt(nil, -1), "20"},
		{"-25", cbor.AppendInt(nil, -25), "3818"},
		{"min", cbor.AppendInt(nil, math.MinInt64), "3b7fffffffffffffff"},
		{"7", cbor.AppendInt(nil, 7), "07"},
		{"text", cbor.AppendText(nil, "ab"), "626162"},
		{"bytes", cbor.AppendBytes(nil, []byte{1}), "4101"},
		{"empty map", cbor.AppendMap(nil, 0), "a0"},
		{"array", cbor.AppendArray(nil, 300), "99012c"},
		{"float", cbor.AppendFloat(nil, 1.5), "fb3ff8000000000000"},
		{"true", cbor.AppendBool(nil, true), "f5"},
		{"false", cbor.AppendBool(nil, false), "f4"},
		{"null", cbor.AppendNull(nil), "f6"},
		{"link", cbor.AppendLink(nil, cid.MustParse(rawCID)),
			"d82a58250001551220" + hex.EncodeToString(cid.MustParse(rawCID).Hash()[2:])},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := hex.EncodeToString(test.got); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestValid(t *testing.T) {
	if err := cbor.Valid(sample(t)); err != nil {
		t.Errorf("a value of every kind: %v", err)
	}
	link := hex.EncodeToString(cbor.AppendLink(nil, cid.MustParse(rawCID)))
	invalid := map[string]string{
		"nothing":                       "",
		"trailing byte":                 "0000",
		"one byte integer too long":     "1817",
		"two byte integer too long":     "1900ff",
		"four byte integer too long":    "1a0000ffff",
		"eight byte integer too long":   "1b00000000ffffffff",
		"cut integer":                   "19ff",
		"reserved length":               "1c",
		"indefinite bytes":              "5f4101ff",
		"indefinite text":               "7f6161ff",
		"indefinite array":              "9f01ff",
		"indefinite map":                "bf616101ff",
		"below -2^63":                   "3b8000000000000000",
		"cut bytes":                     "4201",
		"cut text":                      "6261",
		"text length too long":          "780161",
		"text not UTF-8":                "61ff",
		"text with a surrogate":         "63eda080",
		"cut array":                     "8201",
		"huge array":                    "9b7fffffffffffffff",
		"huge map":                      "bb7fffffffffffffff",
		"huge bytes":                    "5b7fffffffffffffff",
		"keys out of order":             "a2616201616101",
		"longer key first":              "a2626161016162 01",
		"key twice":                     "a2616101616102",
		"integer key":                   "a10101",
		"key not UTF-8":                 "a161ff01",
		"undefined":                     "f7",
		"simple value":                  "e0",
		"simple value in a byte":        "f8ff",
		"half float":                    "f93c00",
		"single float":                  "fa3fc00000",
		"NaN":                           "fb7ff8000000000000",
		"infinity":                      "fb7ff0000000000000",
		"break":                         "ff",
		"other tag":                     "c11a00000000",
		"tag 42 too long":               "d9002a" + link[4:],
		"tag 42 of text":                "d82a6161",
		"link without zero":             "d82a4101",
		"empty link":                    "d82a40",
		"link of nothing":               "d82a4100",
		"link with bytes behind":        "d82a5826" + link[8:] + "00",
		"link, version 2":               "d82a5825" + "0002" + link[12:],
		"link, codec varint too long":   "d82a5826" + "0001d500" + link[14:],
		"link, digest cut":              "d82a5824" + link[8:len(link)-2],
		"link, nine byte codec and one": "d82a4e0001" + "ffffffffffffffffff7f" + "1200",
	}
	for name, in := range invalid {
		t.Run(name, func(t *testing.T) {
			b := unhex(t, in)
			if err := cbor.Valid(b); !errors.Is(err, cbor.ErrMalformed) {
				t.Errorf("Valid: %v, want ErrMalformed", err)
			}
			r := cbor.NewReader(b)
			r.Skip()
			if err := r.Done(); !errors.Is(err, cbor.ErrMalformed) {
				t.Errorf("Reader: %v, want ErrMalformed", err)
			}
		})
	}
}

func TestDepth(t *testing.T) {
	deep := func(n int) []byte { return append(bytes.Repeat([]byte{0x81}, n), 0) }
	for _, test := range []struct {
		depth int
		ok    bool
	}{{cbor.MaxDepth, true}, {cbor.MaxDepth + 1, false}, {1 << 20, false}} {
		b := deep(test.depth)
		if err := cbor.Valid(b); (err == nil) != test.ok {
			t.Errorf("Valid at depth %d: %v", test.depth, err)
		}
		r := cbor.NewReader(b)
		for range test.depth {
			r.Array()
		}
		r.Int()
		if err := r.Done(); (err == nil) != test.ok {
			t.Errorf("Reader at depth %d: %v", test.depth, err)
		}
		mixed := cbor.NewReader(b)
		mixed.Array()
		mixed.Skip()
		if err := mixed.Done(); (err == nil) != test.ok {
			t.Errorf("Reader, then Skip, at depth %d: %v", test.depth, err)
		}
	}
}

func TestReader(t *testing.T) {
	type value struct {
		Int    int64
		Text   string
		Uint   uint64
		V0     string
		Bools  []bool
		Raw    []byte
		Piece  string
		Bytes  []byte
		Double float64
		Keys   []string
	}
	var got value
	r := cbor.NewReader(sample(t))
	if got, want := r.Peek(), cbor.Map; got != want {
		t.Errorf("peeked %v, want %v", got, want)
	}
	for range r.Map() {
		key := string(r.Key())
		got.Keys = append(got.Keys, key)
		switch key {
		case "i":
			got.Int = r.Int()
		case "t":
			got.Text = r.Text()
		case "u":
			got.Uint = r.Uint()
		case "v0":
			got.V0 = r.Link().String()
		case "bool":
			for range r.Array() {
				if r.Peek() == cbor.Null {
					r.Null()
					continue
				}
				got.Bools = append(got.Bools, r.Bool())
			}
		case "list":
			got.Raw = r.Raw()
		case "piece":
			got.Piece = r.Link().String()
		case "zbyte":
			got.Bytes = r.Bytes()
		case "double":
			got.Double = r.Float()
		}
	}
	if err := r.Done(); err != nil {
		t.Fatal(err)
	}
	want := value{
		Int: math.MinInt64, Text: "tab\t quote\" back\\ é \u2028 \U0001f41f", Uint: math.MaxInt64, V0: v0CID,
		Bools: []bool{true, false}, Raw: []byte{0x82, 0x80, 0xa0}, Piece: pieceCID, Bytes: []byte{0, 1, 0xff},
		Double: -1.5e-9, Keys: []string{"i", "t", "u", "v0", "bool", "list", "piece", "zbyte", "double"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if r.Offset() != len(sample(t)) {
		t.Errorf("read %d bytes of %d", r.Offset(), len(sample(t)))
	}
}

func TestReaderMisuse(t *testing.T) {
	pair := cbor.AppendInt(cbor.AppendText(cbor.AppendMap(nil, 1), "a"), -1)
	tests := []struct {
		name string
		in   []byte
		read func(*cbor.Reader)
	}{
		{"nothing read", pair, func(*cbor.Reader) {}},
		{"map entered only", pair, func(r *cbor.Reader) { r.Map() }},
		{"value where a key is due", pair, func(r *cbor.Reader) { r.Map(); r.Text() }},
		{"raw where a key is due", pair, func(r *cbor.Reader) { r.Map(); r.Raw() }},
		{"key where a value is due", pair, func(r *cbor.Reader) { r.Map(); r.Key(); r.Key() }},
		{"key outside a map", []byte{0x61, 'a'}, func(r *cbor.Reader) { r.Key() }},
		{"key in an array", []byte{0x81, 0x61, 'a'}, func(r *cbor.Reader) { r.Array(); r.Key() }},
		{"two values", []byte{1, 1}, func(r *cbor.Reader) { r.Int(); r.Int() }},
		{"negative as unsigned", pair, func(r *cbor.Reader) { r.Map(); r.Key(); r.Uint() }},
		{"unsigned beyond int64", cbor.AppendUint(nil, 1<<63), func(r *cbor.Reader) { r.Int() }},
		{"integer as text", []byte{1}, func(r *cbor.Reader) { r.Text() }},
		{"integer as bytes", []byte{1}, func(r *cbor.Reader) { r.Bytes() }},
		{"integer as float", []byte{1}, func(r *cbor.Reader) { r.Float() }},
		{"integer as bool", []byte{1}, func(r *cbor.Reader) { r.Bool() }},
		{"integer as null", []byte{1}, func(r *cbor.Reader) { r.Null() }},
		{"integer as link", []byte{1}, func(r *cbor.Reader) { r.Link() }},
		{"integer as array", []byte{1}, func(r *cbor.Reader) { r.Array() }},
		{"integer as map", []byte{1}, func(r *cbor.Reader) { r.Map() }},
		{"text as integer", []byte{0x60}, func(r *cbor.Reader) { r.Int() }},
		{"text as unsigned", []byte{0x60}, func(r *cbor.Reader) { r.Uint() }},
		{"null as bool", []byte{0xf6}, func(r *cbor.Reader) { r.Bool() }},
		{"failed by the caller", []byte{1}, func(r *cbor.Reader) { r.Int(); r.Failf("odd %d", 1) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := cbor.NewReader(test.in)
			test.read(r)
			err := r.Done()
			if !errors.Is(err, cbor.ErrMalformed) {
				t.Fatalf("got %v, want ErrMalformed", err)
			}
			// The error sticks and nothing more is read.
			if r.Map() != 0 || r.Array() != 0 || r.Key() != nil || r.Text() != "" || r.Bytes() != nil ||
				r.Link().Defined() || r.Int() != 0 || r.Uint() != 0 || r.Float() != 0 || r.Bool() || r.Raw() != nil ||
				r.Peek() != cbor.Invalid {
				t.Error("a value was returned after an error")
			}
			if r.Null(); r.Err() != err || r.Done() != err {
				t.Errorf("first error %v was replaced by %v", err, r.Err())
			}
		})
	}
}

func TestToJSON(t *testing.T) {
	got, err := cbor.ToJSON(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"bool":[true,false,null],"double":-1.5e-9,"i":-9223372036854775808,"list":[[],{}],` +
		`"piece":{"/":"` + pieceCID + `"},"t":"tab\t quote\" back\\ é \u2028 🐟","u":9223372036854775807,` +
		`"v0":{"/":"` + v0CID + `"},"zbyte":{"/":{"bytes":"AAH/"}}}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}

	if _, err := cbor.ToJSON([]byte{0x18, 0x01}); !errors.Is(err, cbor.ErrMalformed) {
		t.Errorf("malformed input: %v", err)
	}
	// Its JSON would be that of a link.
	reserved := cbor.AppendText(cbor.AppendText(cbor.AppendMap(nil, 1), "/"), rawCID)
	if _, err := cbor.ToJSON(reserved); !errors.Is(err, cbor.ErrMalformed) {
		t.Errorf("map with the key /: %v", err)
	}
}

// The texts of the JavaScript column were written by @ipld/dag-json 10.2 under Node.js. An empty text stands for a
// refusal: an integer has that text.
func TestSpellings(t *testing.T) {
	text := func(s string) []byte { return cbor.AppendText(nil, s) }
	keys := func(keys ...string) []byte {
		slices.SortFunc(keys, cbor.CompareKeys)
		b := cbor.AppendMap(nil, len(keys))
		for _, k := range keys {
			b = cbor.AppendInt(cbor.AppendText(b, k), 1)
		}
		return b
	}
	tests := []struct {
		name           string
		in             []byte
		golang, script string
	}{
		{"controls", text("\x00\x01\x08\x09\x0a\x0b\x0c\x0d\x1f\x7f"),
			`"\u0000\u0001\u0008\t\n\u000b\u000c\r\u001f` + "\x7f\"",
			`"\u0000\u0001\b\t\n\u000b\f\r\u001f` + "\x7f\""},
		{"separators", text("\u2027\u2028\u2029\u202a"), `"‧\u2028\u2029` + "\u202a\"", "\"\u2027\u2028\u2029\u202a\""},
		{"cut separator", text("x\u20ac"), `"x€"`, `"x€"`},
		{"one", cbor.AppendFloat(nil, 1), "", ""},
		{"zero", cbor.AppendFloat(nil, 0), "", ""},
		{"minus zero", cbor.AppendFloat(nil, math.Copysign(0, -1)), "-0", ""},
		{"2^53-1", cbor.AppendFloat(nil, 1<<53-1), "", ""},
		{"2^53", cbor.AppendFloat(nil, 1<<53), "", "9007199254740992.0"},
		{"-2^63", cbor.AppendFloat(nil, -1<<63), "", "-9223372036854776000.0"},
		{"2^64", cbor.AppendFloat(nil, 1<<64), "18446744073709552000", "18446744073709552000.0"},
		{"1e20", cbor.AppendFloat(nil, 1e20), "100000000000000000000", "100000000000000000000.0"},
		{"1e21", cbor.AppendFloat(nil, 1e21), "1e+21", "1e+21"},
		{"-1.25e-7", cbor.AppendFloat(nil, -1.25e-7), "-1.25e-7", "-1.25e-7"},
		{"1e-300", cbor.AppendFloat(nil, 1e-300), "1e-300", "1e-300"},
		{"0.1", cbor.AppendFloat(nil, 0.1), "0.1", "0.1"},
		{"max uint64", cbor.AppendUint(nil, math.MaxUint64), "18446744073709551615", "18446744073709551615"},
		{"key order", keys("b", "aa", "a", "\ue000", "\U0001f41f", "\U0001f41e"),
			"{\"a\":1,\"aa\":1,\"b\":1,\"\ue000\":1,\"\U0001f41e\":1,\"\U0001f41f\":1}",
			"{\"a\":1,\"aa\":1,\"b\":1,\"\U0001f41e\":1,\"\U0001f41f\":1,\"\ue000\":1}"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for spelling, want := range map[cbor.Spelling]string{cbor.Go: test.golang, cbor.JavaScript: test.script} {
				got, err := cbor.AppendJSON([]byte("> "), test.in, spelling)
				if want == "" {
					if !errors.Is(err, cbor.ErrMalformed) || got != nil {
						t.Errorf("spelling %d: %s, %v, want ErrMalformed", spelling, got, err)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff("> "+want, string(got)); diff != "" {
					t.Errorf("spelling %d: %s", spelling, diff)
				}
			}
		})
	}
}

// FuzzCBOR checks that what Valid accepts is what go-ipld-prime's strict decoder accepts and writes back unchanged,
// but for the two things that are deliberately stricter or wider here: text must be UTF-8 and nesting is bounded, and
// integers may reach 2^64-1.
func FuzzCBOR(f *testing.F) {
	f.Add(sample(f))
	f.Add([]byte{0xa0})
	f.Add([]byte{0x18, 0x01})
	f.Add([]byte{0xf7})
	f.Add(unhex(f, "a2616201616101"))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := cbor.Valid(b)
		if err != nil && !errors.Is(err, cbor.ErrMalformed) {
			t.Fatalf("error of another family: %v", err)
		}

		r := cbor.NewReader(b)
		again := copyValue(nil, b, r)
		if walkErr := r.Done(); (walkErr == nil) != (err == nil) {
			t.Fatalf("Valid: %v, Reader: %v", err, walkErr)
		}
		if err == nil && !bytes.Equal(again, b) {
			t.Fatalf("read %x, wrote %x", b, again)
		}

		oracle, oracleErr := rewrite(b)
		if err == nil && (oracleErr != nil || !bytes.Equal(oracle, b)) {
			t.Fatalf("accepted %x, go-ipld-prime makes it %x (%v)", b, oracle, oracleErr)
		}
		if err != nil && oracleErr == nil && bytes.Equal(oracle, b) &&
			!strings.Contains(err.Error(), "UTF-8") && !strings.Contains(err.Error(), "nested deeper") {
			t.Fatalf("refused %x, which go-ipld-prime leaves unchanged: %v", b, err)
		}
	})
}

// rewrite decodes and encodes b with go-ipld-prime.
func rewrite(b []byte) ([]byte, error) {
	nb := basicnode.Prototype.Any.NewBuilder()
	if err := dagcbor.Decode(nb, bytes.NewReader(b)); err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	err := dagcbor.Encode(nb.Build(), &buf)
	return buf.Bytes(), err
}

// copyValue reads one value of b piece by piece and appends what the Append functions make of it.
func copyValue(dst, b []byte, r *cbor.Reader) []byte {
	switch r.Peek() {
	case cbor.Null:
		r.Null()
		return cbor.AppendNull(dst)
	case cbor.Bool:
		return cbor.AppendBool(dst, r.Bool())
	case cbor.Int:
		if b[r.Offset()]>>5 == 1 {
			return cbor.AppendInt(dst, r.Int())
		}
		return cbor.AppendUint(dst, r.Uint())
	case cbor.Float:
		return cbor.AppendFloat(dst, r.Float())
	case cbor.Text:
		return cbor.AppendText(dst, r.Text())
	case cbor.Bytes:
		return cbor.AppendBytes(dst, r.Bytes())
	case cbor.Link:
		c := r.Link()
		if !c.Defined() {
			return dst
		}
		return cbor.AppendLink(dst, c)
	case cbor.Array:
		n := r.Array()
		dst = cbor.AppendArray(dst, n)
		for range n {
			dst = copyValue(dst, b, r)
		}
		return dst
	case cbor.Map:
		n := r.Map()
		dst = cbor.AppendMap(dst, n)
		for range n {
			dst = cbor.AppendText(dst, string(r.Key()))
			dst = copyValue(dst, b, r)
		}
		return dst
	default:
		r.Skip()
		return dst
	}
}

// FuzzToJSON compares with go-ipld-prime's dagjson, which cannot write integers beyond int64 and does not refuse what
// looks like something else.
func FuzzToJSON(f *testing.F) {
	f.Add(sample(f))
	f.Add(cbor.AppendText(nil, "\u2028\u2029\x00\x1f\x7f\\\""))
	f.Add(cbor.AppendFloat(nil, 1e21))
	f.Add(cbor.AppendText(cbor.AppendText(cbor.AppendMap(nil, 1), "/"), "x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := cbor.ToJSON(b)
		if _, err := cbor.AppendJSON(nil, b, cbor.JavaScript); err != nil && !errors.Is(err, cbor.ErrMalformed) {
			t.Fatalf("error of another family: %v", err)
		}
		if err != nil {
			if !errors.Is(err, cbor.ErrMalformed) {
				t.Fatalf("error of another family: %v", err)
			}
			return
		}
		nb := basicnode.Prototype.Any.NewBuilder()
		if err := dagcbor.Decode(nb, bytes.NewReader(b)); err != nil {
			t.Fatalf("accepted, but go-ipld-prime says %v", err)
		}
		var want bytes.Buffer
		if err := dagjson.Encode(nb.Build(), &want); err != nil {
			if strings.Contains(err.Error(), "unsigned integer out of range") {
				t.Skip()
			}
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.String(), string(got)); diff != "" {
			t.Error(diff)
		}
	})
}
