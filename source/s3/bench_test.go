package s3_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/compute"
	"github.com/storacha/w3filecoin/internal/s3test"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/source"
)

// BenchmarkValidate reads and hashes content of 64 MiB as compute does, several at a time, from a plain HTTP server and
// from a bucket by signed addresses, beside the hashing of the same bytes from memory, which is the limit. The bucket is
// one of a real server if `W3FILECOIN_VERSITYGW` names it. It reports how much the heap grows per validation under way,
// of this process; without a real server that includes what the fake needs.
func BenchmarkValidate(b *testing.B) {
	const size = 64 << 20
	data := random(size, 1)
	content := contentOf(b, source.Raw, data)

	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	defer plain.Close()
	kind, store := "s3 fake", (*s3test.Store)(nil)
	if os.Getenv(s3test.Variable) != "" {
		kind, store = "s3", s3test.Start(b)
	} else {
		store = s3test.NewFake(b)
	}
	bucket := open(b, store, store.CreateBucket(b), nil)
	if _, err := bucket.Put(b.Context(), content, bytes.NewReader(data), size); err != nil {
		b.Fatal(err)
	}
	at, err := bucket.Locate(b.Context(), content)
	if err != nil {
		b.Fatal(err)
	}
	signed, err := at.Sign(b.Context(), time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	fetcher, err := source.NewHTTP(source.HTTPConfig{AllowPrefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err != nil {
		b.Fatal(err)
	}
	read := func(url string) error {
		_, err := compute.Read(b.Context(), fetcher, compute.Location{URL: url, Length: size}, content)
		return err
	}
	for _, from := range []struct {
		name string
		do   func() error
	}{
		{"memory", func() error { _, err := piece.HashReader(b.Context(), bytes.NewReader(data)); return err }},
		{"http", func() error { return read(plain.URL) }},
		{kind, func() error { return read(signed) }},
	} {
		for _, parallel := range []int{1, 4} {
			b.Run(fmt.Sprintf("%s/parallel=%d", from.name, parallel), func(b *testing.B) {
				b.SetBytes(int64(size * parallel))
				peak := heapPeak()
				for b.Loop() {
					var group sync.WaitGroup
					for range parallel {
						group.Go(func() {
							if err := from.do(); err != nil {
								b.Error(err)
							}
						})
					}
					group.Wait()
				}
				b.ReportMetric(float64(peak())/float64(parallel)/(1<<20), "heap-MiB/validation")
			})
		}
	}
}

// heapPeak returns a function that says by how many bytes the heap has grown at most since, garbage included.
func heapPeak() func() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before, top := m.HeapAlloc, m.HeapAlloc
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			runtime.ReadMemStats(&m)
			top = max(top, m.HeapAlloc)
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	return func() uint64 {
		close(stop)
		<-done
		return top - before
	}
}
