package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/storacha/w3filecoin/wire"
)

func TestDID(t *testing.T) {
	for _, test := range []struct{ text, method string }{
		{"did:key:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX", "key"},
		{"did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme", "key"},
		{"did:key:zDnaeUKTWUXc1HDpGfKbEK31nKLN19yX5aunFd7VK1CUMeyJu", "key"},
		{"did:web:up.storacha.network", "web"},
		{"did:web:example.com%3A8080:users:alice", "web"},
		{"did:mailto:example.com:alice%2Btag!", "mailto"},
		{"did:3:abc_-.~", "3"},
	} {
		d := parseDID(t, test.text)
		if d.String() != test.text || d.Method() != test.method || !d.Defined() {
			t.Errorf("%s: text %s, method %s", test.text, d, d.Method())
		}
		back, err := wire.DecodeDID(d.Bytes())
		if err != nil || back != d {
			t.Errorf("%s: decoded %v, %v", test.text, back, err)
		}
		var config struct{ DID wire.DID }
		encoded, err := json.Marshal(map[string]wire.DID{"DID": d})
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(encoded, &config); err != nil || config.DID != d {
			t.Errorf("%s: JSON %s gives %v, %v", test.text, encoded, config.DID, err)
		}
	}
	if got := parseDID(t, "did:web:example.com").Bytes(); !bytes.Equal(got, append([]byte{0x9d, 0x1a}, "web:example.com"...)) {
		t.Errorf("did:web:example.com is %x", got)
	}

	var none wire.DID
	if none.Defined() || none.String() != "" || none.Method() != "" || none.Bytes() != nil {
		t.Error("the zero DID names somebody")
	}
	set := parseDID(t, "did:web:example.com")
	if err := set.UnmarshalText(nil); err != nil || set != none {
		t.Errorf("empty text: %v, %v", set, err)
	}
}

func TestMalformedDID(t *testing.T) {
	for _, text := range []string{
		"", "did", "did:", "did:key", "did:key:", "did:key:z", "did:key:z1", "did:key:zzzz", "did::x", "did:web", "did:web:",
		"did:web:a:", "did:web:a b", "did:Web:a", "did:web:a/b", "did:web:a?b", "did:web:a#b", "did:web:ä", "did:web:a\n",
		"DID:web:a", " did:web:a", "did:w-b:a", "key:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX",
		"did:key:m7QEw", "did:key:6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX",
		"did:key:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfL",   // a digit less
		"did:key:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLXX", // a digit more
		"did:key:z16Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX", // a zero before
		"did:key:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfL0",  // not a digit
		"did:web:" + strings.Repeat("a", 2041),
		"did:key:z" + strings.Repeat("z", 1<<20),
	} {
		if d, err := wire.ParseDID(text); !errors.Is(err, wire.ErrMalformed) || d.Defined() {
			t.Errorf("%.80q: %v, %v, want ErrMalformed", text, d, err)
		}
		if text == "" {
			continue
		}
		var d wire.DID
		if err := d.UnmarshalText([]byte(text)); !errors.Is(err, wire.ErrMalformed) || d.Defined() {
			t.Errorf("%.80q as text: %v, %v, want ErrMalformed", text, d, err)
		}
	}
	if _, err := wire.ParseDID("did:web:" + strings.Repeat("a", 2040)); err != nil {
		t.Errorf("2048 bytes: %v", err)
	}
}
