package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/internal/s3test"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/source"
)

// TestBackfillStateTorn cuts the state at every byte: what is done before the cut is done, nothing else is, and what is written after it is read again.
func TestBackfillStateTorn(t *testing.T) {
	dir := t.TempDir()
	scope := backfillScope{backfillFormat, "/srv", "did:key:zStorefront", "did:key:zAgent"}
	content, err := rawContent(piece.Content{})
	if err != nil {
		t.Fatal(err)
	}
	link, err := piece.Sum([]byte("some bytes"))
	if err != nil {
		t.Fatal(err)
	}
	h := hashedContent{content, link, 10}
	items := []candidate{{name: "a", version: "1"}, {name: "b"}, {name: "a", version: "2"}}
	path := filepath.Join(dir, "whole")
	s, err := openBackfillState(path, scope)
	if err != nil {
		t.Fatal(err)
	}
	ends := map[int]int{} // item to length of the file once it is done
	for i := range items {
		if err := s.found(&items[i], h); err != nil {
			t.Fatal(err)
		}
		if err := s.finish(&items[i], h, content); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = int(info.Size())
	}
	if _, err := openBackfillState(path, scope); err == nil || !strings.Contains(err.Error(), "another backfill") {
		t.Errorf("two have the state at a time: %v", err)
	}
	if err := s.f.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) + 1 {
		// Every byte of the first lines, and those about the end of each other one.
		if cut > ends[0]+2 && cut < len(whole) && !strings.ContainsRune(string(whole[cut-2:cut+1]), '\n') {
			continue
		}
		// What is behind the cut may be missing, or be something that was never written: not in the first line, which is durable before others follow.
		for _, tail := range []string{"", "\x00\x00\x00", "\x00\n{\n"} {
			if tail != "" && (cut < len(scope.line()) || !strings.ContainsRune(string(whole[cut-2:min(cut+1, len(whole))]), '\n')) {
				continue
			}
			path := filepath.Join(dir, "cut")
			if err := os.WriteFile(path, append(whole[:cut:cut], tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := openBackfillState(path, scope)
			if err != nil {
				t.Fatalf("cut at %d, %q: %v", cut, tail, err)
			}
			for i := range items {
				if _, _, done := s.lookup(&items[i]); done != (cut >= ends[i]) {
					t.Errorf("cut at %d, %q: item %d is done: %t", cut, tail, i, done)
				}
			}
			last := candidate{name: "last"}
			if err := s.finish(&last, h, cid.Undef); err != nil {
				t.Fatal(err)
			}
			s.f.Close()
			if s, err = openBackfillState(path, scope); err != nil {
				t.Fatalf("cut at %d, %q, and written on: %v", cut, tail, err)
			}
			if _, _, done := s.lookup(&last); !done {
				t.Errorf("cut at %d, %q: what came after it is lost", cut, tail)
			}
			s.f.Close()
		}
	}
}

// TestBackfillFoundIsKept: what one run hashed, another one does not read again.
func TestBackfillFoundIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	scope := backfillScope{backfillFormat, "/srv", "did:key:zStorefront", "did:key:zAgent"}
	link, err := piece.Sum([]byte("some bytes"))
	if err != nil {
		t.Fatal(err)
	}
	content := cid.MustParse("bafkreibkkmj6prwzfko7zcaf6vk4xrbjfiqhjzumcwrxcf5qmxkmtg45ma")
	for range 2 {
		s, err := openBackfillState(path, scope)
		if err != nil {
			t.Fatal(err)
		}
		c := candidate{name: "a", version: "1"}
		h, looked, done := s.lookup(&c)
		if looked && (done || h != hashedContent{content, link, 10}) {
			t.Errorf("kept %v, done: %t", h, done)
		}
		if !looked {
			if err := s.found(&c, hashedContent{content, link, 10}); err != nil {
				t.Fatal(err)
			}
		}
		changed := candidate{name: "a", version: "2"}
		if _, looked, _ := s.lookup(&changed); looked {
			t.Error("a changed item is taken for what it was")
		}
		s.f.Close()
	}
}

// TestBackfillStorefrontLeaves: when the storefront cannot be reached any more the run ends, with what is done kept, rather than fail every item.
func TestBackfillStorefrontLeaves(t *testing.T) {
	agent, storefront := chaintest.Key("agent"), chaintest.Key("storefront")
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/version" || asked.Add(1) > 3 {
			http.Error(w, "gone", http.StatusBadGateway)
			return
		}
		_ = json.NewEncoder(w).Encode(roles.Version{DID: storefront.KeyDID().String(), PublicKey: storefront.KeyDID().String()})
	}))
	defer server.Close()
	dir := t.TempDir()
	for i := range 50 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d", i)), []byte{byte(i)}, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var out strings.Builder
	a := newApp(strings.NewReader(""), &out, io.Discard)
	a.json = true
	o, err := dialStorefront(t.Context(), server.URL, agent)
	if err != nil {
		t.Fatal(err)
	}
	o.app = a
	b := &backfill{offerer: o, jobs: 1, upload: true}
	b.state, err = openBackfillState(filepath.Join(t.TempDir(), "state"), backfillScope{Backfill: backfillFormat})
	if err != nil {
		t.Fatal(err)
	}
	defer b.state.f.Close()
	err = b.run(t.Context(), directory{root}.walk(t.Context(), b.state.info))
	if code, _ := exitCode(t.Context(), err); code != exitFailure || err == nil || !strings.Contains(err.Error(), "cannot be reached any more") {
		t.Errorf("exit code %d, %v", code, err)
	}
	var report struct {
		Items  []itemReport
		Totals backfillTotals
	}
	if err := json.Unmarshal([]byte(out.String()), &report); err != nil {
		t.Fatalf("%v in\n%s", err, &out)
	}
	// It answered who it is twice more: so long it was the item's fault.
	if report.Totals.Failed != 2 || len(report.Items) != 2 || report.Totals.Complete || report.Items[0].Error.Name != "StorefrontFailed" {
		t.Errorf("report: %+v", report)
	}
}

// FuzzList: whatever a list holds, each row gives one item or none, and nothing outside of the base is opened.
func FuzzList(f *testing.F) {
	f.Add([]byte("content,url\nbafkreibkkmj6prwzfko7zcaf6vk4xrbjfiqhjzumcwrxcf5qmxkmtg45ma,https://example.com/x\n"))
	f.Add([]byte("key\r\na.txt\r\n\"b, c.txt\"\r\n../secret\r\n"))
	f.Add([]byte("\ufeffbafkreibkkmj6prwzfko7zcaf6vk4xrbjfiqhjzumcwrxcf5qmxkmtg45ma\n\n,,\n\"\n"))
	f.Add([]byte("bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi," + strings.Repeat("x", maxRow) + "\nlast"))
	f.Add([]byte(strings.Repeat("long", 300) + "\nbafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi," + strings.Repeat("x", 2000) + "\n"))
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.txt"), []byte("within"), 0o600); err != nil {
		f.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file := filepath.Join(t.TempDir(), "list.csv")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		l := list{file: file, base: directory{root}}
		rows := 0
		for find, err := range l.walk(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			rows++
			c := find(t.Context())
			switch {
			case c.name == "":
				t.Error("an item without a name")
			case c.wrong != nil:
				if c.wrong.Name == "" || c.wrong.Message == "" || len(c.wrong.Message) > 1000 {
					t.Errorf("%s: %+v", c.name, c.wrong)
				}
			case c.open == nil:
				t.Errorf("%s cannot be opened", c.name)
			case c.content.Defined() && source.Check(c.content) != nil:
				t.Errorf("%s is no content", c.content)
			case !c.held && !strings.Contains(c.name, "http"):
				body, err := c.open(context.Background())
				if err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				if b, err := io.ReadAll(body); err != nil || string(b) != "within" {
					t.Errorf("%s: %q, %v", c.name, b, err)
				}
				body.Close()
			}
		}
		if limit := strings.Count(string(text), "\n") + 1; rows > limit {
			t.Errorf("%d items of %d rows", rows, limit)
		}
	})
}

// TestBackfillBucket offers the objects of a bucket: those that the storefront reads there itself are not stored, the others are. Keys of a list are looked
// up there too.
func TestBackfillBucket(t *testing.T) {
	store := s3test.NewFake(t)
	store.Fake.Page = 2
	bucket := store.CreateBucket(t)
	r := rand.New(rand.NewPCG(seed(t), 0))
	kept, loose, car := newContent(t, r, 5000), newContent(t, r, 3000), newContent(t, r, 4000)
	archive := cid.NewCidV1(source.CAR, car.cid.Hash())
	store.Put(t, bucket, "in/"+source.MultihashName(kept.cid), kept.bytes)
	store.Put(t, bucket, "in/some thing+else.mp4", loose.bytes)
	store.Put(t, bucket, "in/"+archive.String()+"/"+archive.String()+".car", car.bytes)
	store.Put(t, bucket, "in/folder/", nil)
	store.Put(t, bucket, "in/"+loose.cid.String(), car.bytes) // not what its key says
	store.Put(t, bucket, "elsewhere", loose.bytes)
	n := newTogether(t, fmt.Sprintf(`
[[storefront.buckets]]
bucket = %q
endpoint = %q
path_style = true
prefix = "in/"
access_key = %q
secret_key = %q
`, bucket, store.Endpoint, store.AccessKey, store.SecretKey))
	t.Setenv("AWS_ACCESS_KEY_ID", store.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", store.SecretKey)
	dir := t.TempDir()
	key, listed := filepath.Join(dir, "agent.pem"), filepath.Join(dir, "list.csv")
	if err := os.WriteFile(key, chaintest.Key("backfiller").PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(listed, fmt.Appendf(nil, "content,key\n%s,some thing+else.mp4\n%s,absent\n", loose.cid, loose.cid), 0o600); err != nil {
		t.Fatal(err)
	}
	backfill := func(want int, state string, args ...string) (items map[string]itemReport, totals backfillTotals) {
		t.Helper()
		var out, errs strings.Builder
		args = append([]string{"backfill", "--json", "--endpoint", store.Endpoint, "--path-style", "--url", n.front.url, "--key", key,
			"--state", filepath.Join(dir, state)}, args...)
		if code := run(t.Context(), newApp(strings.NewReader(""), &out, &errs), args); code != want {
			t.Fatalf("exit code %d, want %d: %s", code, want, &errs)
		}
		var report struct {
			Items  []itemReport
			Totals backfillTotals
		}
		if err := json.Unmarshal([]byte(out.String()), &report); err != nil {
			t.Fatalf("%v in\n%s", err, &out)
		}
		items = map[string]itemReport{}
		for _, i := range report.Items {
			items[i.Item] = i
		}
		return items, report.Totals
	}

	address := "s3://" + bucket + "/in/"
	items, totals := backfill(exitPartly, "state", address)
	for name, want := range map[string]struct {
		content cid.Cid
		stored  bool
	}{
		source.MultihashName(kept.cid):                     {kept.cid, false},
		"some thing+else.mp4":                              {loose.cid, true},
		archive.String() + "/" + archive.String() + ".car": {archive, true},
	} {
		if got := items[name]; got.Outcome != outcomeOffered || got.Content != want.content.String() || got.Stored != want.stored {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	if got := items[loose.cid.String()]; got.Error == nil || got.Error.Name != nameMismatch {
		t.Errorf("an object with a wrong name: %+v", got)
	}
	if len(items) != 4 || totals != (backfillTotals{Items: 4, Offered: 3, Failed: 1, Bytes: 12_000, Complete: true}) {
		t.Errorf("totals: %+v", totals)
	}
	if _, totals = backfill(exitPartly, "state", address); totals != (backfillTotals{Items: 4, Before: 3, Failed: 1, Complete: true}) {
		t.Errorf("again: %+v", totals)
	}
	items, _ = backfill(exitPartly, "list", listed, "--base", address)
	if got := items[loose.cid.String()+",some thing+else.mp4"]; got.Content != loose.cid.String() || got.Error != nil {
		t.Errorf("by a key of a list: %+v", got)
	}
	if got := items[loose.cid.String()+",absent"]; got.Error == nil || got.Error.Name != nameNotThere {
		t.Errorf("by a key that is not there: %+v", got)
	}
}

// TestBackfillClaims: with --no-upload the addresses of a list go with the offers, and the storefront brings the content from there.
func TestBackfillClaims(t *testing.T) {
	r := rand.New(rand.NewPCG(seed(t), 0))
	c := newContent(t, r, 20_000)
	far := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(c.bytes) }))
	defer far.Close()
	n := newTogether(t, `allow_hosts = ["127.0.0.1"]`)
	dir := t.TempDir()
	key, listed := filepath.Join(dir, "agent.pem"), filepath.Join(dir, "list.csv")
	if err := os.WriteFile(key, chaintest.Key("backfiller").PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(listed, fmt.Appendf(nil, "%s,%s/far\n", c.cid, far.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs strings.Builder
	if code := run(t.Context(), newApp(strings.NewReader(""), &out, &errs), []string{"backfill", listed, "--no-upload", "--url", n.front.url, "--key", key,
		"--state", filepath.Join(dir, "state"), "--allow-host", "127.0.0.1"}); code != exitOK {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	o := &offerer{url: n.front.url, http: new(http.Client)}
	eventually(t, "the content is brought from where it is, and validated", func(ctx context.Context) error {
		var s capabilities.Status
		if err := o.getJSON(ctx, "/status/"+c.cid.String(), &s); err != nil {
			return err
		}
		if p := s.Pieces[0]; p.State == "submitted" {
			return fmt.Errorf("it is %s, %s", p.State, p.Reason)
		}
		return nil
	})
	held, err := o.holds(t.Context(), c.cid)
	if err != nil || !held {
		t.Errorf("the storefront holds it: %t, %v", held, err)
	}
}
