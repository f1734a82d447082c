package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/capabilities"
)

func newStatusCommand(a *app) *cobra.Command {
	var (
		url               string
		follow            bool
		timeout, interval time.Duration
	)
	cmd := &cobra.Command{
		Use:   "status CID",
		Short: "Tell where a piece, a content or an aggregate stands",
		Long: `Ask a role where a piece, a content or an aggregate stands: its state and since when, why it waits and until when, its aggregate and
deal, and the tasks whose receipts prove all that (w3filecoin receipt TASK).

With --follow it asks again until every piece has ended: dealt, invalid, failed or expired. On a terminal it redraws; otherwise it prints
one line per change: time, CID, state and details, separated by tabs, or with --json the whole status on one line.

Exits with 4 if nothing is known of the CID, 5 if all has ended and something of it in a failure, 6 if --timeout passed first.`,
		Example: `  w3filecoin status bafkzcib… --follow --timeout 48h`,
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := parseCID(args[0])
			if err != nil {
				return err
			}
			if interval <= 0 || timeout < 0 {
				return usage("write it like 2s or 48h", "--interval has to be more than nothing, and --timeout not less")
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			q := &statusQuery{app: a, url: strings.TrimSuffix(url, "/"), cid: c, client: &http.Client{Timeout: time.Minute}}
			if follow {
				err = q.follow(ctx, interval)
			} else {
				err = q.once(ctx)
			}
			if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return &exitError{exitUnfinished, fmt.Errorf("%s has not ended within %s", c, timeout), "ask again later, or allow more with --timeout"}
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&url, "url", defaultURL, "the role to ask, a storefront as a rule")
	f.BoolVar(&follow, "follow", false, "ask again until every piece has ended")
	f.DurationVar(&timeout, "timeout", 0, "give up after this long; never if 0")
	f.DurationVar(&interval, "interval", 2*time.Second, "with --follow, how often to ask")
	return cmd
}

// defaultURL is where `serve` has its storefront.
const defaultURL = "http://127.0.0.1:8001"

// statusQuery asks one role about one CID.
type statusQuery struct {
	app    *app
	url    string
	cid    cid.Cid
	client *http.Client
}

func (q *statusQuery) once(ctx context.Context) error {
	s, err := q.fetch(ctx)
	if err != nil {
		return err
	}
	if err := q.app.result(s, func(w io.Writer) { writeStatus(w, s) }); err != nil {
		return err
	}
	return verdict(s)
}

// follow shows every change until all has ended. A role that answered once may be away for a while.
func (q *statusQuery) follow(ctx context.Context, interval time.Duration) error {
	s, err := q.fetch(ctx)
	if err != nil {
		return err
	}
	show, finish := q.display()
	defer finish(nil)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	away := false
	for {
		if err := show(s); err != nil {
			return err
		}
		if hasEnded(s) {
			finish(s)
			return verdict(s)
		}
		for asked := false; !asked; {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
			next, err := q.fetch(ctx)
			var exit *exitError
			switch {
			case err == nil:
				s, asked, away = next, true, false
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.As(err, &exit) && exit.code != exitFailure:
				return err
			case !away:
				away = true
				fmt.Fprintf(q.app.stderr, "%v: asking again\n", err)
			}
		}
	}
}

// fetch asks once. The error has exit code 4 if nothing is known.
func (q *statusQuery) fetch(ctx context.Context) (*capabilities.Status, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, q.url+"/status/"+q.cid.String(), nil)
	if err != nil {
		return nil, usage("it looks like "+defaultURL, "--url: %v", err)
	}
	req.Header.Set("Accept", "application/json")
	resp, err := q.client.Do(req)
	if err != nil {
		return nil, &exitError{exitFailure, fmt.Errorf("asking for the status: %w", err), "is a role running at " + q.url + "? --url names another"}
	}
	defer resp.Body.Close()
	body := io.LimitReader(resp.Body, 8<<20)
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, &exitError{exitUnknown, fmt.Errorf("nothing is known of %s at %s", q.cid, q.url),
			"ask the storefront that it was offered to, by the CID of the piece or the content"}
	default:
		text, _ := io.ReadAll(io.LimitReader(body, 300))
		return nil, fmt.Errorf("%s answered %s: %s", q.url, resp.Status, printable(strings.TrimSpace(string(text))))
	}
	s := new(capabilities.Status)
	if err := json.NewDecoder(body).Decode(s); err != nil {
		return nil, fmt.Errorf("reading the status from %s: %w", q.url, err)
	}
	if len(s.Pieces)+len(s.Aggregates) == 0 {
		return nil, fmt.Errorf("%s answered with a status of nothing: is it a role of w3filecoin?", q.url)
	}
	return s, nil
}

// statusLine is one line of a status: a piece or an aggregate.
type statusLine struct {
	cid       string
	aggregate string // that the piece is in
	deal      uint64
	capabilities.Waiting
	ended, failed bool
}

// standings returns the lines of a status.
func standings(s *capabilities.Status) []statusLine {
	var list []statusLine
	for _, p := range s.Pieces {
		l := statusLine{cid: p.Piece, aggregate: p.Aggregate, deal: p.Deal, Waiting: p.Waiting}
		switch p.State {
		case "dealt":
			l.ended = true
		case "invalid", "failed", "expired":
			l.ended, l.failed = true, true
		case "aggregated":
			// Where the aggregator leaves a piece. A storefront's has further to go.
			l.ended = s.Role == "aggregator" && p.Deal != 0
		}
		list = append(list, l)
	}
	for _, g := range s.Aggregates {
		list = append(list, statusLine{cid: g.Aggregate, deal: g.Deal, Waiting: g.Waiting,
			ended: g.State == "dealt" || g.State == "failed", failed: g.State == "failed"})
	}
	return list
}

func hasEnded(s *capabilities.Status) bool {
	return !slices.ContainsFunc(standings(s), func(l statusLine) bool { return !l.ended })
}

// verdict is the exit code of a status: 5 if all of it has ended and some of it in a failure.
func verdict(s *capabilities.Status) error {
	if !hasEnded(s) {
		return nil
	}
	var failed []string
	list := standings(s)
	for _, l := range list {
		if l.failed {
			failed = append(failed, l.cid+" is "+l.State)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return &exitError{exitRefused, errors.New(strings.Join(failed, ", ")), "the receipt of its last task says why: w3filecoin receipt TASK"}
}

// detail says in a line what there is to say besides the state.
func (l statusLine) detail(short func(string) string) string {
	var parts []string
	if l.Reason != "" {
		parts = append(parts, l.Reason)
	}
	if !l.Next.IsZero() {
		parts = append(parts, "next try "+when(l.Next))
	}
	if l.aggregate != "" {
		parts = append(parts, "aggregate "+short(l.aggregate))
	}
	if l.deal != 0 {
		parts = append(parts, "deal "+strconv.FormatUint(l.deal, 10))
	}
	return strings.Join(parts, ", ")
}

// display returns how changes are shown, and what ends that; the status that is given to finish, if any, is the last word.
func (q *statusQuery) display() (show func(*capabilities.Status) error, finish func(*capabilities.Status)) {
	out := q.app.stdout
	if q.app.json {
		var last []byte
		return func(s *capabilities.Status) error {
			line := new(bytes.Buffer)
			enc := json.NewEncoder(line)
			enc.SetEscapeHTML(false)
			if err := enc.Encode(s); err != nil {
				return fmt.Errorf("writing the status: %w", err)
			}
			if bytes.Equal(last, line.Bytes()) {
				return nil
			}
			last = line.Bytes()
			_, err := out.Write(last)
			return err
		}, func(*capabilities.Status) {}
	}
	if _, _, ok := terminalSize(out); ok {
		screen := &screen{out: out, size: func() (int, int) {
			width, height, _ := terminalSize(out)
			return width, height
		}}
		return func(s *capabilities.Status) error { return screen.draw(statusLines(s, time.Now())) },
			func(s *capabilities.Status) {
				if s == nil {
					return
				}
				screen.clear()
				writeStatus(out, s)
			}
	}
	last := map[string]bool{}
	return func(s *capabilities.Status) error {
		shown := map[string]bool{}
		for _, l := range standings(s) {
			detail := l.detail(func(s string) string { return s })
			line := printable(l.cid) + "\t" + printable(l.State) + "\t" + printable(detail)
			if !last[line] && !shown[line] {
				if _, err := fmt.Fprintf(out, "%s\t%s\n", time.Now().UTC().Format(time.RFC3339), line); err != nil {
					return err
				}
			}
			shown[line] = true
		}
		last = shown
		return nil
	}, func(*capabilities.Status) {}
}

// statusLines is a status as it is redrawn on a terminal.
func statusLines(s *capabilities.Status, now time.Time) []string {
	var lines []string
	for _, l := range standings(s) {
		line := trimmed(l.cid) + "  " + l.State
		if !l.Since.IsZero() && !l.ended {
			line += " for " + now.Sub(l.Since).Round(time.Second).String()
		}
		if d := l.detail(trimmed); d != "" {
			line += ": " + d
		}
		lines = append(lines, printable(line))
	}
	return lines
}

// screen redraws lines in place on a terminal.
type screen struct {
	out   io.Writer
	size  func() (width, height int)
	drawn int
}

// draw replaces what was drawn before. Lines are cut to the width, as one that wraps could not be found again, and to the height.
func (s *screen) draw(lines []string) error {
	width, height := s.size()
	if room := max(height-2, 1); len(lines) > room {
		lines = append(slices.Clone(lines[:room]), fmt.Sprintf("and %d more", len(lines)-room))
	}
	var b strings.Builder
	b.WriteString(s.erase())
	for _, l := range lines {
		if r := []rune(l); len(r) >= width {
			l = string(r[:max(width-2, 0)]) + "…"
		}
		b.WriteString(l + "\n")
	}
	s.drawn = len(lines)
	_, err := io.WriteString(s.out, b.String())
	return err
}

// clear removes what was drawn.
func (s *screen) clear() {
	fmt.Fprint(s.out, s.erase())
	s.drawn = 0
}

func (s *screen) erase() string {
	if s.drawn == 0 {
		return ""
	}
	return fmt.Sprintf("\x1b[%dA\x1b[J", s.drawn)
}

// writeStatus writes all of a status for people.
func writeStatus(w io.Writer, s *capabilities.Status) {
	for i, p := range s.Pieces {
		if i > 0 {
			fmt.Fprintln(w)
		}
		writeRows(w, "", []row{{"piece", p.Piece}, {"content", p.Content}, {"group", p.Group}})
		writeWaiting(w, p.Waiting, p.Aggregate, p.Deal, p.Attempts, p.Tasks)
	}
	for i, g := range s.Aggregates {
		if i+len(s.Pieces) > 0 {
			fmt.Fprintln(w)
		}
		rows := []row{{"aggregate", g.Aggregate}, {"deal size", fmt.Sprintf("%d padded bytes", g.DealSize)}}
		if g.Count > 0 {
			rows = append(rows, row{"pieces", fmt.Sprintf("%d, %d padded bytes", g.Count, g.Content)})
		}
		writeRows(w, "", rows)
		writeWaiting(w, g.Waiting, "", g.Deal, 0, g.Tasks)
	}
}

func writeWaiting(w io.Writer, s capabilities.Waiting, aggregate string, deal, attempts uint64, tasks map[string]string) {
	state := s.State
	if !s.Since.IsZero() {
		state += ", since " + when(s.Since)
	}
	rows := []row{{"state", state}, {"reason", s.Reason}, {"next try", when(s.Next)}, {"aggregate", aggregate}}
	if deal != 0 {
		rows = append(rows, row{"deal", strconv.FormatUint(deal, 10)})
	}
	if attempts > 1 {
		rows = append(rows, row{"attempts", fmt.Sprintf("%d aggregates so far", attempts)})
	}
	writeRows(w, "", rows)
	if len(s.Times) > 0 {
		fmt.Fprintln(w, "stages")
		stages := []row{}
		for _, name := range sortedBy(s.Times, func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }) {
			stages = append(stages, row{name, when(s.Times[name])})
		}
		writeRows(w, "  ", stages)
	}
	if len(tasks) > 0 {
		fmt.Fprintln(w, "tasks")
		rows := []row{}
		for _, can := range sortedBy(tasks, nil) {
			rows = append(rows, row{can, tasks[can]})
		}
		slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(chainOrder(a[0]), chainOrder(b[0])) })
		writeRows(w, "  ", rows)
	}
}

// sortedBy returns the keys of a map in the order of what its values stand for, if that is given, and else of themselves.
func sortedBy[V any](m map[string]V, order func(V) string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int {
		if order != nil {
			if c := cmp.Compare(order(m[a]), order(m[b])); c != 0 {
				return c
			}
		}
		return cmp.Compare(a, b)
	})
	return keys
}
