package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/storacha/w3filecoin/internal/s3test"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/source"
)

// TestBuckets runs the whole pipeline on content in two buckets of a real S3-compatible server: uploads go to one, the
// operator fills the other. What is validated and what the simulated provider downloads comes from there, by signed
// addresses; content under a name that is not its hash is never validated.
func TestBuckets(t *testing.T) {
	store := s3test.Start(t)
	uploads, operators := store.CreateBucket(t), store.CreateBucket(t)
	settings := ""
	for _, bucket := range []string{uploads, operators} {
		settings += fmt.Sprintf(`
[[storefront.buckets]]
bucket = %q
endpoint = %q
region = %q
path_style = true
access_key = %q
secret_key = %q
uploads = %t
by_key = %[6]t
keys = ["{multihash}", "{car}/{car}.car"]
`, bucket, store.Endpoint, store.Region, store.AccessKey, store.SecretKey, bucket == uploads)
	}
	r := rand.New(rand.NewPCG(seed(t), 0))
	n := newTogether(t, settings)

	var list []*offering
	var contents []content
	for i := range 6 {
		c := newContent(t, r, 0)
		var o *offering
		var err error
		if i%2 == 0 {
			o, err = n.offer(t.Context(), n.front, c)
		} else {
			store.Put(t, operators, source.MultihashName(c.cid), c.bytes)
			o, err = n.invoke(t.Context(), n.front, c)
		}
		if err != nil {
			t.Fatal(err)
		}
		list, contents = append(list, o), append(contents, c)
	}
	n.settle(t, r, patience)
	n.concluded(t, n.chainFile())

	keys := store.Keys(t, uploads)
	for i, c := range contents {
		if uploaded := i%2 == 0; slices.Contains(keys, source.MultihashName(c.cid)) != uploaded {
			t.Errorf("content %d is in the bucket for uploads: %t, want %t", i, !uploaded, uploaded)
		}
	}
	stored := 0
	err := filepath.WalkDir(filepath.Join(n.data, "uploads"), func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			stored++
		}
		return err
	})
	if err != nil || stored != 0 {
		t.Errorf("%d files are in the directory for uploads, %v", stored, err)
	}

	// A storage provider is sent to the bucket, and finds the bytes there; ranges too.
	base := n.front.url
	for i, c := range contents {
		location := redirect(t, base+"/piece/"+c.piece.String()+"?expires=60")
		if !strings.HasPrefix(location, store.Endpoint+"/") || !strings.Contains(location, "X-Amz-Expires=60&") {
			t.Errorf("piece %d is at %s", i, location)
		}
		if got := download(t, location, ""); !bytes.Equal(got, c.bytes) {
			t.Errorf("piece %d: %d bytes came, not its %d", i, len(got), len(c.bytes))
		}
		if got := download(t, base+"/content/"+c.cid.String(), "bytes=7-106"); !bytes.Equal(got, c.bytes[7:107]) {
			t.Errorf("content %d: a range of %d bytes came", i, len(got))
		}
	}

	// A provider that takes one file per deal gets the aggregate as one, read from the buckets on the way.
	st, err := list[0].standing(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	whole := download(t, base+"/aggregate/"+st.Aggregate, "")
	if sum, err := piece.Sum(whole); err != nil || sum.String() != st.Aggregate {
		t.Errorf("the file of aggregate %s, %d bytes, is %s, %v", st.Aggregate, len(whole), sum, err)
	}
	if got := download(t, base+"/aggregate/"+st.Aggregate, "bytes=1000-300999"); !bytes.Equal(got, whole[1000:301_000]) {
		t.Errorf("a range of %d bytes of the aggregate is something else", len(got))
	}
	key := source.MultihashName(contents[0].cid)
	if got := download(t, base+"/key/"+key+"?bucket="+uploads, ""); !bytes.Equal(got, contents[0].bytes) {
		t.Errorf("by key: %d bytes came", len(got))
	}

	// Bytes that are not what their key says.
	forged := newContent(t, r, 5000)
	store.Put(t, operators, source.MultihashName(forged.cid), newContent(t, r, 5000).bytes)
	o, err := n.invoke(t.Context(), n.front, forged)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the forged content is refused", func(ctx context.Context) error {
		st, err := o.standing(ctx)
		if err != nil {
			return err
		}
		if st.State != "submitted" || !strings.Contains(st.Reason, "not this content") {
			return fmt.Errorf("it is %s, because: %s", st.State, st.Reason)
		}
		return nil
	})
	// The operator mends it, and all is well.
	store.Put(t, operators, source.MultihashName(forged.cid), forged.bytes)
	n.settle(t, r, patience)
	n.stop()
	t.Logf("%d pieces from buckets have deals", len(list)+1)
}

// redirect returns where a URL sends a client.
func redirect(t testing.TB, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusFound {
		t.Fatalf("%s answered %s", url, resp.Status)
	}
	return resp.Header.Get("Location")
}

// download reads a URL, or a range of it.
func download(t testing.TB, url, byteRange string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := http.StatusOK
	if byteRange != "" {
		req.Header.Set("Range", byteRange)
		want = http.StatusPartialContent
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		t.Fatalf("%s answered %s, %v", url, resp.Status, err)
	}
	return b
}
