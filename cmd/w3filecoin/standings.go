package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store"
)

// standingBook is what some roles have against those who offered to them, or computed for them: in databases that this process has open, or behind the admin
// interface of another one.
type standingBook interface {
	// standings returns a page in order of role and subject, of one role unless that is empty. next is empty if there are no more.
	standings(ctx context.Context, role, cursor string, limit int) (list []shownStanding, next string, err error)
	// pardon takes a subject's score away; the error wraps store.ErrNotFound if nothing was proven against it.
	pardon(ctx context.Context, id standingID) error
}

// standingID names a subject: the role that has something against it, what it is there, and its DID, "storefront/agent/did:key:z6Mk…".
type standingID struct{ role, kind, did string }

func (id standingID) String() string  { return id.role + "/" + id.subject() }
func (id standingID) subject() string { return id.kind + "/" + id.did }

func parseStandingID(text string) (standingID, error) {
	role, rest, _ := strings.Cut(text, "/")
	kind, did, _ := strings.Cut(rest, "/")
	if !slices.Contains(allRoles, role) || kind == "" || !strings.HasPrefix(did, "did:") {
		return standingID{}, usage("w3filecoin admin standings list shows them, like storefront/agent/did:key:z6Mk…", "%q names nobody", text)
	}
	return standingID{role, kind, did}, nil
}

// shownStanding is a subject as it is shown.
type shownStanding struct {
	ID    string  `json:"id"`
	Level string  `json:"level"` // good, quarantined, refused
	Score float64 `json:"score"`
	// RetryAfter is in how many seconds a subject that is refused is not any more.
	RetryAfter int64     `json:"retryAfter,omitempty"`
	Wrong      uint64    `json:"wrong"`
	Cause      string    `json:"cause"` // the latest of what was proven wrong
	Since      time.Time `json:"since"` // of the cause
	Pardoned   time.Time `json:"pardoned,omitzero"`
}

func showStanding(role string, s standing.Standing) shownStanding {
	return shownStanding{ID: role + "/" + s.Subject, Level: s.Level.String(), Score: s.Score, RetryAfter: int64(s.RetryAfter / time.Second),
		Wrong: s.Wrong, Cause: s.Cause, Since: s.Since, Pardoned: s.Pardoned}
}

func (d openDatabases) standings(ctx context.Context, role, cursor string, limit int) ([]shownStanding, string, error) {
	return listAll(d, role, cursor, limit, func(r roleRows, cursor string, limit int) (list []shownStanding, next string, err error) {
		standings, next, err := standing.List(ctx, r.rows, time.Now(), cursor, limit)
		for _, s := range standings {
			list = append(list, showStanding(r.role, s))
		}
		return list, next, err
	})
}

func (d openDatabases) pardon(ctx context.Context, id standingID) error {
	rows, err := d.of(id.role)
	if err != nil {
		return err
	}
	return standing.Pardon(ctx, rows, time.Now(), id.subject())
}

// standingPage is what GET /standings answers.
type standingPage struct {
	Standings []shownStanding `json:"standings"`
	Next      string          `json:"next,omitempty"`
}

func (d remoteDead) standings(ctx context.Context, role, cursor string, limit int) ([]shownStanding, string, error) {
	q := url.Values{"role": {role}, "cursor": {cursor}, "limit": {strconv.Itoa(limit)}}
	var page standingPage
	err := d.do(ctx, http.MethodGet, "/standings?"+q.Encode(), &page)
	return page.Standings, page.Next, err
}

func (d remoteDead) pardon(ctx context.Context, id standingID) error {
	path := "/standings/" + url.PathEscape(id.role) + "/" + url.PathEscape(id.kind) + "/" + url.PathEscape(id.did) + "/pardon"
	return d.do(ctx, http.MethodPost, path, nil)
}

func newStandingsCommand(a *app) *cobra.Command {
	src := new(deadSource)
	cmd := &cobra.Command{
		Use:   "standings",
		Short: "List and pardon those whose offers or answers were proven wrong",
		Long: `List and pardon those whose offers or answers were proven wrong: agents, compute providers and storage nodes at a storefront, storefronts at an
aggregator. What was proven wrong counts against them, half as much after a while; from some score on they are quarantined, then refused.

While a process runs it holds its databases: ask it by its admin interface, with --url. The setting admin says where that listens; it is off
by default. Otherwise the databases below --data are opened directly.`,
		Example: `  w3filecoin admin standings list --url http://127.0.0.1:8010
  w3filecoin admin standings pardon storefront/agent/did:key:z6Mk… --url http://127.0.0.1:8010`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	src.addFlags(cmd)
	cmd.AddCommand(newStandingsListCommand(a, src), newStandingsPardonCommand(a, src))
	return cmd
}

func newStandingsListCommand(a *app, src *deadSource) *cobra.Command {
	var filter deadFilter
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List those whose offers or answers were proven wrong, and who were not pardoned",
		Args:  arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return showList(a, src, filter, limit, "nothing was proven against anybody", func(state administered) ([]shownStanding, string, error) {
				return state.standings(cmd.Context(), filter.role, "", limit)
			}, writeStandings)
		},
	}
	cmd.Flags().StringVar(&filter.role, "role", "", "only of this role: "+strings.Join(allRoles, ", "))
	cmd.Flags().IntVar(&limit, "limit", 100, "list at most so many")
	return cmd
}

func writeStandings(w io.Writer, list []shownStanding) {
	if len(list) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tLEVEL\tSCORE\tWRONG\tSINCE\tCAUSE")
	for _, s := range list {
		level := s.Level
		if s.RetryAfter > 0 {
			level += " for " + (time.Duration(s.RetryAfter) * time.Second).String()
		}
		fmt.Fprintf(t, "%s\t%s\t%.2f\t%d\t%s\t%s\n", printable(s.ID), level, s.Score, s.Wrong, when(s.Since), printable(s.Cause))
	}
	_ = t.Flush() // as little can be done as about any other output
}

func newStandingsPardonCommand(a *app, src *deadSource) *cobra.Command {
	return &cobra.Command{
		Use:   "pardon ID...",
		Short: "Take away what counts against somebody",
		Args:  arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return eachNamed(a, src, args, parseStandingID, "pardoned", func(book administered, id standingID) error {
				err := book.pardon(cmd.Context(), id)
				if errors.Is(err, store.ErrNotFound) {
					return &exitError{exitUnknown, err, "w3filecoin admin standings list shows whom there is something against"}
				}
				return err
			})
		},
	}
}
