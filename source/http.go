package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/storacha/w3filecoin/compute"
)

// Limits of a fetch that no setting changes.
const (
	maxRedirects   = 5
	maxURL         = 8 << 10  // bytes
	maxHeader      = 64 << 10 // bytes of a response's header
	maxIdlePerHost = 4
	maxResumes     = 3 // within resumeAfter bytes
	resumeAfter    = 1 << 20
	connectTimeout = 10 * time.Second
)

// Defaults of [HTTPConfig].
const (
	// DefaultMaxBytes is the payload of the largest piece, 64 GiB padded.
	DefaultMaxBytes = 127 << 29
	// DefaultFetchTimeout lets the largest piece arrive at 5 MB/s.
	DefaultFetchTimeout = 4 * time.Hour
	// DefaultFetchRate is the average below which a source is given up, in bytes per second.
	DefaultFetchRate = 64 << 10
	// DefaultFetches is how many fetches run at a time.
	DefaultFetches = 32
	// DefaultPerHost is how many of them may use one host.
	DefaultPerHost = 8
)

// HTTPConfig configures [NewHTTP]. The zero value fetches from the internet only, within the defaults above.
type HTTPConfig struct {
	// AllowHosts are hosts that may lie in a private network: names or addresses, with a port or for every port.
	// Such a host is trusted whatever its name resolves to. Anybody whose addresses are fetched may name it, so it should
	// give nothing away to a GET without credentials.
	AllowHosts []string
	// AllowPrefixes are private networks that any host name may lead to.
	AllowPrefixes []netip.Prefix

	// MaxBytes is the longest body; 0 means DefaultMaxBytes.
	MaxBytes int64
	// Timeout bounds a fetch from the first connection to the last byte, and with it how long the reader of the body may
	// take; 0 means DefaultFetchTimeout.
	Timeout time.Duration
	// Stall is how long the header of a response or the next bytes of a body may take; 0 means DefaultStall.
	Stall time.Duration
	// MinRate is the average rate that a body has to keep, in bytes per second of waiting for it; 0 means DefaultFetchRate.
	MinRate int64
	// MaxFetches and MaxPerHost bound the fetches that run at a time, from Fetch to the body's Close; 0 means
	// DefaultFetches and DefaultPerHost. One more waits.
	MaxFetches, MaxPerHost int

	// RootCAs are the authorities that certificates are verified with; nil means the system's.
	RootCAs *x509.CertPool
	// Resolver looks up host names; nil means the system's.
	Resolver *net.Resolver
}

// HTTP fetches from addresses that outsiders may have chosen. It implements compute.Fetcher. Safe for concurrent use.
//
// Only http and https URLs without credentials are fetched, and only from public addresses unless the configuration
// says otherwise. The address is checked when the connection is made, after the name was resolved, for the first URL and
// for each of at most five redirects: what a name resolves to later does not matter. Nothing of a request but the URL
// depends on the caller, no proxy of the environment is used, and nothing of one URL is sent to the next. Time, rate,
// sizes and connections are bounded. Errors name the host and the cause; they contain no path, query or address.
type HTTP struct {
	cfg       HTTPConfig
	networks  networks
	transport *http.Transport
	slots     chan struct{}
	now       func() time.Time
}

var _ compute.Fetcher = (*HTTP)(nil)

// NewHTTP returns a fetcher.
func NewHTTP(cfg HTTPConfig) (*HTTP, error) {
	networks, err := newNetworks(cfg.AllowHosts, cfg.AllowPrefixes)
	if err != nil {
		return nil, fmt.Errorf("configuring fetches: %w", err)
	}
	if cfg.MaxBytes < 0 || cfg.Timeout < 0 || cfg.Stall < 0 || cfg.MinRate < 0 || cfg.MaxFetches < 0 || cfg.MaxPerHost < 0 {
		return nil, errors.New("configuring fetches: a limit is negative")
	}
	cfg.MaxBytes = or(cfg.MaxBytes, DefaultMaxBytes)
	cfg.Timeout = or(cfg.Timeout, DefaultFetchTimeout)
	cfg.Stall = or(cfg.Stall, DefaultStall)
	cfg.MinRate = or(cfg.MinRate, DefaultFetchRate)
	cfg.MaxFetches = or(cfg.MaxFetches, DefaultFetches)
	cfg.MaxPerHost = or(cfg.MaxPerHost, DefaultPerHost)
	h := &HTTP{cfg: cfg, networks: networks, slots: make(chan struct{}, cfg.MaxFetches), now: time.Now}
	h.transport = &http.Transport{
		Proxy:                  nil, // a proxy of the environment would resolve names itself
		DialContext:            h.dial,
		TLSClientConfig:        &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    connectTimeout,
		ResponseHeaderTimeout:  cfg.Stall,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true, // the bytes count, and their number
		MaxConnsPerHost:        cfg.MaxPerHost,
		MaxIdleConns:           cfg.MaxFetches,
		MaxIdleConnsPerHost:    min(cfg.MaxPerHost, maxIdlePerHost),
		IdleConnTimeout:        DefaultStall,
	}
	return h, nil
}

// or returns v, or its default if it is zero.
func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// dial connects to a host after its name was resolved, and to no address that is not allowed.
func (h *HTTP) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	name, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: connectTimeout, Resolver: h.cfg.Resolver}
	if !h.networks.allowsHost(name, port) {
		d.Control = h.checkAddr
	}
	return d.DialContext(ctx, network, addr)
}

// checkAddr is called for each address just before it is connected to.
func (h *HTTP) checkAddr(network, address string, _ syscall.RawConn) error {
	if network != "tcp4" && network != "tcp6" {
		return fmt.Errorf("network %q: %w", network, ErrForbidden)
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	if !h.networks.allowsAddr(ap.Addr()) {
		return ErrForbidden
	}
	return nil
}

// Fetch opens the bytes at url. length is -1 if the source does not state it. The caller closes the body, which gives
// back its connection; one goroutine at a time reads it. A connection that breaks is taken up again where it broke, if
// the source names its bytes by a strong entity tag and still has the same.
//
// The error wraps compute.ErrNoContent (404, 410), [ErrForbidden], [ErrTooLarge], [ErrSlow] or the context's. Reading
// the body fails with the same, and with io.ErrUnexpectedEOF if it ends early.
func (h *HTTP) Fetch(ctx context.Context, url string) (body io.ReadCloser, length int64, err error) {
	return h.FetchFrom(ctx, url, 0)
}

// FetchFrom is [HTTP.Fetch] from an offset on, in bytes; length is that of the whole all the same. It fails if the source does not serve ranges, or has no
// byte there.
func (h *HTTP) FetchFrom(ctx context.Context, url string, off int64) (body io.ReadCloser, length int64, err error) {
	u, err := parseURL(url)
	if err != nil {
		return nil, 0, fmt.Errorf("fetching: %w", err)
	}
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, 0, fmt.Errorf("waiting to fetch: %w", context.Cause(ctx))
	}
	ctx, timeout := context.WithTimeoutCause(ctx, h.cfg.Timeout, fmt.Errorf("not done after %s: %w", h.cfg.Timeout, ErrSlow))
	ctx, cancel := context.WithCancelCause(ctx)
	b := &fetched{h: h, ctx: ctx, stall: h.cfg.Stall, now: h.now, left: h.cfg.MaxBytes - off, pace: pace{minRate: h.cfg.MinRate}}
	b.stalled = time.AfterFunc(math.MaxInt64, func() { cancel(fmt.Errorf("nothing came for %s: %w", b.stall, ErrSlow)) })
	b.stalled.Stop() // until the first read
	b.release = func() {
		cancel(nil)
		timeout()
		<-h.slots
	}
	resp, err := h.follow(ctx, u, off) //nolint:bodyclose // closing what FetchFrom returns closes it
	if err != nil {
		b.release()
		return nil, 0, err
	}
	length = resp.ContentLength
	if off > 0 {
		length += off // judge has seen that it goes on to the end
	}
	b.body, b.url, b.host = resp.Body, resp.Request.URL, origin(resp.Request.URL)
	if etag := resp.Header.Get("Etag"); length > 0 && strings.HasPrefix(etag, `"`) { // a strong one: byte for byte
		b.etag, b.total = etag, length
	}
	return b, length, nil
}

// follow requests u and what it redirects to, and returns the first response that has the bytes from an offset on.
func (h *HTTP) follow(ctx context.Context, u *url.URL, off int64) (*http.Response, error) {
	var part http.Header
	if off > 0 {
		part = http.Header{"Range": {fmt.Sprintf("bytes=%d-", off)}}
	}
	for hop := 0; ; hop++ {
		resp, err := h.get(ctx, u, part)
		if err != nil {
			return nil, explain(ctx, origin(u), err)
		}
		next, err := h.judge(u, resp, off)
		if err == nil && next == nil {
			return resp, nil
		}
		resp.Body.Close()
		if err == nil && hop == maxRedirects {
			err = fmt.Errorf("more than %d redirects", maxRedirects)
		}
		if err != nil {
			return nil, fmt.Errorf("fetching from %s: %w", origin(u), err)
		}
		u = next
	}
}

// get makes one request that carries nothing but its URL, and which part of it is wanted. It does not go through an http.Client, which would add a
// Referer, with the query, to redirected requests and put the whole URL into its errors.
func (h *HTTP) get(ctx context.Context, u *url.URL, part http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "w3filecoin")
	req.Header.Set("Accept", "*/*")
	req.Header.Set("Accept-Encoding", "identity")
	for k, v := range part {
		req.Header[k] = v
	}
	return h.transport.RoundTrip(req)
}

// judge returns nil and no error if the response has the bytes from an offset on, or where to go on.
func (h *HTTP) judge(u *url.URL, resp *http.Response, off int64) (next *url.URL, err error) {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
		total := off + resp.ContentLength
		if whole := resp.StatusCode == http.StatusOK; whole != (off == 0) ||
			!whole && resp.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", off, total-1, total) {
			return nil, fmt.Errorf("status %d, not the bytes from %d on", resp.StatusCode, off)
		}
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		ref, err := url.Parse(resp.Header.Get("Location"))
		if err != nil || ref.String() == "" {
			return nil, fmt.Errorf("status %d without a valid Location", resp.StatusCode)
		}
		next, err := parseURL(u.ResolveReference(ref).String())
		if err != nil {
			return nil, fmt.Errorf("redirect: %w", err)
		}
		return next, nil
	case http.StatusNotFound, http.StatusGone:
		return nil, fmt.Errorf("status %d: %w", resp.StatusCode, compute.ErrNoContent)
	default:
		return nil, fmt.Errorf("status %d where 200 is needed", resp.StatusCode)
	}
	for _, coding := range resp.Header.Values("Content-Encoding") {
		if coding != "" && !strings.EqualFold(coding, "identity") {
			return nil, errors.New("the content is encoded, which was not asked for")
		}
	}
	if resp.ContentLength > h.cfg.MaxBytes-off {
		return nil, fmt.Errorf("%d bytes, at most %d are read: %w", off+resp.ContentLength, h.cfg.MaxBytes, ErrTooLarge)
	}
	return nil, nil
}

// parseURL returns a URL that may be fetched as far as its text tells. Its errors do not repeat the text.
func parseURL(s string) (*url.URL, error) {
	if len(s) > maxURL {
		return nil, fmt.Errorf("URL of %d bytes: %w", len(s), ErrForbidden)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, fmt.Errorf("URL cannot be parsed: %w", ErrForbidden)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("URL is neither http nor https: %w", ErrForbidden)
	case u.Hostname() == "" || u.Opaque != "" || len(u.Host) > 300 || strings.Contains(u.Host, "%"): // a zone names an interface of one machine
		return nil, fmt.Errorf("URL has no valid host: %w", ErrForbidden)
	case u.User != nil:
		return nil, fmt.Errorf("URL has credentials: %w", ErrForbidden)
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

// origin names a URL in errors, without what may be secret in it.
func origin(u *url.URL) string { return u.Scheme + "://" + u.Host }

// explain turns an error of the network into one that says what happened and no more: the original may hold addresses
// of our network or whatever the other side sent.
func explain(ctx context.Context, host string, err error) error {
	var (
		dns  *net.DNSError
		op   *net.OpError
		cert *tls.CertificateVerificationError
		tmo  interface{ Timeout() bool }
	)
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, ErrForbidden):
		err = ErrForbidden
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	case errors.As(err, &dns) && dns.IsNotFound:
		err = errors.New("no such host")
	case errors.As(err, &dns):
		err = errors.New("the host name cannot be resolved right now")
	case errors.As(err, &tmo) && tmo.Timeout():
		err = ErrSlow
	case errors.As(err, &cert):
		err = fmt.Errorf("its certificate is not valid: %w", cert.Err)
	case errors.As(err, &op):
		var errno syscall.Errno
		if !errors.As(err, &errno) {
			err = errors.New("the connection failed")
			break
		}
		err = errno
	default:
		err = errors.New("no valid HTTP response")
	}
	return fmt.Errorf("fetching from %s: %w", host, err)
}

// fetched is the body of a response within the limits of the fetch.
type fetched struct {
	h       *HTTP
	ctx     context.Context
	stall   time.Duration
	stalled *time.Timer // ends the fetch; runs during a read
	now     func() time.Time
	pace    pace
	left    int64 // bytes that may still come
	body    io.ReadCloser
	url     *url.URL // that body is from
	host    string
	etag    string // strong, of the whole; empty: the body cannot be taken up again
	total   int64  // bytes of the whole, if there is an etag
	resumes int    // since byte resumed
	resumed int64
	err     error // that ended the body
	release func()
	once    sync.Once
}

func (b *fetched) Read(p []byte) (int, error) {
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	if int64(len(p)) > b.left {
		p = p[:b.left+1] // one byte more shows that there is more
	}
	start := b.now()
	b.stalled.Reset(b.stall)
	n, err := b.body.Read(p)
	b.stalled.Stop()
	slow := b.pace.add(n, b.now().Sub(start))
	if int64(n) > b.left {
		n = int(b.left)
		b.err = fmt.Errorf("fetching from %s: the body goes on: %w", b.host, ErrTooLarge)
		return n, b.err
	}
	b.left -= int64(n)
	switch {
	case err == io.EOF:
		b.err = err
	case slow != nil:
		b.err = fmt.Errorf("fetching from %s: %w", b.host, slow)
	case err != nil && !b.resume():
		b.err = explain(b.ctx, b.host, err)
	}
	return n, b.err
}

// resume asks for the rest of a body that has broken off. It reports whether it comes.
func (b *fetched) resume() bool {
	at := b.h.cfg.MaxBytes - b.left
	if at-b.resumed >= resumeAfter {
		b.resumes = 0
	}
	for b.etag != "" && b.resumes < maxResumes && b.ctx.Err() == nil {
		b.resumes++
		b.resumed = at
		b.stalled.Reset(b.stall)
		resp, err := b.h.get(b.ctx, b.url, http.Header{
			"Range": {fmt.Sprintf("bytes=%d-", at)}, "If-Range": {b.etag}})
		b.stalled.Stop()
		if err != nil {
			continue
		}
		if resp.StatusCode != http.StatusPartialContent || resp.ContentLength != b.total-at ||
			resp.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", at, b.total-1, b.total) {
			resp.Body.Close()
			return false
		}
		b.body.Close()
		b.body = resp.Body
		return true
	}
	return false
}

func (b *fetched) Close() error {
	var err error
	b.once.Do(func() {
		err = b.body.Close()
		b.release()
	})
	return err
}
