package source

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/storefront"
)

const testBase = "https://storefront.example"

func newCustody(t testing.TB, base string, dirs ...Place) *Custody {
	t.Helper()
	c, err := NewCustody(base, dirs...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// operatorDir returns an operator's directory that holds b under the name of its CID.
func operatorDir(t testing.TB, name string, b []byte) *Dir {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenReadOnlyDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestCustody(t *testing.T) {
	ctx := t.Context()
	b := pattern(500, 0)
	content := contentOf(t, CAR, b)
	operator := operatorDir(t, content.String()+".car", []byte("shorter"))
	uploads := newDir(t)
	c := newCustody(t, testBase+"/", uploads, operator)

	want := storefront.Content{CID: content, Length: 7, URL: testBase + "/content/" + content.String()}
	got, err := c.Stat(ctx, content)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(cid.Cid{})); diff != "" || err != nil {
		t.Errorf("operator's content: %v %s", err, diff)
	}

	// An upload is stored although the operator has the content, and is what is read from then on.
	created, err := c.Put(ctx, content, bytes.NewReader(b), noLimit)
	if err != nil || !created {
		t.Fatalf("Put: %t, %v", created, err)
	}
	wantContent(t, uploads, content, b)
	at, err := c.Locate(ctx, content)
	if err != nil || at.Length != 500 || at.Expires {
		t.Fatalf("Locate: %+v, %v", at, err)
	}
	if url, err := at.Sign(ctx, time.Second); url != want.URL || err != nil {
		t.Errorf("Locate: %s, %v", url, err)
	}
	body, length, err := c.Open(ctx, content)
	if err != nil || length != 500 {
		t.Fatalf("Open: %d, %v", length, err)
	}
	body.Close()

	absent := contentOf(t, Raw, []byte("absent"))
	if _, err := c.Stat(ctx, absent); !errors.Is(err, ErrNoContent) {
		t.Errorf("absent content: %v", err)
	}
	if _, err := c.Stat(ctx, cid.NewCidV1(cid.DagProtobuf, content.Hash())); !errors.Is(err, ErrNoContent) || !errors.Is(err, ErrUnsupported) {
		t.Errorf("unsupported content: %v", err)
	}
}

func TestCustodyWithoutUploads(t *testing.T) {
	b := pattern(500, 0)
	content := contentOf(t, Raw, b)
	c := newCustody(t, testBase, operatorDir(t, content.String(), b))
	if _, err := c.Put(t.Context(), content, bytes.NewReader(b), noLimit); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Put: %v, want ErrReadOnly", err)
	}
}

// TestCustodyWithBrokenDirectory: while a directory cannot be read, content that only it may have is not said to be absent.
func TestCustodyWithBrokenDirectory(t *testing.T) {
	b := pattern(500, 0)
	content := contentOf(t, Raw, b)
	broken := operatorDir(t, "x", nil)
	broken.path = filepath.Join(broken.path, "x") // a file: looking for names below it fails
	uploads := newDir(t)
	c := newCustody(t, testBase, broken, uploads)
	if _, err := c.Stat(t.Context(), content); err == nil || errors.Is(err, ErrNoContent) {
		t.Errorf("Stat: %v, want an error other than ErrNoContent", err)
	}
	put(t, uploads, b)
	if got, err := c.Stat(t.Context(), content); err != nil || got.Length != 500 {
		t.Errorf("Stat of content that another directory has: %v, %v", got, err)
	}
}

func TestNewCustodyRefuses(t *testing.T) {
	dir := newDir(t)
	for _, base := range []string{"", "storefront.example", "ftp://x", "http://", "http://user:pw@x", "http://x?q", "http://x#f", "http://x\x00"} {
		if _, err := NewCustody(base, dir); err == nil {
			t.Errorf("public address %q was accepted", base)
		}
	}
	if _, err := NewCustody(testBase); err == nil {
		t.Error("a custody without directories was accepted")
	}
}

// nearDir is a directory that says where it is.
type nearDir struct {
	*Dir
	places []string
}

func (d nearDir) Near() []string { return d.places }

// TestCustodyNear: content lies where the place is that has it, not where others are that were asked first.
func TestCustodyNear(t *testing.T) {
	b := pattern(500, 0)
	content := contentOf(t, CAR, b)
	has := operatorDir(t, content.String()+".car", b)
	for _, tt := range []struct {
		places []Place
		want   []string
	}{
		{[]Place{has}, nil},
		{[]Place{nearDir{newDir(t), []string{"bucket:first"}}, nearDir{has, []string{"bucket:second", "region:eu"}}}, []string{"bucket:second", "region:eu"}},
		{[]Place{nearDir{newDir(t), []string{"bucket:first"}}, has}, nil},
	} {
		got, err := newCustody(t, testBase, tt.places...).Stat(t.Context(), content)
		if diff := cmp.Diff(tt.want, got.Places); diff != "" || err != nil {
			t.Errorf("%v %s", err, diff)
		}
	}
}
