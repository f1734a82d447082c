package standing_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/enginetest"
	"github.com/storacha/w3filecoin/store/storetest"
)

type book struct {
	*standing.Register
	t      *testing.T
	now    time.Time
	engine enginetest.Engine
}

func newBook(t *testing.T, p standing.Policy, choose storetest.Chooser) *book {
	b := &book{t: t, now: time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)}
	b.engine = enginetest.New(t, enginetest.Options{Now: b.clock, IndexLag: -1, IndexLagCommits: -1})
	var rows store.Driver = b.engine
	if choose != nil {
		rows = storetest.NewFaulty(b.engine, choose)
	}
	b.Register = standing.New(rows, p, b.clock)
	return b
}

func (b *book) clock() time.Time { return b.now }

func (b *book) of(subject string) standing.Standing {
	b.t.Helper()
	s, err := b.Of(b.t.Context(), subject)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *book) wrong(subject string, n int) {
	b.t.Helper()
	for range n {
		if _, err := b.Wrong(b.t.Context(), subject, task(b.t), "it was wrong"); err != nil {
			b.t.Fatal(err)
		}
	}
}

var tasks struct {
	sync.Mutex
	n int
}

// task returns a CID that no other call returns.
func task(t *testing.T) cid.Cid {
	t.Helper()
	tasks.Lock()
	defer tasks.Unlock()
	tasks.n++
	hash, err := multihash.Sum(fmt.Append(nil, tasks.n), multihash.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	return cid.NewCidV1(cid.DagCBOR, hash)
}

func TestReserve(t *testing.T) {
	ctx := t.Context()
	b := newBook(t, standing.Policy{}, nil)
	limit := standing.Limit{Count: 3, Bytes: 1000}
	first := task(t)
	for _, step := range []struct {
		name  string
		task  cid.Cid
		bytes uint64
		ok    bool
	}{
		{"the first", first, 400, true},
		{"the first again", first, 400, true},
		{"too many bytes", task(t), 601, false},
		{"more than ever", task(t), math.MaxUint64, false},
		{"exactly the rest", task(t), 600, true},
		{"one byte more", task(t), 1, false},
		{"nothing", task(t), 0, true},
		{"one too many", task(t), 0, false},
	} {
		err := b.Reserve(ctx, "agent/a", step.task, step.bytes, limit)
		var over *standing.Exceeded
		switch {
		case step.ok && err != nil:
			t.Errorf("%s: %v", step.name, err)
		case !step.ok && (!errors.As(err, &over) || over.RetryAfter != 15*time.Hour || over.Limit != limit):
			t.Errorf("%s: %v, %+v", step.name, err, over)
		}
	}
	if err := b.Reserve(ctx, "agent/b", task(t), 1000, limit); err != nil {
		t.Errorf("somebody else: %v", err)
	}
	b.now = b.now.Add(15 * time.Hour)
	if err := b.Reserve(ctx, "agent/a", task(t), 1000, limit); err != nil {
		t.Errorf("the next day: %v", err)
	}
	if err := b.Reserve(ctx, "agent/c", task(t), 1<<60, standing.Limit{}); err != nil {
		t.Errorf("without a limit: %v", err)
	}
}

// TestReserveTogether: callers that meet at one row, in one process or in two, take no more than there is, and each gets its answer.
func TestReserveTogether(t *testing.T) {
	b := newBook(t, standing.Policy{}, nil)
	const callers, limit = 400, 150
	var wg sync.WaitGroup
	var mu sync.Mutex
	taken := 0
	registers := []*standing.Register{b.Register, standing.New(b.engine, standing.Policy{}, b.clock)}
	for i := range callers {
		id := task(t)
		wg.Go(func() {
			err := registers[i%2].Reserve(context.Background(), "agent/a", id, 1, standing.Limit{Count: limit})
			var over *standing.Exceeded
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				taken++
			} else if !errors.As(err, &over) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if taken != limit {
		t.Errorf("%d of %d were taken", taken, limit)
	}
}

func TestLevels(t *testing.T) {
	b := newBook(t, standing.Policy{HalfLife: time.Hour, Quarantine: 2, Refuse: 4}, nil)
	if s := b.of("agent/a"); s.Level != standing.Good || s.Score != 0 {
		t.Errorf("a stranger: %+v", s)
	}
	b.wrong("agent/a", 1)
	if s := b.of("agent/a"); s.Level != standing.Good || s.Wrong != 1 || s.Cause == "" || !s.Since.Equal(b.now) {
		t.Errorf("once wrong: %+v", s)
	}
	b.wrong("agent/a", 1)
	if s := b.of("agent/a"); s.Level != standing.Quarantined {
		t.Errorf("twice wrong: %+v", s)
	}
	b.wrong("agent/a", 6)
	s := b.of("agent/a")
	if s.Level != standing.Refused || s.Score != 8 || s.RetryAfter != time.Hour+time.Second {
		t.Errorf("eight times wrong: %+v", s)
	}
	if other := b.of("agent/b"); other.Level != standing.Good {
		t.Errorf("somebody else: %+v", other)
	}
	b.now = b.now.Add(s.RetryAfter)
	if s := b.of("agent/a"); s.Level != standing.Quarantined {
		t.Errorf("after the time that was told: %+v", s)
	}
	b.now = b.now.Add(time.Hour)
	if s := b.of("agent/a"); s.Level != standing.Good {
		t.Errorf("an hour later: %+v", s)
	}
	// However often it was wrong, three half-lives and a moment are the longest that anybody is refused.
	b.wrong("agent/c", 500)
	b.now = b.now.Add(3*time.Hour + time.Second)
	if s := b.of("agent/c"); s.Level == standing.Refused {
		t.Errorf("five hundred times wrong, three half-lives later: %+v", s)
	}
}

// TestNoPolicy: without thresholds everything is counted and nothing follows.
func TestNoPolicy(t *testing.T) {
	b := newBook(t, standing.Policy{}, nil)
	b.wrong("agent/a", 100)
	if s := b.of("agent/a"); s.Level != standing.Good || s.Wrong != 100 {
		t.Errorf("%+v", s)
	}
}

func TestRightRepays(t *testing.T) {
	ctx := t.Context()
	b := newBook(t, standing.Policy{HalfLife: 1000 * time.Hour, Quarantine: 1, Refuse: 4}, nil)
	rows := func() int {
		page, err := b.engine.Walk(ctx, "", 0)
		if err != nil {
			t.Fatal(err)
		}
		return len(page.Rows)
	}
	for range 3 { // the first time is remembered, and nothing after it
		if err := b.Right(ctx, "agent/a", task(t)); err != nil {
			t.Fatal(err)
		}
	}
	if s := b.of("agent/a"); s.Right != 1 || rows() != 1 {
		t.Errorf("%+v, %d rows", s, rows())
	}
	b.wrong("agent/a", 1)
	for range 99 {
		if err := b.Right(ctx, "agent/a", task(t)); err != nil {
			t.Fatal(err)
		}
	}
	if s := b.of("agent/a"); s.Level != standing.Good || s.Score > 0.02 || s.Score == 0 {
		t.Errorf("once wrong, 99 times right: %+v", s)
	}
	same := task(t)
	b.wrong("agent/b", 2)
	for range 3 {
		if err := b.Right(ctx, "agent/b", same); err != nil {
			t.Fatal(err)
		}
	}
	if s := b.of("agent/b"); s.Score != 1.99 {
		t.Errorf("right three times by one task: %+v", s)
	}
}

func TestListAndPardon(t *testing.T) {
	ctx := t.Context()
	b := newBook(t, standing.DefaultPolicy(), nil)
	b.wrong("agent/b", 12)
	b.wrong("agent/a", 4)
	if err := b.Right(ctx, "agent/c", task(t)); err != nil {
		t.Fatal(err)
	}
	list := func() (names []string) {
		t.Helper()
		all, next, err := standing.List(ctx, b.engine, b.now, "", 10)
		if err != nil || next != "" {
			t.Fatal(err, next)
		}
		for _, s := range all {
			names = append(names, s.Subject+" "+s.Level.String())
		}
		return names
	}
	if got := strings.Join(list(), ", "); got != "agent/a quarantined, agent/b refused" {
		t.Errorf("listed: %s", got)
	}
	for range 2 { // twice is once
		if err := standing.Pardon(ctx, b.engine, b.now, "agent/b"); err != nil {
			t.Fatal(err)
		}
	}
	if s := b.of("agent/b"); s.Level != standing.Good || s.Wrong != 12 || !s.Pardoned.Equal(b.now) {
		t.Errorf("pardoned: %+v", s)
	}
	if got := strings.Join(list(), ", "); got != "agent/a quarantined" {
		t.Errorf("listed: %s", got)
	}
	for _, nobody := range []string{"agent/c", "agent/nobody"} {
		if err := standing.Pardon(ctx, b.engine, b.now, nobody); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("pardoning %s: %v", nobody, err)
		}
	}
	b.wrong("agent/b", 3)
	if s := b.of("agent/b"); s.Level != standing.Quarantined || s.Score != 3 {
		t.Errorf("wrong again: %+v", s)
	}
}

// TestFaults: whatever call of the engine fails, and however, whoever repeats what failed changes a row once.
func TestFaults(t *testing.T) {
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict}
	storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
		ctx := t.Context()
		b := newBook(t, standing.Policy{HalfLife: 1000 * time.Hour, Quarantine: 1, Refuse: 4}, choose)
		again := func(do func() error) {
			t.Helper()
			err := do()
			if errors.Is(err, storetest.ErrInjected) {
				err = do()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		offer, second, bad, good := task(t), task(t), task(t), task(t)
		again(func() error { return b.Reserve(ctx, "agent/a", offer, 10, standing.Limit{Count: 2, Bytes: 20}) })
		again(func() error { _, err := b.Wrong(ctx, "agent/a", bad, "why"); return err })
		again(func() error { return b.Right(ctx, "agent/a", good) })
		again(func() error { return b.Reserve(ctx, "agent/a", second, 10, standing.Limit{Count: 2, Bytes: 20}) })
		var s standing.Standing
		again(func() (err error) { s, err = b.Of(ctx, "agent/a"); return err })
		if s.Wrong != 1 || s.Right != 1 || s.Score != 0.99 {
			t.Errorf("%+v", s)
		}
	})
}

func TestMain(m *testing.M) { enginetest.Main(m) }

// TestOnDouble: all of it once more, on the distributed engine, whose services fail now and then.
func TestOnDouble(t *testing.T) {
	enginetest.Again(t, enginetest.Double, ".", "")
}
