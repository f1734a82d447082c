package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/memory"
	"github.com/storacha/w3filecoin/store/sqlite"
)

// deadMessage is what the messages of these tests hold.
type deadMessage struct {
	Offer cid.Cid `cbor:"o"`
	Try   int     `cbor:"t,omitzero"`
}

// bury sends messages to a queue and has each fail twice, which is as often as it may. The errors of its tries are the text with a number.
func bury(ctx context.Context, engine store.Driver, queue, text string, messages int) error {
	const start = 1_785_578_400 // 2026-08-01 10:00 UTC
	for n := range messages {
		body, err := store.Encode(deadMessage{Offer: chaintest.New().Piece.CID(), Try: n})
		if err != nil {
			return err
		}
		if _, err := engine.Commit(ctx, store.Change{Row: store.Row{Key: store.Key{Partition: fmt.Sprintf("cause/%s/%d", queue, n)}},
			Messages: []store.Message{{Queue: queue, Body: body}}}); err != nil {
			return err
		}
	}
	tries := 0
	now := time.Unix(start, 0)
	consumer, err := store.NewConsumer(store.ConsumerOptions{
		// What is given back is due at once by the clock of the engine.
		Driver: eager{engine}, Queue: queue, Attempts: 2, Now: func() time.Time { return now }, Rand: func() float64 { return 0 },
		Handle: func(context.Context, store.Delivery) error {
			tries++
			return fmt.Errorf("%s, try %d", text, tries)
		},
	})
	if err != nil {
		return err
	}
	for worked := true; worked; {
		if worked, err = consumer.Step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// eager delivers again without a pause.
type eager struct{ store.Driver }

func (e eager) Retry(ctx context.Context, d store.Delivery, _ time.Duration) error {
	return e.Driver.Retry(ctx, d, 0)
}

// buries is a command of scripts: buries DIR ROLE QUEUE N TEXT. The role's database is in DIR/ROLE.
func buries(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 5 {
		ts.Fatalf("usage: buries DIR ROLE QUEUE N TEXT")
	}
	var n int
	_, err := fmt.Sscan(args[3], &n)
	ts.Check(err)
	engine, err := sqlite.Open(filepath.Join(ts.MkAbs(args[0]), args[1]), sqlite.Options{Now: time.Now})
	ts.Check(err)
	ts.Check(errors.Join(bury(context.Background(), engine, args[2], args[4], n), engine.Close()))
}

// waiting is a command of scripts: waiting DIR ROLE QUEUE N. So many messages can be delivered from the queue; they are taken.
func waiting(ts *testscript.TestScript, _ bool, args []string) {
	engine, err := sqlite.Open(filepath.Join(ts.MkAbs(args[0]), args[1]), sqlite.Options{Now: time.Now})
	ts.Check(err)
	got, err := engine.Receive(context.Background(), args[2], 1000, time.Hour)
	ts.Check(errors.Join(err, engine.Close()))
	if fmt.Sprint(len(got)) != args[3] {
		ts.Fatalf("%d messages in queue %s, want %s", len(got), args[2], args[3])
	}
	for _, d := range got {
		if d.Attempt != 1 {
			ts.Fatalf("message %s is delivered for the %d. time", d.ID, d.Attempt)
		}
	}
}

// holds is a command of scripts: holds DIR ROLE. The database is in use, until the script ends or says `holds` alone.
func holds(ts *testscript.TestScript, _ bool, args []string) {
	held := ts.Value(heldKey{}).(*heldDatabase)
	if len(args) == 0 {
		ts.Check(held.engine.Close())
		return
	}
	engine, err := sqlite.Open(filepath.Join(ts.MkAbs(args[0]), args[1]), sqlite.Options{Now: time.Now})
	ts.Check(err)
	held.engine = engine
	ts.Defer(func() { _ = engine.Close() }) // twice is a success
}

// ids is a command of scripts: ids NAME. The only ID of the list that was printed is the value of $NAME.
func ids(ts *testscript.TestScript, _ bool, args []string) {
	var letters []deadLetter
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &letters))
	if len(letters) != 1 {
		ts.Fatalf("%d dead letters, want 1", len(letters))
	}
	ts.Setenv(args[0], letters[0].ID)
}

type heldKey struct{}

type heldDatabase struct{ engine *sqlite.Engine }

// adminNode starts all roles with the admin interface on, and returns the node and the arguments by which the command line reaches it.
func adminNode(t *testing.T) (*node, []string) {
	t.Helper()
	cfg := demoConfig(t.TempDir())
	cfg.Admin = "127.0.0.1:0"
	n, err := build(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, n.close()); err != nil {
			t.Error(err)
		}
	})
	return n, []string{"--data", cfg.Data, "--url", n.admin.url}
}

// runCLI runs a command line in this process.
func runCLI(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	code = run(t.Context(), newApp(strings.NewReader(""), &out, &errs), args)
	return code, out.String(), errs.String()
}

// TestAdminDeadLive: what the commands do on databases they do while the process runs, too.
func TestAdminDeadLive(t *testing.T) {
	n, flags := adminNode(t)
	for _, d := range []struct {
		role, queue string
		messages    int
	}{{storefrontRole, "no-such-queue", 3}, {dealerRole, "another", 1}} {
		if err := bury(t.Context(), n.roles[d.role].rows.(store.Driver), d.queue, "boom", d.messages); err != nil {
			t.Fatal(err)
		}
	}
	dead := func(args ...string) (int, string, string) {
		return runCLI(t, append(append([]string{"admin", "dead"}, args...), flags...)...)
	}
	list := func(args ...string) (letters []deadLetter) {
		t.Helper()
		code, out, errs := dead(append([]string{"list", "--json"}, args...)...)
		if code != 0 {
			t.Fatalf("exit code %d\n%s", code, errs)
		}
		if err := json.Unmarshal([]byte(out), &letters); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		return letters
	}
	letters := list()
	if len(letters) != 4 || letters[0].Role != storefrontRole || letters[3].Role != dealerRole || letters[0].Attempts != 2 || len(letters[0].History) != 2 {
		t.Fatalf("dead letters: %+v", letters)
	}
	if got := list("--role", dealerRole); len(got) != 1 {
		t.Errorf("of the dealer: %+v", got)
	}
	if got := list("--queue", "another"); len(got) != 1 {
		t.Errorf("of one queue: %+v", got)
	}
	if got := list("--limit", "3"); len(got) != 3 {
		t.Errorf("three of them: %+v", got)
	}

	code, out, _ := dead("show", letters[0].ID)
	if code != 0 || !strings.Contains(out, chaintest.New().Piece.CID().String()) || !strings.Contains(out, "boom, try") {
		t.Errorf("show: exit code %d\n%s", code, out)
	}
	if code, _, errs := dead("show", "storefront/submit/1"); code != exitUnknown || !strings.Contains(errs, "hint") {
		t.Errorf("showing what is not there: exit code %d\n%s", code, errs)
	}
	if code, out, _ := dead("drop", letters[0].ID); code != 0 || out != "dropped "+letters[0].ID+"\n" {
		t.Errorf("drop: exit code %d\n%s", code, out)
	}
	if code, out, _ := dead("retry", letters[1].ID, letters[0].ID); code != exitUnknown || out != "retried "+letters[1].ID+"\n" {
		t.Errorf("retrying one that is there and one that is not: exit code %d\n%s", code, out)
	}
	if code, out, errs := dead("retry", "--all"); code != 0 || strings.Count(out, "retried ") != 2 {
		t.Errorf("retry --all: exit code %d\n%s%s", code, out, errs)
	}
	if got := list(); len(got) != 0 {
		t.Errorf("left: %+v", got)
	}
	got, err := n.roles[storefrontRole].rows.(store.Driver).Receive(t.Context(), "no-such-queue", 10, time.Minute)
	if err != nil || len(got) != 2 || got[0].Attempt != 1 {
		t.Errorf("retried messages: %+v, %v", got, err)
	}

	// The number of dead letters is measured.
	if err := bury(t.Context(), n.roles[storefrontRole].rows.(store.Driver), "submit-like", "boom", 2); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(n.cfg.url(storefrontRole) + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if want := `w3filecoin_dead_letters{queue="submit-like",role="storefront"} 2`; err != nil || !strings.Contains(string(metrics), want) {
		t.Errorf("%s is not among the measurements: %v", want, err)
	}
}

// TestAdminIsClosed: nothing is told or done without the token, which only its owner can read, and a listener that others reach is refused.
func TestAdminIsClosed(t *testing.T) {
	n, _ := adminNode(t)
	file := tokenFile(n.cfg.Data)
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the token's file is %v, %v", info, err)
	}
	token, err := readToken(file)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, authorization string) int {
		req, err := http.NewRequestWithContext(t.Context(), method, n.admin.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", authorization)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for _, r := range [][2]string{{"GET", "/dead"}, {"GET", "/dead/dealer/poll/1"}, {"POST", "/dead/dealer/poll/1/retry"}, {"DELETE", "/dead/dealer/poll/1"}, {"GET", "/"}} {
		for _, authorization := range []string{"", "Bearer", "Bearer x" + token, token, "Bearer " + token[1:]} {
			if got := ask(r[0], r[1], authorization); got != http.StatusUnauthorized {
				t.Errorf("%s %s with %q is answered %d", r[0], r[1], authorization, got)
			}
		}
	}
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/dead", 200}, {"GET", "/dead?limit=x", 400}, {"GET", "/dead/dealer/poll/1", 404}, {"POST", "/dead/dealer/poll/1/retry", 404},
		{"DELETE", "/dead/miner/poll/1", 404}, {"POST", "/dead", 405},
	} {
		if got := ask(tt.method, tt.path, "Bearer "+token); got != tt.want {
			t.Errorf("%s %s is answered %d, want %d", tt.method, tt.path, got, tt.want)
		}
	}
	// The roles' own listeners do not know it.
	resp, err := http.Get(n.cfg.url(dealerRole) + "/dead")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("the dealer answers GET /dead with %d", resp.StatusCode)
	}

	for address, ok := range map[string]bool{"127.0.0.1:8010": true, "[::1]:8010": true, "localhost:8010": true, "0.0.0.0:8010": false, ":8010": false,
		"192.0.2.1:8010": false, "example.com:8010": false, "8010": false} {
		c := demoConfig(t.TempDir())
		c.Admin = address
		if err := c.validate(); (err == nil) != ok {
			t.Errorf("admin = %q: %v", address, err)
		}
	}
}

// TestAdminTokenIsKept: a restart does not change the token, and one that was spoiled is refused.
func TestAdminTokenIsKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "admin.token")
	first, err := adminToken(file)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := adminToken(file); err != nil || again != first || len(first) < 16 {
		t.Errorf("%q, then %q: %v", first, again, err)
	}
	if err := os.WriteFile(file, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if token, err := adminToken(file); err == nil {
		t.Errorf("an empty token: %q", token)
	}
}

// TestDeadPages: pages of any size give the whole list once, over several roles, and nothing of other roles and queues.
func TestDeadPages(t *testing.T) {
	var dead openDatabases
	var want []string
	for _, r := range []struct {
		role   string
		queues map[string]int
	}{{storefrontRole, map[string]int{"a": 3, "ab": 2}}, {aggregatorRole, nil}, {dealerRole, map[string]int{"a": 4}}, {computeRole, nil}} {
		engine := memory.New(memory.Options{Now: time.Now})
		for queue, n := range r.queues {
			if err := bury(t.Context(), engine, queue, "boom", n); err != nil {
				t.Fatal(err)
			}
		}
		dead = append(dead, roleRows{r.role, engine})
		letters, _, err := store.ListDead(t.Context(), engine, "", "", 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range letters {
			want = append(want, r.role+"/"+l.ID)
		}
	}
	if len(want) != 9 {
		t.Fatalf("buried: %q", want)
	}
	server := httptest.NewServer(adminHandler(dead, "token", slog.New(slog.DiscardHandler)))
	defer server.Close()
	for name, dead := range map[string]deadLetters{"databases": dead, "HTTP": remoteDead{server.URL, "token"}} {
		all := func(f deadFilter, limit int) (ids []string) {
			for cursor, pages := "", 0; ; pages++ {
				letters, next, err := dead.list(t.Context(), f, cursor, limit)
				if err != nil || len(letters) > limit || pages > 20 {
					t.Fatalf("%s: page %d has %d: %v", name, pages, len(letters), err)
				}
				for _, l := range letters {
					ids = append(ids, l.ID)
				}
				if cursor = next; cursor == "" {
					return ids
				}
			}
		}
		keep := func(f func(id string) bool) []string {
			return slices.DeleteFunc(slices.Clone(want), func(id string) bool { return !f(id) })
		}
		for limit := 1; limit <= 10; limit++ {
			for _, tt := range []struct {
				f    deadFilter
				want []string
			}{
				{deadFilter{}, want},
				{deadFilter{role: dealerRole}, keep(func(id string) bool { return strings.HasPrefix(id, "dealer/") })},
				{deadFilter{queue: "a"}, keep(func(id string) bool { return strings.Contains(id, "/a/") })},
				{deadFilter{role: storefrontRole, queue: "ab"}, keep(func(id string) bool { return strings.Contains(id, "/ab/") })},
				{deadFilter{role: computeRole}, nil},
			} {
				if diff := cmp.Diff(tt.want, all(tt.f, limit)); diff != "" {
					t.Errorf("%s: %+v, %d a page (-want +got):\n%s", name, tt.f, limit, diff)
				}
			}
		}
		if _, _, err := dead.list(t.Context(), deadFilter{}, "nonsense", 1); err == nil {
			t.Errorf("%s: a malformed cursor was taken", name)
		}
	}
}

// TestReadableBody: whatever is in a body, it can be shown.
func TestReadableBody(t *testing.T) {
	c := chaintest.New().Piece.CID()
	encode := func(v any) []byte {
		b, err := store.Encode(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for want, body := range map[string][]byte{
		`{"o":"` + c.String() + `","t":7}`:             encode(deadMessage{c, 7}),
		`{"k":{"Partition":"p","Sort":""},"x":[null]}`: encode(map[string]any{"k": store.Key{Partition: "p"}, "x": []any{nil}}),
		`{"1":"ff00"}`: encode(map[int]any{1: []byte{0xff, 0}}),
		`""`:           nil,
		`"ffff"`:       {0xff, 0xff},
	} {
		if got := string(readableBody(body)); got != want {
			t.Errorf("%x is shown as %s, want %s", body, got, want)
		}
	}
}

// TestReadiness: a role whose database refuses commits is not ready, and is again when it takes them; whoever asks often causes few.
func TestReadiness(t *testing.T) {
	now := time.Unix(1_785_578_400, 0)
	engine := &stubborn{Driver: memory.New(memory.Options{Now: func() time.Time { return now }})}
	r := newReadiness(engine, func() time.Time { return now }, slog.New(slog.DiscardHandler))
	for _, step := range []struct {
		full    bool
		later   time.Duration
		ready   bool
		commits int
	}{
		{false, 0, true, 1}, {true, time.Second, true, 1}, {true, readyEvery, false, 2}, {false, time.Second, false, 2}, {false, readyEvery, true, 3},
	} {
		engine.full = step.full
		now = now.Add(step.later)
		for range 3 {
			if err := r.check(); (err == nil) != step.ready {
				t.Errorf("%+v: %v", step, err)
			}
		}
		if engine.commits != step.commits {
			t.Errorf("%+v: %d commits", step, engine.commits)
		}
	}
}

// stubborn is an engine that may refuse commits.
type stubborn struct {
	store.Driver
	full    bool
	commits int
}

func (s *stubborn) Commit(ctx context.Context, c store.Change) (uint64, error) {
	s.commits++
	if s.full {
		return 0, errors.New("no space left on device")
	}
	return s.Driver.Commit(ctx, c)
}
