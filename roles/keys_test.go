package roles

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/capabilities"
)

// verifies reports whether v is the key of s in the name of did.
func verifies(v capabilities.Verifier, s capabilities.Signer, did capabilities.DID) bool {
	payload := []byte("payload")
	return v.DID() == did && v.Verify(payload, s.Sign(payload))
}

func TestKeysInDID(t *testing.T) {
	k := NewKeys(KeysConfig{Now: time.Now})
	alice := newSigner(t, "alice")
	for range 2 { // parsed, then cached
		v, err := k.Verifier(t.Context(), alice.DID())
		if err != nil || !verifies(v, alice, alice.DID()) {
			t.Fatalf("got %v, %v", v.DID(), err)
		}
	}
	for _, text := range []string{
		"did:mailto:example.com:alice",
		"did:web:example.com",
		"did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme", // secp256k1
	} {
		if _, err := k.Verifier(t.Context(), mustDID(t, text)); !errors.Is(err, ErrNoKey) {
			t.Errorf("%s: got %v, want ErrNoKey", text, err)
		}
	}
}

func TestKeysStatic(t *testing.T) {
	alice, web := newSigner(t, "alice"), mustDID(t, "did:web:example.com")
	k := NewKeys(KeysConfig{Now: time.Now, Static: map[capabilities.DID]capabilities.DID{
		web: alice.DID(), mustDID(t, "did:web:other.example"): web}})
	v, err := k.Verifier(t.Context(), web)
	if err != nil || !verifies(v, alice, web) {
		t.Errorf("got %v, %v", v.DID(), err)
	}
	if _, err := k.Verifier(t.Context(), mustDID(t, "did:web:other.example")); !errors.Is(err, ErrNoKey) {
		t.Errorf("a DID stands for something else than a did:key: %v", err)
	}
}

// clock is a time that tests move.
type clock struct{ seconds atomic.Int64 }

func (c *clock) now() time.Time { return time.Unix(noon+c.seconds.Load(), 0) }

// host is a domain that serves DID documents.
type host struct {
	*httptest.Server
	did    capabilities.DID
	asked  atomic.Int64
	answer atomic.Value // http.HandlerFunc
}

func newHost(t *testing.T, answer http.HandlerFunc) *host {
	h := &host{}
	h.answer.Store(answer)
	h.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		h.answer.Load().(http.HandlerFunc)(w, r)
	}))
	t.Cleanup(h.Close)
	h.did = mustDID(t, "did:web:"+strings.ReplaceAll(h.domain(), ":", "%3A"))
	return h
}

func (h *host) domain() string { return h.Listener.Addr().String() }

func (h *host) config(c *clock) KeysConfig {
	roots := x509.NewCertPool()
	roots.AddCert(h.Certificate())
	return KeysConfig{Now: c.now, Web: []string{h.domain()}, RootCAs: roots, Private: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
}

func serveJSON(v any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/.well-known/did.json" {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(v)
	}
}

func TestKeysLookup(t *testing.T) {
	c := new(clock)
	h := newHost(t, http.NotFound)
	alice, err := newSigner(t, "alice").WithDID(h.did)
	if err != nil {
		t.Fatal(err)
	}
	h.answer.Store(serveJSON(DIDDocument(alice)))
	k := NewKeys(h.config(c))
	expect := func(asked int64, good bool) {
		t.Helper()
		v, err := k.Verifier(t.Context(), h.did)
		if (err == nil) != good || errors.Is(err, ErrNoKey) || good && !verifies(v, alice, h.did) {
			t.Errorf("got %v, %v", v.DID(), err)
		}
		if n := h.asked.Load(); n != asked {
			t.Errorf("asked %d times, want %d", n, asked)
		}
	}
	expect(1, true)
	c.seconds.Store(3599)
	expect(1, true)
	c.seconds.Store(3600) // too old
	expect(2, true)
	h.answer.Store(http.HandlerFunc(http.NotFound))
	c.seconds.Store(7200)
	expect(3, false)
	c.seconds.Store(7229)
	expect(3, false) // that it failed is remembered
	h.answer.Store(serveJSON(DIDDocument(alice)))
	expect(3, false)
	c.seconds.Store(7230)
	expect(4, true)
}

func TestKeysLookupOnce(t *testing.T) {
	c := new(clock)
	h := newHost(t, http.NotFound)
	alice, err := newSigner(t, "alice").WithDID(h.did)
	if err != nil {
		t.Fatal(err)
	}
	release, arrived := make(chan struct{}), make(chan struct{}, 1)
	h.answer.Store(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-release
		serveJSON(DIDDocument(alice))(w, r)
	}))
	k := NewKeys(h.config(c))

	// One who gives up does not take the others' answer away.
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() {
		_, err := k.Verifier(ctx, h.did)
		gaveUp <- err
	}()
	<-arrived
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if v, err := k.Verifier(t.Context(), h.did); err != nil || !verifies(v, alice, h.did) {
				t.Errorf("got %v, %v", v.DID(), err)
			}
		})
	}
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(release)
	wg.Wait()
	if n := h.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestKeysLookupRefusals(t *testing.T) {
	elsewhere := newHost(t, func(http.ResponseWriter, *http.Request) {})
	for _, tt := range []struct {
		name   string
		answer func(h *host) http.HandlerFunc
		change func(h *host, c *KeysConfig)
		want   string
	}{
		{"redirect to another host", func(h *host) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusFound)
			}
		}, nil, "redirected to"},
		{"redirect to http", func(h *host) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://"+h.domain()+r.URL.Path, http.StatusFound)
			}
		}, nil, "redirected to"},
		{"redirect for ever", func(h *host) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }
		}, nil, "redirected to"},
		{"server error", func(*host) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }
		}, nil, "500"},
		{"too large", func(h *host) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat(" ", maxDIDDocument+1)) }
		}, nil, "more than 65536 bytes"},
		{"never ends", func(h *host) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		}, func(_ *host, c *KeysConfig) { c.Timeout = 50 * time.Millisecond }, "deadline exceeded"},
		{"not JSON", func(*host) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }
		}, nil, "not JSON"},
		{"of somebody else", func(*host) http.HandlerFunc {
			return serveJSON(DIDDocument(newSigner(t, "mallory")))
		}, nil, "DID document is of"},
		{"private address", nil, func(_ *host, c *KeysConfig) { c.Private = nil }, "not on the public internet"},
		{"private address by name", nil, func(h *host, c *KeysConfig) {
			_, port, _ := strings.Cut(h.domain(), ":")
			c.Private, c.Web = nil, []string{"localhost:" + port}
			h.did = mustDID(t, "did:web:localhost%3A"+port)
		}, "not on the public internet"},
		{"unknown certificate", nil, func(_ *host, c *KeysConfig) { c.RootCAs = x509.NewCertPool() }, "certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, http.NotFound)
			alice, err := newSigner(t, "alice").WithDID(h.did)
			if err != nil {
				t.Fatal(err)
			}
			h.answer.Store(serveJSON(DIDDocument(alice)))
			if tt.answer != nil {
				h.answer.Store(tt.answer(h))
			}
			config := h.config(new(clock))
			if tt.change != nil {
				tt.change(h, &config)
			}
			_, err = NewKeys(config).Verifier(t.Context(), h.did)
			if err == nil || errors.Is(err, ErrNoKey) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if n := elsewhere.asked.Load(); n > 0 {
		t.Errorf("the other host was asked %d times", n)
	}
}

func TestKeysRedirectAtHome(t *testing.T) {
	h := newHost(t, http.NotFound)
	alice, err := newSigner(t, "alice").WithDID(h.did)
	if err != nil {
		t.Fatal(err)
	}
	h.answer.Store(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/did" {
			http.Redirect(w, r, "/did", http.StatusFound)
			return
		}
		_ = json.NewEncoder(w).Encode(DIDDocument(alice))
	}))
	if v, err := NewKeys(h.config(new(clock))).Verifier(t.Context(), h.did); err != nil || !verifies(v, alice, h.did) {
		t.Errorf("got %v, %v", v.DID(), err)
	}
}

// TestKeysBusy: look-ups under way are bounded, and waiting in vain is not held against a domain.
func TestKeysBusy(t *testing.T) {
	h := newHost(t, http.NotFound)
	alice, err := newSigner(t, "alice").WithDID(h.did)
	if err != nil {
		t.Fatal(err)
	}
	h.answer.Store(serveJSON(DIDDocument(alice)))
	config := h.config(new(clock))
	k := NewKeys(config)
	for range maxLookups {
		k.slots <- struct{}{}
	}
	k.config.Timeout = time.Millisecond
	if _, err := k.Verifier(t.Context(), h.did); err == nil || !strings.Contains(err.Error(), "too many look-ups") {
		t.Errorf("got %v", err)
	}
	for range maxLookups {
		<-k.slots
	}
	k.config.Timeout = 5 * time.Second
	if v, err := k.Verifier(t.Context(), h.did); err != nil || !verifies(v, alice, h.did) {
		t.Errorf("got %v, %v", v.DID(), err)
	}
}

func TestKeysDomains(t *testing.T) {
	k := NewKeys(KeysConfig{Now: time.Now, Web: []string{"example.com", "*.storacha.network", "did:web:Port.example%3A8443", "*", "*evil.example"}})
	for id, want := range map[string]string{
		"example.com":               "example.com",
		"up.storacha.network":       "up.storacha.network",
		"a.b.storacha.network":      "a.b.storacha.network",
		"port.example%3A8443":       "port.example:8443",
		"storacha.network":          "",
		".storacha.network":         "",
		"evilstoracha.network":      "",
		"a.evil.example":            "", // a wildcard stands for whole labels
		"port.example":              "",
		"example.com%3A443":         "",
		"sub.example.com":           "",
		"EXAMPLE.com":               "",
		"example.com.":              "",
		"example.com:user:alice":    "",
		"port.example:8443":         "", // a path, as the method has it
		"example.com%2F":            "",
		"evil%2F.storacha.network":  "",
		"evil%3F.storacha.network":  "",
		"evil%23.storacha.network":  "",
		"u%40h.storacha.network":    "",
		"%5B::1%5D":                 "",
		"a..storacha.network":       "",
		"-a.storacha.network":       "",
		"%C3%A4.storacha.network":   "",
		"x%3A80.storacha.network":   "",
		"x.storacha.network%3A":     "",
		"x.storacha.network%3A99a":  "",
		"x.storacha.network%3A8080": "",
	} {
		got, err := k.domain(mustDID(t, "did:web:"+id))
		if got != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, ErrNoKey) {
			t.Errorf("%s: got %q, %v, want %q", id, got, err, want)
		}
	}
}

func TestPublicAddresses(t *testing.T) {
	for addr, want := range map[string]bool{
		"1.1.1.1": true, "8.8.8.8": true, "2606:4700::1111": true,
		"127.0.0.1": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false, "100.64.0.1": false,
		"0.0.0.0": false, "0.1.2.3": false, "224.0.0.1": false, "255.255.255.255": false, "198.18.0.1": false, "192.0.2.1": false,
		"::1": false, "::": false, "fe80::1": false, "fc00::1": false, "ff02::1": false, "2001:db8::1": false, "2002:7f00:1::": false,
		"64:ff9b::7f00:1": false, "::ffff:127.0.0.1": false, "2001:0:1::": false, "fe80::1%eth0": false,
	} {
		if got := isPublic(netip.MustParseAddr(addr).Unmap()); got != want {
			t.Errorf("%s: public is %v", addr, got)
		}
	}
}

func TestKeyInDocument(t *testing.T) {
	did := mustDID(t, "did:web:example.com")
	alice, bob := newSigner(t, "alice"), newSigner(t, "bob")
	multibase := func(s capabilities.Signer) string { return strings.TrimPrefix(s.KeyDID().String(), "did:key:") }
	method := func(id, kind, controller, key string) string {
		return fmt.Sprintf(`{"id":%q,"type":%q,"controller":%q,"publicKeyMultibase":%q}`, id, kind, controller, key)
	}
	const web = "did:web:example.com"
	a := method("#a", ed25519Method, web, multibase(alice))
	b := method(web+"#b", multikey, "", multibase(bob))
	doc := func(methods, rest string) string {
		return fmt.Sprintf(`{"@context":"https://www.w3.org/ns/did/v1","id":%q,"verificationMethod":[%s]%s}`, web, methods, rest)
	}
	for _, tt := range []struct {
		name, doc string
		want      capabilities.Signer
		err       string
	}{
		{"one", doc(a, ""), alice, ""},
		{"the first", doc(b+","+a, ""), bob, ""},
		{"the one for assertions", doc(a+","+b, `,"assertionMethod":["#b"]`), bob, ""},
		{"the one for assertions, in full", doc(b+","+a, `,"assertionMethod":["did:web:example.com#a"]`), alice, ""},
		{"in place", doc("", `,"assertionMethod":[`+a+`]`), alice, ""},
		{"after one of another kind", doc(method("#x", "JsonWebKey2020", web, "")+","+a, ""), alice, ""},
		{"none", doc("", ""), capabilities.Signer{}, "no Ed25519 key"},
		{"none for assertions", doc(a, `,"assertionMethod":["#c"]`), capabilities.Signer{}, "no Ed25519 key"},
		{"controlled by another", doc(method("#a", ed25519Method, "did:web:other.example", multibase(alice)), ""), capabilities.Signer{}, "no Ed25519 key"},
		{"of another type", doc(method("#a", "Ed25519VerificationKey2018", web, multibase(alice)), ""), capabilities.Signer{}, "no Ed25519 key"},
		{"not base58btc", doc(method("#a", ed25519Method, web, "f"+multibase(alice)[1:]), ""), capabilities.Signer{}, "no Ed25519 key"},
		{"secp256k1", doc(method("#a", ed25519Method, web, "zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme"), ""), capabilities.Signer{}, "no Ed25519 key"},
		{"another id", `{"id":"did:web:other.example","verificationMethod":[` + a + `]}`, capabilities.Signer{}, "is of"},
		{"wrong shape", `{"id":1}`, capabilities.Signer{}, "right shape"},
		{"cut off", doc(a, "")[:50], capabilities.Signer{}, "right shape"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := keyInDocument([]byte(tt.doc), did)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, %v, want %q", got, err, tt.err)
				}
			} else if err != nil || got != tt.want.KeyDID() {
				t.Errorf("got %v, %v, want %v", got, err, tt.want.KeyDID())
			}
		})
	}
}

func FuzzKeyInDocument(f *testing.F) {
	s, err := newSigner(f, "alice").WithDID(mustDID(f, "did:web:example.com"))
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(DIDDocument(s))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"id":"did:web:example.com","assertionMethod":["#a",{},[]],"verificationMethod":[{}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		key, err := keyInDocument(doc, s.DID())
		if err != nil {
			return
		}
		if _, err := NewKeys(KeysConfig{}).Verifier(t.Context(), key); err != nil {
			t.Errorf("%v is no key to verify with: %v", key, err)
		}
	})
}

func TestDIDDocument(t *testing.T) {
	s, err := newSigner(t, "alice").WithDID(mustDID(t, "did:web:example.com"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(DIDDocument(s))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"@context":["https://www.w3.org/ns/did/v1","https://w3id.org/security/suites/ed25519-2020/v1"],"id":"did:web:example.com",` +
		`"verificationMethod":[{"id":"#owner","type":"Ed25519VerificationKey2020","controller":"did:web:example.com",` +
		`"publicKeyMultibase":"` + s.KeyDID().String()[len("did:key:"):] + `"}],"assertionMethod":["#owner"],"authentication":["#owner"]}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	key, err := keyInDocument(got, s.DID())
	if err != nil || key != s.KeyDID() {
		t.Errorf("our own document gives %v, %v", key, err)
	}
}

func TestRecent(t *testing.T) {
	c := recent[int, string]{limit: 10}
	c.put(0, "used")
	c.put(1, "unused")
	for i := range 100 {
		c.put(2+i, "other")
		if v, ok := c.get(0); !ok || v != "used" {
			t.Fatalf("what is used was forgotten after %d others", i+1)
		}
		if n := len(c.young) + len(c.old); n > 20 {
			t.Fatalf("%d entries", n)
		}
	}
	if _, ok := c.get(1); ok {
		t.Error("what is not used was kept")
	}
	c.put(0, "changed")
	if v, _ := c.get(0); v != "changed" {
		t.Errorf("got %q", v)
	}
}
