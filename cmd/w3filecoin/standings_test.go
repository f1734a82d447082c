package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/memory"
	"github.com/storacha/w3filecoin/store/sqlite"
)

// condemn notes so many wrong offers with a subject.
func condemn(ctx context.Context, rows store.Rows, now func() time.Time, subject, cause string, times int) error {
	register := standing.New(rows, standing.DefaultPolicy(), now)
	for n := range times {
		if _, err := register.Wrong(ctx, subject, store.RawBlob(fmt.Append(nil, subject, n)).CID, cause); err != nil {
			return err
		}
	}
	return nil
}

// condemns is a command of scripts: condemns DIR ROLE SUBJECT N CAUSE. The role's database is in DIR/ROLE.
func condemns(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 5 {
		ts.Fatalf("usage: condemns DIR ROLE SUBJECT N CAUSE")
	}
	var n int
	_, err := fmt.Sscan(args[3], &n)
	ts.Check(err)
	engine, err := sqlite.Open(filepath.Join(ts.MkAbs(args[0]), args[1]), sqlite.Options{Now: time.Now})
	ts.Check(err)
	ts.Check(errors.Join(condemn(context.Background(), engine, time.Now, args[2], args[4], n), engine.Close()))
}

// TestStandingBooks: databases that are open, and the admin interface, tell the same, page by page, and pardon.
func TestStandingBooks(t *testing.T) {
	for _, remote := range []bool{false, true} {
		t.Run(fmt.Sprint("remote ", remote), func(t *testing.T) {
			var open openDatabases
			var want []string
			for role, subjects := range map[string][]string{
				storefrontRole: {"agent/did:key:z6MkA", "agent/did:web:a.example%3A8080", "node/did:web:n.example", "provider/did:key:z6MkP"},
				aggregatorRole: {"storefront/did:web:s.example"},
				dealerRole:     nil,
			} {
				engine := memory.New(memory.Options{Now: time.Now, IndexLag: -1, IndexLagCommits: -1})
				for _, s := range subjects {
					if err := condemn(t.Context(), engine, time.Now, s, "it was wrong", 4); err != nil {
						t.Fatal(err)
					}
					want = append(want, role+"/"+s)
				}
				open = append(open, roleRows{role, engine})
			}
			slices.SortFunc(open, func(a, b roleRows) int { return slices.Index(allRoles, a.role) - slices.Index(allRoles, b.role) })
			var book standingBook = open
			if remote {
				server := httptest.NewServer(adminHandler(open, "a token of some length", slog.New(slog.DiscardHandler)))
				defer server.Close()
				book = remoteDead{server.URL, "a token of some length"}
				if _, _, err := (remoteDead{server.URL, "another token"}).standings(t.Context(), "", "", 0); err == nil {
					t.Error("another token was accepted")
				}
				resp, err := http.Get(server.URL + "/standings")
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusUnauthorized {
					t.Errorf("without a token: %s", resp.Status)
				}
			}
			list := func(role string, limit int) (ids []string) {
				t.Helper()
				for cursor := ""; ; {
					page, next, err := book.standings(t.Context(), role, cursor, limit)
					if err != nil || len(page) > limit {
						t.Fatal(len(page), err)
					}
					for _, s := range page {
						ids = append(ids, s.ID)
						if s.Level != "quarantined" || s.Wrong != 4 || s.Cause != "it was wrong" || s.Since.IsZero() {
							t.Errorf("%+v", s)
						}
					}
					if cursor = next; cursor == "" {
						return ids
					}
				}
			}
			slices.SortFunc(want, func(a, b string) int {
				index := func(s string) int { return slices.Index(allRoles, s[:strings.Index(s, "/")]) }
				if index(a) != index(b) {
					return index(a) - index(b)
				}
				return strings.Compare(a, b)
			})
			for limit := 1; limit < 7; limit++ {
				if got := list("", limit); !slices.Equal(got, want) {
					t.Errorf("in pages of %d: %q, want %q", limit, got, want)
				}
			}
			if got := list(aggregatorRole, 10); !slices.Equal(got, want[len(want)-1:]) {
				t.Errorf("of the aggregator: %q", got)
			}
			if _, _, err := book.standings(t.Context(), "", "no cursor", 10); err == nil {
				t.Error("a cursor that is none was accepted")
			}
			for _, text := range want {
				id, err := parseStandingID(text)
				if err != nil {
					t.Fatal(err)
				}
				if err := book.pardon(t.Context(), id); err != nil {
					t.Errorf("pardoning %s: %v", id, err)
				}
			}
			if got := list("", 10); len(got) != 0 {
				t.Errorf("pardoned: %q", got)
			}
			for _, id := range []standingID{{storefrontRole, "agent", "did:key:z6MkB"}, {computeRole, "agent", "did:key:z6MkA"}} {
				if err := book.pardon(t.Context(), id); !errors.Is(err, store.ErrNotFound) {
					t.Errorf("pardoning %s: %v", id, err)
				}
			}
		})
	}
}
