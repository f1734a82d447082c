package storefront_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/storefront"
)

// elsewhere is a custody that is empty until content is imported into it, and the importer.
type elsewhere struct {
	*shop
	length int64 // of the content where it is looked for
	err    error // of looking
	asked  int
	here   bool
}

func (e *elsewhere) Stat(ctx context.Context, c cid.Cid) (storefront.Content, error) {
	if !e.here {
		return storefront.Content{}, fmt.Errorf("%s: %w", c, storefront.ErrNoContent)
	}
	return e.shop.Stat(ctx, c)
}

func (e *elsewhere) Import(_ context.Context, _ cid.Cid, fits func(int64) error) error {
	e.asked++
	if e.err != nil {
		return e.err
	}
	if err := fits(e.length); err != nil {
		return err
	}
	e.here = true
	return nil
}

// TestImport: content that is not in custody is looked for elsewhere, again and again with growing pauses, and validated
// once it is there. Nothing that a source does ends the offer.
func TestImport(t *testing.T) {
	s := newShop(t, storefront.Policy{}, nil)
	e := &elsewhere{shop: s, length: int64(len(s.Bytes)), err: errors.New("source.example: too slow")}
	s.Custody, s.Importer = e, e
	if err := s.offer(); err != nil {
		t.Fatal(err)
	}
	waits := func(reason string, asked int) {
		t.Helper()
		s.settle()
		st := s.standing()
		if st.State != string(storefront.Submitted) || !strings.Contains(st.Reason, reason) || e.asked != asked {
			t.Fatalf("it is %s after %d imports, because: %s; want %d and %q", st.State, e.asked, st.Reason, asked, reason)
		}
	}
	waits("too slow", 1)
	waits("too slow", 1) // not before the pause is over

	e.err = fmt.Errorf("nobody has it: %w", storefront.ErrNoContent)
	s.stage.Clock.Advance(time.Hour)
	waits("nowhere else", 2)

	e.err, e.length = nil, 1<<30
	s.stage.Clock.Advance(time.Hour)
	waits("make a piece of", 3)
	if e.here {
		t.Fatal("content of another length was taken")
	}

	e.length = int64(len(s.Bytes))
	s.stage.Clock.Advance(time.Hour)
	s.settle()
	if st := s.standing(); st.State != string(storefront.Offered) || e.asked != 4 {
		t.Fatalf("it is %s after %d imports, because: %s", st.State, e.asked, st.Reason)
	}
}

// TestImportExpires: content that is nowhere for the whole window expires, and is not looked for any more.
func TestImportExpires(t *testing.T) {
	s := newShop(t, storefront.Policy{}, nil)
	e := &elsewhere{shop: s, err: storefront.ErrNoContent}
	s.Custody, s.Importer = e, e
	if err := s.offer(); err != nil {
		t.Fatal(err)
	}
	for range 24 * 8 {
		s.settle()
		s.stage.Clock.Advance(time.Hour)
	}
	s.settle()
	asked := e.asked
	if st := s.standing(); st.State != string(storefront.Expired) {
		t.Fatalf("it is %s, because: %s", st.State, st.Reason)
	}
	s.stage.Clock.Advance(24 * time.Hour)
	s.settle()
	if e.asked != asked || asked < 10 {
		t.Errorf("it was looked for %d times, then %d", asked, e.asked)
	}
}
