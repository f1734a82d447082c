package s3_test

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/internal/s3test"
	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/source/s3"
	"github.com/storacha/w3filecoin/uploads"
	"github.com/storacha/w3filecoin/wire"
)

const maxBytes = 1 << 30

// lasting gives a bucket credentials that end after some time.
func lasting(left time.Duration) func(*s3.Config) {
	return func(c *s3.Config) {
		keys := c.Credentials
		c.Credentials, c.Provider = s3.Credentials{}, aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: keys.AccessKey, SecretAccessKey: keys.SecretKey, CanExpire: true, Expires: time.Now().Add(left)}, nil
		})
	}
}

func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0] = byte(seed)
	rand.NewChaCha8(key).Read(b)
	return b
}

func contentOf(t testing.TB, codec uint64, b []byte) cid.Cid {
	t.Helper()
	digest := sha256.Sum256(b)
	mh, err := multihash.Encode(digest[:], multihash.SHA2_256)
	if err != nil {
		t.Fatal(err)
	}
	return cid.NewCidV1(codec, mh)
}

func open(t testing.TB, store *s3test.Store, bucket string, change func(*s3.Config)) *s3.Bucket {
	t.Helper()
	cfg := s3.Config{Bucket: bucket, Endpoint: store.Endpoint, Region: store.Region, PathStyle: true, Writable: true,
		Credentials: s3.Credentials{AccessKey: store.AccessKey, SecretKey: store.SecretKey}}
	if change != nil {
		change(&cfg)
	}
	b, err := s3.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func get(t testing.TB, address string, header ...string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b
}

// TestFake and TestServer run the same suite: what the fake says is what a real server says.
func TestFake(t *testing.T)   { suite(t, s3test.NewFake(t)) }
func TestServer(t *testing.T) { suite(t, s3test.Start(t)) }

func suite(t *testing.T, store *s3test.Store) {
	t.Run("put and read", func(t *testing.T) {
		name := store.CreateBucket(t)
		b := open(t, store, name, nil)
		if err := b.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i, size := range []int{0, 1, 100_000, 8 << 20, 8<<20 + 1, 20 << 20} {
			want := random(size, uint64(i))
			c := contentOf(t, source.Raw, want)
			if _, err := b.Stat(t.Context(), c); !errors.Is(err, source.ErrNoContent) {
				t.Fatalf("%d bytes that nobody stored: %v", size, err)
			}
			created, err := b.Put(t.Context(), c, iotest.HalfReader(bytes.NewReader(want)), maxBytes)
			if err != nil || !created {
				t.Fatalf("storing %d bytes: %t, %v", size, created, err)
			}
			created, err = b.Put(t.Context(), c, iotest.ErrReader(errors.New("read")), maxBytes)
			if err != nil || created {
				t.Fatalf("storing %d bytes again: %t, %v", size, created, err)
			}
			if length, err := b.Verified(t.Context(), c); err != nil || length != int64(size) {
				t.Errorf("%d bytes that were verified: %d, %v", size, length, err)
			}
			// The codec does not matter, as both name the same bytes.
			body, length, err := b.Open(t.Context(), contentOf(t, source.CAR, want))
			if err != nil || length != int64(size) {
				t.Fatalf("opening %d bytes: length %d, %v", size, length, err)
			}
			if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("reading %d bytes: %d came, %v", size, len(got), err)
			}
			body.Close()
			if size > 0 && size <= 1<<20 { // a reader that seeks
				body, _, err := b.Open(t.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				if err := iotest.TestReader(body, want[:min(size, 2000)]); size <= 2000 && err != nil {
					t.Error(err)
				}
				for _, off := range []int64{int64(size) / 2, 0, int64(size) - 1} {
					if _, err := body.Seek(off, io.SeekStart); err != nil {
						t.Fatal(err)
					}
					if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, want[off:]) {
						t.Errorf("from byte %d: %d came, %v", off, len(got), err)
					}
				}
				body.Close()
			}
		}
		if n := store.Unfinished(t, name); n != 0 {
			t.Errorf("%d uploads are unfinished", n)
		}
	})

	t.Run("nothing unverified gets a name", func(t *testing.T) {
		name := store.CreateBucket(t)
		b := open(t, store, name, nil)
		for _, size := range []int{1000, 17 << 20} {
			want := random(size, 7)
			c := contentOf(t, source.Raw, want)
			flipped := bytes.Clone(want)
			flipped[size-1] ^= 1
			broken := errors.New("broken off")
			for what, tt := range map[string]struct {
				r   io.Reader
				max int64
				err error
			}{
				"one bit flipped": {bytes.NewReader(flipped), maxBytes, source.ErrMismatch},
				"cut short":       {bytes.NewReader(want[:size-1]), maxBytes, source.ErrMismatch},
				"too long":        {bytes.NewReader(want), int64(size) - 1, source.ErrTooLarge},
				"broken off":      {io.MultiReader(bytes.NewReader(want[:size-1]), iotest.ErrReader(broken)), maxBytes, broken},
			} {
				if created, err := b.Put(t.Context(), c, tt.r, tt.max); created || !errors.Is(err, tt.err) {
					t.Errorf("%d bytes, %s: %t, %v", size, what, created, err)
				}
			}
		}
		if keys := store.Keys(t, name); len(keys) != 0 {
			t.Errorf("the bucket has %q", keys)
		}
		if n := store.Unfinished(t, name); n != 0 {
			t.Errorf("%d uploads are unfinished", n)
		}
	})

	t.Run("at once", func(t *testing.T) {
		name := store.CreateBucket(t)
		b := open(t, store, name, nil)
		for _, size := range []int{5000, 9 << 20} {
			want := random(size, 9)
			c := contentOf(t, source.Raw, want)
			var created atomic.Int32
			var group sync.WaitGroup
			for range 4 {
				group.Go(func() {
					ok, err := b.Put(t.Context(), c, bytes.NewReader(want), maxBytes)
					if err != nil {
						t.Errorf("%d bytes: %v", size, err)
					}
					if ok {
						created.Add(1)
					}
				})
			}
			group.Wait()
			if n := created.Load(); n != 1 {
				t.Errorf("%d of 4 created %d bytes", n, size)
			}
		}
		if keys := store.Keys(t, name); len(keys) != 2 {
			t.Errorf("the bucket has %q", keys)
		}
	})

	t.Run("keys", func(t *testing.T) {
		name := store.CreateBucket(t)
		b := open(t, store, name, func(c *s3.Config) {
			c.Prefix, c.Writable = "shards/", false
			c.Keys = []string{"{multihash}", "{car}/{car}.car", "{base58}/{base58}.blob", "raw/{raw}"}
		})
		for i, key := range []func(c cid.Cid) string{
			func(c cid.Cid) string { return source.MultihashName(c) },
			func(c cid.Cid) string { s := cid.NewCidV1(source.CAR, c.Hash()).String(); return s + "/" + s + ".car" },
			func(c cid.Cid) string { s := "z" + c.Hash().B58String(); return s + "/" + s + ".blob" },
			func(c cid.Cid) string { return "raw/" + cid.NewCidV1(source.Raw, c.Hash()).String() },
		} {
			want := random(300+i, uint64(40+i))
			c := contentOf(t, source.Raw, want)
			store.Put(t, name, "shards/"+key(c), want)
			if length, err := b.Stat(t.Context(), c); err != nil || length != int64(len(want)) {
				t.Errorf("%s: %d bytes, %v", key(c), length, err)
			}
		}
		if _, err := b.Put(t.Context(), contentOf(t, source.Raw, nil), strings.NewReader(""), 1); !errors.Is(err, source.ErrReadOnly) {
			t.Errorf("storing in a read-only bucket: %v", err)
		}
		if _, err := b.Stat(t.Context(), cid.MustParse("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG")); !errors.Is(err, source.ErrUnsupported) {
			t.Errorf("a CIDv0: %v", err)
		}
	})

	t.Run("addresses", func(t *testing.T) {
		name := store.CreateBucket(t)
		b := open(t, store, name, nil)
		want := random(5000, 3)
		c := contentOf(t, source.Raw, want)
		if _, err := b.Put(t.Context(), c, bytes.NewReader(want), maxBytes); err != nil {
			t.Fatal(err)
		}
		at, err := b.Locate(t.Context(), c)
		if err != nil || at.Length != 5000 || !at.Expires {
			t.Fatalf("%+v, %v", at, err)
		}
		address, err := at.Sign(t.Context(), 10*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if q, _ := url.ParseQuery(address[strings.Index(address, "?")+1:]); q.Get("X-Amz-Expires") != "600" {
			t.Errorf("it works for %s seconds", q.Get("X-Amz-Expires"))
		}
		if status, got := get(t, address); status != http.StatusOK || !bytes.Equal(got, want) {
			t.Errorf("status %d, %d bytes", status, len(got))
		}
		if status, got := get(t, address, "Range", "bytes=100-199"); status != http.StatusPartialContent || !bytes.Equal(got, want[100:200]) {
			t.Errorf("range: status %d, %d bytes", status, len(got))
		}
		if strings.Contains(address, store.SecretKey) {
			t.Error("the address has the secret key in it")
		}
		if store.Fake == nil { // the fake does not look at signatures
			for what, a := range map[string]string{
				"without a signature":       address[:strings.Index(address, "?")],
				"of another object":         strings.Replace(address, b.Key(c), b.Key(contentOf(t, source.Raw, nil)), 1),
				"with a longer life":        strings.Replace(address, "X-Amz-Expires=600", "X-Amz-Expires=6000", 1),
				"by somebody else's secret": sign(t, open(t, store, name, func(c *s3.Config) { c.Credentials.SecretKey = "another" }), c, store, name),
			} {
				if status, _ := get(t, a); status != http.StatusForbidden {
					t.Errorf("an address %s: status %d", what, status)
				}
			}
			bad := open(t, store, name, func(c *s3.Config) { c.Credentials.SecretKey = "another" })
			if err := bad.Check(t.Context()); err == nil || errors.Is(err, source.ErrNoContent) {
				t.Errorf("wrong credentials: %v", err)
			}
		}
		if at, err = b.LocateKey(t.Context(), b.Key(c)); err != nil || at.Length != 5000 {
			t.Errorf("by key: %+v, %v", at, err)
		}
		for _, key := range []string{"", "other", strings.Repeat("x", 2000)} {
			if _, err := b.LocateKey(t.Context(), key); !errors.Is(err, source.ErrNoContent) {
				t.Errorf("key of %d bytes: %v", len(key), err)
			}
		}
		private := open(t, store, name, func(c *s3.Config) { c.Private = true })
		if at, err := private.Locate(t.Context(), c); err != nil || at.Sign != nil || at.Length != 5000 {
			t.Errorf("private: %+v, %v", at, err)
		}
		public := open(t, store, name, func(c *s3.Config) {
			c.PublicURL, c.Keys = "https://public.example/x/", []string{"a b/{multihash}", "{multihash}"}
		})
		at, err = public.Locate(t.Context(), c)
		if err != nil || at.Expires {
			t.Fatalf("public: %+v, %v", at, err)
		}
		if a, err := at.Sign(t.Context(), time.Second); err != nil || a != "https://public.example/x/"+source.MultihashName(c) {
			t.Errorf("public: %s, %v", a, err)
		}
		if host, err := b.Host(t.Context()); err != nil || host != strings.TrimPrefix(store.Endpoint, "http://") {
			t.Errorf("host %q, %v", host, err)
		}
		if host, err := private.Host(t.Context()); err != nil || host != "" {
			t.Errorf("private: host %q, %v", host, err)
		}
	})

	t.Run("signed uploads", func(t *testing.T) {
		name := store.CreateBucket(t)
		b := open(t, store, name, nil)
		want := random(70_000, 8)
		c := contentOf(t, source.Raw, want)
		at, err := b.SignPut(t.Context(), c, int64(len(want)), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if at.Valid != time.Hour {
			t.Errorf("valid for %s", at.Valid)
		}
		address, header := at.URL, at.Header
		for what, body := range map[string][]byte{
			"other bytes": random(len(want), 9), "fewer bytes": want[:len(want)-1], "more bytes": append(bytes.Clone(want), 0), "no bytes": nil,
		} {
			if store.Fake != nil && len(body) != len(want) {
				continue // the fake does not look at signatures, which cover the length
			}
			if status := put(t, address, header, body); status < 400 || status > 499 {
				t.Errorf("%s: status %d", what, status)
			}
			if _, err := b.Verified(t.Context(), c); !errors.Is(err, source.ErrNoContent) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if store.Fake == nil {
			bare := header.Clone()
			bare.Del("X-Amz-Checksum-Sha256")
			if status := put(t, address, bare, random(len(want), 9)); status < 400 {
				t.Errorf("without the checksum: status %d", status)
			}
		}
		for range 2 {
			if status := put(t, address, header, want); status != http.StatusOK {
				t.Fatalf("status %d", status)
			}
			if length, err := b.Verified(t.Context(), c); err != nil || length != int64(len(want)) {
				t.Errorf("%d bytes, %v", length, err)
			}
		}
		// What somebody put there otherwise is not vouched for.
		other := contentOf(t, source.Raw, []byte("other"))
		store.Put(t, name, b.Key(other), []byte("forged"))
		if _, err := b.Verified(t.Context(), other); !errors.Is(err, source.ErrNoContent) {
			t.Errorf("forged: %v", err)
		}
		private := open(t, store, name, func(c *s3.Config) { c.Private = true })
		if _, err := private.SignPut(t.Context(), c, 1, time.Hour); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("private: %v", err)
		}
		if _, err := b.SignPut(t.Context(), c, 5<<30+1, time.Hour); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("over 5 GiB: %v", err)
		}
		for _, valid := range []time.Duration{0, -1, s3.MaxValid + 1} {
			if _, err := b.SignPut(t.Context(), c, 1, valid); err == nil {
				t.Errorf("signed for %s", valid)
			}
		}
		// Credentials that end bound what they sign; what they could hardly sign any more goes through the service.
		if at, err := open(t, store, name, lasting(2*time.Hour)).SignPut(t.Context(), c, int64(len(want)), 24*time.Hour); err != nil ||
			at.Valid <= time.Hour || at.Valid > 2*time.Hour || put(t, at.URL, at.Header, want) != http.StatusOK {
			t.Errorf("with credentials of two hours: %+v, %v", at, err)
		}
		if at, err := open(t, store, name, lasting(time.Minute)).SignPut(t.Context(), c, 1, 24*time.Hour); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("with credentials of a minute: %+v, %v", at, err)
		}
	})

	t.Run("uploads", func(t *testing.T) {
		name := store.CreateBucket(t)
		signer, err := wire.GenerateSigner(crand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		want := random(3000, 11)
		b := blob.Blob{Digest: blob.Digest(contentOf(t, source.Raw, want).Hash()), Size: uint64(len(want))}
		allocate := func(bucket source.Remote, b blob.Blob) (*source.Uploads, blob.Address) {
			t.Helper()
			custody, err := source.NewCustody("https://custody.example", source.Guard(bucket, &source.Health{Name: name, Now: time.Now, Log: slog.New(slog.DiscardHandler)}))
			if err != nil {
				t.Fatal(err)
			}
			u, err := custody.Uploads(signer)
			if err != nil {
				t.Fatal(err)
			}
			address, err := u.Allocate(t.Context(), b, time.Now().Add(time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			return u, address
		}
		u, address := allocate(open(t, store, name, nil), b)
		if !strings.HasPrefix(address.URL, store.Endpoint+"/") {
			t.Fatalf("the address is %s", address.URL)
		}
		if _, err := u.Stat(t.Context(), b.Digest); !errors.Is(err, uploads.ErrNoBlob) {
			t.Errorf("before: %v", err)
		}
		header := http.Header{}
		for k, v := range address.Headers {
			header.Set(k, v)
		}
		if status := put(t, address.URL, header, want); status != http.StatusOK {
			t.Errorf("status %d", status)
		}
		if stored, err := u.Stat(t.Context(), b.Digest); err != nil || stored.Size != b.Size {
			t.Errorf("after: %+v, %v", stored, err)
		}
		// Where the bucket cannot take it, the service does.
		for what, a := range map[string]blob.Address{
			"private":                  second(allocate(open(t, store, name, func(c *s3.Config) { c.Private = true }), b)),
			"credentials about to end": second(allocate(open(t, store, name, lasting(time.Minute)), b)),
			"over 5 GiB":               second(allocate(open(t, store, name, nil), blob.Blob{Digest: b.Digest, Size: 6 << 30})),
		} {
			if !strings.HasPrefix(a.URL, "https://custody.example/blob/") {
				t.Errorf("%s: the address is %s", what, a.URL)
			}
		}
		// An address says how long it works.
		_, whole := allocate(open(t, store, name, lasting(2*time.Hour)), b)
		_, half := allocate(open(t, store, name, lasting(30*time.Minute)), b)
		if ends := time.Until(time.Unix(int64(whole.Expires), 0)); ends < 50*time.Minute || ends > time.Hour {
			t.Errorf("the whole hour: it ends in %s", ends)
		}
		if ends := time.Until(time.Unix(int64(half.Expires), 0)); ends < 20*time.Minute || ends > 30*time.Minute || !strings.HasPrefix(half.URL, store.Endpoint+"/") {
			t.Errorf("half an hour: %s ends in %s", half.URL, ends)
		}
	})

	t.Run("no bucket", func(t *testing.T) {
		b := open(t, store, "there-is-no-such-bucket", nil)
		if err := b.Check(t.Context()); err == nil {
			t.Error("a bucket that is not there passes the check")
		}
	})
}

func second[A, B any](_ A, b B) B { return b }

func put(t *testing.T, address string, header http.Header, body []byte) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, address, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header.Clone()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func sign(t *testing.T, b *s3.Bucket, c cid.Cid, store *s3test.Store, name string) string {
	t.Helper()
	good := open(t, store, name, nil)
	at, err := good.Locate(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	right, err := at.Sign(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	// The other bucket may not look at the object, so its signature is taken from any address of it.
	wrong, err := b.Address(t.Context(), c, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if wrong == right {
		t.Fatal("two secrets give one signature")
	}
	return wrong
}

// TestReadBreaks: a download that breaks off goes on where it was; one that does not get on ends, and one of another
// object is never taken for it.
func TestReadBreaks(t *testing.T) {
	want := random(300_000, 5)
	c := contentOf(t, source.Raw, want)
	type answer func(w http.ResponseWriter, r *http.Request, from int)
	whole := func(w http.ResponseWriter, _ *http.Request, from int) {
		w.Header().Set("Content-Length", fmt.Sprint(len(want)-from))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(want[from:])
	}
	// cut sends n bytes of what it promised, and closes the connection.
	cut := func(n int) answer {
		return func(w http.ResponseWriter, _ *http.Request, from int) {
			w.Header().Set("Content-Length", fmt.Sprint(len(want)-from))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(want[from : from+n])
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	}
	status := func(code int) answer {
		return func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(code) }
	}
	length := func(n int) answer {
		return func(w http.ResponseWriter, _ *http.Request, _ int) {
			w.Header().Set("Content-Length", fmt.Sprint(n))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(make([]byte, min(n, 1000)))
		}
	}
	redirect := func(w http.ResponseWriter, _ *http.Request, _ int) {
		w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
	for _, tt := range []struct {
		name    string
		answers []answer
		err     error // any error if errAny
	}{
		{"whole", []answer{whole}, nil},
		{"breaks off thrice, further each time", []answer{cut(1), cut(100_000), cut(1), whole}, nil},
		{"breaks off without a byte, then goes on", []answer{cut(5), cut(0), cut(0), whole}, nil},
		{"gets no further", []answer{cut(5), cut(0), cut(0), cut(0)}, io.ErrUnexpectedEOF},
		{"has changed", []answer{cut(5), status(http.StatusPreconditionFailed)}, errAny},
		{"is gone", []answer{cut(5), status(http.StatusNotFound)}, source.ErrNoContent},
		{"is refused", []answer{cut(5), status(http.StatusForbidden)}, errAny},
		{"is shorter", []answer{length(1000)}, errAny},
		{"is longer", []answer{length(32 << 30)}, errAny},
		{"is elsewhere", []answer{redirect}, errAny},
		{"stalls", []answer{func(w http.ResponseWriter, r *http.Request, from int) {
			w.Header().Set("Content-Length", fmt.Sprint(len(want)-from))
			w.Write(want[:10])
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, whole}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var n atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("ETag", `"it"`)
				if r.Method == http.MethodHead {
					w.Header().Set("Content-Length", fmt.Sprint(len(want)))
					return
				}
				from := 0
				fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
				if m := r.Header.Get("If-Match"); m != `"it"` {
					t.Errorf("If-Match %q", m)
				}
				i := int(n.Add(1)) - 1
				if i >= len(tt.answers) {
					t.Errorf("request %d was not expected", i+1)
					return
				}
				tt.answers[i](w, r, from)
			}))
			t.Cleanup(server.Close)
			b, err := s3.Open(s3.Config{Bucket: "b", Endpoint: server.URL, PathStyle: true, Stall: 300 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			body, _, err := b.Open(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			body.Close()
			switch {
			case tt.err == nil && (err != nil || !bytes.Equal(got, want)):
				t.Errorf("%d bytes, %v", len(got), err)
			case errors.Is(tt.err, errAny) && err == nil, tt.err != nil && !errors.Is(tt.err, errAny) && !errors.Is(err, tt.err):
				t.Errorf("%v, want %v", err, tt.err)
			case !bytes.HasPrefix(want, got):
				t.Error("bytes came that are not the object's")
			}
			if int(n.Load()) != len(tt.answers) {
				t.Errorf("%d requests, want %d", n.Load(), len(tt.answers))
			}
		})
	}
}

var errAny = errors.New("any error")

// TestCredentialsStay: a store that redirects is not followed, so nothing that was signed reaches another host.
func TestCredentialsStay(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the other host got %s with Authorization %q", r.Method, r.Header.Get("Authorization"))
	}))
	t.Cleanup(other.Close)
	store := s3test.NewFake(t)
	name := store.CreateBucket(t)
	store.Fake.Before = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	b := open(t, store, name, nil)
	want := []byte("content")
	c := contentOf(t, source.Raw, want)
	if _, err := b.Stat(t.Context(), c); err == nil || errors.Is(err, source.ErrNoContent) || !strings.Contains(err.Error(), "redirect") {
		t.Errorf("looking: %v", err)
	}
	if _, err := b.Put(t.Context(), c, bytes.NewReader(want), maxBytes); err == nil {
		t.Error("stored")
	}
}

func TestOpenRefuses(t *testing.T) {
	good := s3.Config{Bucket: "b", Endpoint: "https://store.example", Credentials: s3.Credentials{AccessKey: "a", SecretKey: "s"}}
	if _, err := s3.Open(good); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*s3.Config){
		"no bucket":                   func(c *s3.Config) { c.Bucket = "" },
		"neither region nor endpoint": func(c *s3.Config) { c.Endpoint = "" },
		"an endpoint of another kind": func(c *s3.Config) { c.Endpoint = "ftp://store.example" },
		"credentials in an address":   func(c *s3.Config) { c.PublicURL = "https://a:s@store.example" },
		"half a key":                  func(c *s3.Config) { c.Credentials.SecretKey = "" },
		"writing without one":         func(c *s3.Config) { c.Credentials, c.Writable = s3.Credentials{}, true },
		"private and public":          func(c *s3.Config) { c.Private, c.PublicURL = true, "https://public.example" },
		"a key without the hash":      func(c *s3.Config) { c.Keys = []string{"latest.car"} },
		"an unknown placeholder":      func(c *s3.Config) { c.Keys = []string{"{multihash}/{name}"} },
		"a key from the root":         func(c *s3.Config) { c.Keys = []string{"/{multihash}"} },
	} {
		cfg := good
		change(&cfg)
		if _, err := s3.Open(cfg); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

// TestNear: a bucket says where its content lies, by its own name and its region.
func TestNear(t *testing.T) {
	for _, tt := range []struct {
		config s3.Config
		want   string
	}{
		{s3.Config{Bucket: "b", Region: "eu-west-1"}, "bucket:b region:eu-west-1"},
		{s3.Config{Bucket: "b", Endpoint: "https://store.example"}, "bucket:b"},
		{s3.Config{Bucket: "b", Region: "weur", Endpoint: "https://store.example"}, "bucket:b region:weur"},
	} {
		b, err := s3.Open(tt.config)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(b.Near(), " "); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

// TestFailsForAMoment: a store that fails five times in a row is asked once more.
func TestFailsForAMoment(t *testing.T) {
	t.Parallel()
	store := s3test.NewFake(t)
	b := open(t, store, store.CreateBucket(t), nil)
	body := random(1000, 1)
	content := contentOf(t, cid.Raw, body)
	store.Put(t, b.Name(), b.Key(content), body)
	var asked atomic.Int32
	store.Fake.Before = func(w http.ResponseWriter, _ *http.Request) bool {
		if asked.Add(1) > 5 {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	if length, err := b.Stat(t.Context(), content); err != nil || length != 1000 {
		t.Errorf("asked %d times: %d bytes, %v", asked.Load(), length, err)
	}
}
