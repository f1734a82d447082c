package roles

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/wire"
)

// ErrNoKey means that no key is known for a DID, and none will be by asking again: its method has none, it is not one
// of those that are looked up, or its key is of a type that nobody can verify with.
var ErrNoKey = errors.New("no key is known")

// KeysConfig configures [NewKeys]. Only Now is required: keys of did:key are always found.
type KeysConfig struct {
	// Static says which did:key stands for a DID of another method. It goes before every look-up.
	Static map[capabilities.DID]capabilities.DID
	// Web are the domains whose did:web keys are looked up, at https://{domain}/.well-known/did.json: "example.com",
	// "example.com:8443", or "*.example.com" for all domains below it but not itself. The form "did:web:example.com"
	// is accepted too. Others are not asked.
	Web []string
	// Private are networks that these domains may lead into, besides the public internet.
	Private []netip.Prefix
	// RootCAs verify the certificates of these domains; nil: those of the system.
	RootCAs *x509.CertPool
	// Now is the clock by which looked-up keys get old.
	Now func() time.Time
	// TTL is how long a key that was looked up is used, RetryAfter how long a look-up that failed is not repeated,
	// Timeout how long one may take; 0: 1 h, 30 s, 5 s.
	TTL, RetryAfter, Timeout time.Duration
}

// Bounds of what is kept and fetched.
const (
	maxParsedKeys  = 4096 // of did:key, in each generation of the cache
	maxWebKeys     = 1024
	maxLookups     = 16 // at a time
	maxRedirects   = 3
	maxDIDDocument = 64 << 10 // bytes
)

// Keys finds the keys of DIDs: in the DID itself (did:key), by configuration, or by asking a domain (did:web). It
// implements [capabilities.Keys] and is safe for concurrent use.
type Keys struct {
	config KeysConfig
	client *http.Client
	parsed recent[capabilities.DID, capabilities.Verifier]
	web    recent[capabilities.DID, lookup]
	flight singleflight.Group
	slots  chan struct{}
}

// lookup is how a look-up ended.
type lookup struct {
	verifier capabilities.Verifier
	err      error
	until    time.Time
}

// NewKeys returns the keys of a configuration.
func NewKeys(c KeysConfig) *Keys {
	c.TTL = cmp.Or(c.TTL, time.Hour)
	c.RetryAfter = cmp.Or(c.RetryAfter, 30*time.Second)
	c.Timeout = cmp.Or(c.Timeout, 5*time.Second)
	domains := make([]string, len(c.Web))
	for i, d := range c.Web {
		domains[i] = strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(d, "did:web:"), "%3A", ":"))
	}
	c.Web = domains
	k := &Keys{config: c, slots: make(chan struct{}, maxLookups)}
	k.parsed.limit, k.web.limit = maxParsedKeys, maxWebKeys
	dialer := &net.Dialer{Timeout: c.Timeout, Control: k.control}
	k.client = &http.Client{
		// No proxy and no cookies: a look-up goes where the name leads, which is checked, and nowhere else.
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{RootCAs: c.RootCAs, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2: true, DisableKeepAlives: true, MaxResponseHeaderBytes: maxDIDDocument,
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects || req.URL.Scheme != "https" || req.URL.Host != via[0].URL.Host {
				return fmt.Errorf("redirected to %s", req.URL.Redacted())
			}
			return nil
		},
		Timeout: c.Timeout,
	}
	return k
}

// Verifier implements [capabilities.Keys]. An error that wraps [ErrNoKey] is final; any other one means that a domain
// could not be asked, or gave no proper answer.
func (k *Keys) Verifier(ctx context.Context, did capabilities.DID) (capabilities.Verifier, error) {
	if did.Method() == "key" {
		return k.parse(did)
	}
	if key, ok := k.config.Static[did]; ok {
		v, err := k.parse(key)
		return v.WithDID(did), err
	}
	if did.Method() != "web" {
		return capabilities.Verifier{}, fmt.Errorf("%w: of %s", ErrNoKey, did)
	}
	domain, err := k.domain(did)
	if err != nil {
		return capabilities.Verifier{}, err
	}
	if l, ok := k.web.get(did); ok && k.config.Now().Before(l.until) {
		return l.verifier, l.err
	}
	// Whoever waits may give up; the look-up goes on, for others and for the next time.
	arrived := k.flight.DoChan(did.String(), func() (any, error) {
		l := k.lookup(context.WithoutCancel(ctx), did, domain)
		k.web.put(did, l)
		return l, nil
	})
	select {
	case r := <-arrived:
		l := r.Val.(lookup)
		return l.verifier, l.err
	case <-ctx.Done():
		return capabilities.Verifier{}, fmt.Errorf("looking up the key of %s: %w", did, ctx.Err())
	}
}

func (k *Keys) parse(key capabilities.DID) (capabilities.Verifier, error) {
	if v, ok := k.parsed.get(key); ok {
		return v, nil
	}
	v, err := wire.VerifierOf(key)
	if err != nil {
		return capabilities.Verifier{}, fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	k.parsed.put(key, v)
	return v, nil
}

// domain returns where a did:web is looked up, as "host" or "host:port", if it may be.
func (k *Keys) domain(did capabilities.DID) (string, error) {
	id := strings.TrimPrefix(did.String(), "did:web:")
	domain, err := url.PathUnescape(id)
	if err != nil || strings.Contains(id, ":") || !isHost(domain) {
		return "", fmt.Errorf("%w: %s does not name a domain", ErrNoKey, did)
	}
	for _, allowed := range k.config.Web {
		below, glob := strings.CutPrefix(allowed, "*.")
		if domain == allowed || glob && strings.HasSuffix(domain, "."+below) {
			return domain, nil
		}
	}
	return "", fmt.Errorf("%w: %s is not one of the domains that are asked", ErrNoKey, did)
}

// isHost reports whether s is a host in lower case, with or without a port, and nothing else that could be a part of
// a URL.
func isHost(s string) bool {
	host, port, found := strings.Cut(s, ":")
	number := func(r rune) bool { return r >= '0' && r <= '9' }
	other := func(r rune) bool { return !number(r) && (r < 'a' || r > 'z') && r != '-' && r != '.' }
	if host == "" || host[0] == '.' || host[0] == '-' || host[len(host)-1] == '.' || strings.Contains(host, "..") ||
		strings.ContainsFunc(host, other) {
		return false
	}
	return !found || port != "" && len(port) <= 5 && !strings.ContainsFunc(port, func(r rune) bool { return !number(r) })
}

func (k *Keys) lookup(ctx context.Context, did capabilities.DID, domain string) lookup {
	ctx, cancel := context.WithTimeout(ctx, k.config.Timeout)
	defer cancel()
	select {
	case k.slots <- struct{}{}:
		defer func() { <-k.slots }()
	case <-ctx.Done():
		// This says nothing about the domain: the next one may try at once.
		return lookup{err: fmt.Errorf("looking up the key of %s: too many look-ups at a time", did)}
	}
	v, err := k.ask(ctx, did, domain)
	if err != nil {
		return lookup{err: fmt.Errorf("looking up the key of %s: %w", did, err), until: k.config.Now().Add(k.config.RetryAfter)}
	}
	return lookup{verifier: v, until: k.config.Now().Add(k.config.TTL)}
}

func (k *Keys) ask(ctx context.Context, did capabilities.DID, domain string) (capabilities.Verifier, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+domain+"/.well-known/did.json", nil)
	if err != nil {
		return capabilities.Verifier{}, err
	}
	req.Header.Set("Accept", "application/did+json, application/json")
	resp, err := k.client.Do(req)
	if err != nil {
		return capabilities.Verifier{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return capabilities.Verifier{}, fmt.Errorf("%s answered %s", req.URL, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDIDDocument+1))
	if err != nil {
		return capabilities.Verifier{}, err
	}
	if len(body) > maxDIDDocument {
		return capabilities.Verifier{}, fmt.Errorf("the DID document has more than %d bytes", maxDIDDocument)
	}
	key, err := keyInDocument(body, did)
	if err != nil {
		return capabilities.Verifier{}, err
	}
	v, err := k.parse(key)
	return v.WithDID(did), err
}

// Control is asked with the address that a name has led to, right before it is connected to: what the name leads to
// later does not matter.
func (k *Keys) control(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	addr := at.Addr().Unmap()
	if isPublic(addr) || slices.ContainsFunc(k.config.Private, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return nil
	}
	return fmt.Errorf("address %s is not on the public internet", addr)
}

// special are the networks inside the global ranges that are not the public internet (IANA registries of
// special-purpose addresses, RFC 6890). netip tells the rest.
var special = [...]netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.88.99.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("2001::/23"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("3fff::/20"),
}

// globalIPv6 are the addresses given out for the internet.
var globalIPv6 = netip.MustParsePrefix("2000::/3")

// isPublic reports whether an address belongs to a host on the public internet.
func isPublic(addr netip.Addr) bool {
	return addr.IsGlobalUnicast() && !addr.IsPrivate() && addr.Zone() == "" && (addr.Is4() || globalIPv6.Contains(addr)) &&
		!slices.ContainsFunc(special[:], func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Document is a DID document, as far as it says which keys a DID has (https://www.w3.org/TR/did-core/).
type Document struct {
	Context            []string             `json:"@context"`
	ID                 string               `json:"id"`
	VerificationMethod []VerificationMethod `json:"verificationMethod"`
	AssertionMethod    []string             `json:"assertionMethod"`
	Authentication     []string             `json:"authentication"`
}

// VerificationMethod is a key in a DID document. PublicKeyMultibase is "z" and the base58btc of the varint 0xed and
// the 32 bytes of the Ed25519 key.
type VerificationMethod struct {
	ID                 string `json:"id"`
	Type               string `json:"type"`
	Controller         string `json:"controller"`
	PublicKeyMultibase string `json:"publicKeyMultibase"`
}

const (
	ed25519Method = "Ed25519VerificationKey2020"
	multikey      = "Multikey"
)

// DIDDocument returns the document that tells the world the key of a signer, to be served at /.well-known/did.json.
func DIDDocument(s capabilities.Signer) Document {
	return Document{
		Context: []string{"https://www.w3.org/ns/did/v1", "https://w3id.org/security/suites/ed25519-2020/v1"},
		ID:      s.DID().String(),
		VerificationMethod: []VerificationMethod{{
			ID: "#owner", Type: ed25519Method, Controller: s.DID().String(),
			PublicKeyMultibase: strings.TrimPrefix(s.KeyDID().String(), "did:key:"),
		}},
		AssertionMethod: []string{"#owner"},
		Authentication:  []string{"#owner"},
	}
}

// keyInDocument returns the did:key that a DID document gives for a DID: the first Ed25519 key that it allows for
// assertions, or the first at all if it does not say what its keys are for.
func keyInDocument(doc []byte, did capabilities.DID) (capabilities.DID, error) {
	var d struct {
		ID                 string
		VerificationMethod []VerificationMethod
		// The members are references, or methods in place.
		AssertionMethod []json.RawMessage
	}
	if err := json.Unmarshal(doc, &d); err != nil {
		return capabilities.DID{}, fmt.Errorf("the DID document is not JSON of the right shape: %w", err)
	}
	if d.ID != did.String() {
		return capabilities.DID{}, fmt.Errorf("the DID document is of %.200q", d.ID)
	}
	methods := d.VerificationMethod
	if len(d.AssertionMethod) > 0 {
		methods = nil
		byID := make(map[string]VerificationMethod, len(d.VerificationMethod))
		for _, m := range d.VerificationMethod {
			byID[strings.TrimPrefix(m.ID, d.ID)] = m // references are relative to the document, or in full
		}
		for _, raw := range d.AssertionMethod {
			var ref string
			var inPlace VerificationMethod
			if json.Unmarshal(raw, &ref) == nil {
				methods = append(methods, byID[strings.TrimPrefix(ref, d.ID)])
			} else if json.Unmarshal(raw, &inPlace) == nil {
				methods = append(methods, inPlace)
			}
		}
	}
	for _, m := range methods {
		if m.Type != ed25519Method && m.Type != multikey || m.Controller != "" && m.Controller != d.ID {
			continue
		}
		key, err := wire.ParseDID("did:key:" + m.PublicKeyMultibase)
		if err == nil && bytes.HasPrefix(key.Bytes(), []byte{0xed, 0x01}) {
			return key, nil
		}
	}
	return capabilities.DID{}, errors.New("the DID document has no Ed25519 key to verify signatures with")
}

// recent is a cache of what was used lately. It holds at most two generations of limit entries; when the young one is
// full, the old one is forgotten. The zero value but for limit is an empty cache.
type recent[K comparable, V any] struct {
	limit      int
	mu         sync.RWMutex
	young, old map[K]V
}

func (c *recent[K, V]) get(key K) (V, bool) {
	c.mu.RLock()
	v, ok := c.young[key]
	if ok {
		c.mu.RUnlock()
		return v, true
	}
	v, ok = c.old[key]
	c.mu.RUnlock()
	if !ok {
		return v, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if newer, there := c.young[key]; there {
		return newer, true
	}
	c.add(key, v)
	return v, true
}

func (c *recent[K, V]) put(key K, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(key, v)
}

func (c *recent[K, V]) add(key K, v V) {
	if _, there := c.young[key]; !there && len(c.young) >= c.limit {
		c.old, c.young = c.young, nil
	}
	if c.young == nil {
		c.young = make(map[K]V)
	}
	c.young[key] = v
}
