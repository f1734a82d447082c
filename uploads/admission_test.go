package uploads_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/capabilities/space"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/storetest"
	"github.com/storacha/w3filecoin/uploads"
)

// limited returns a world whose uploads are limited.
func limited(t *testing.T, choose storetest.Chooser, limits standing.Limits) *world {
	t.Helper()
	w := newWorld(t, choose)
	w.deps.Policy.Limits = limits
	w.serve()
	return w
}

// addIn is space/blob/add of an agent in a space that may be another's.
func addIn(by, owner capabilities.Signer, b blob.Blob, nonce string) capabilities.Task {
	task, err := capabilities.Invoke(by, self.DID(), owner.DID().String(), &space.BlobAdd{Blob: b}, capabilities.Terms{Nonce: nonce})
	if err != nil {
		panic(err)
	}
	return task
}

// taken executes a space/blob/add and reports whether it was within the limits.
func (w *world) taken(task capabilities.Task) bool {
	w.Helper()
	_, err := w.execute(task)
	if f := (*capabilities.Failure)(nil); errors.As(err, &f) && f.Name == capabilities.QuotaExceeded {
		return false
	}
	if err != nil {
		w.Fatal(err)
	}
	return true
}

// used returns what is in an account of uploads.
func (w *world) used(subject string) standing.Limit {
	w.Helper()
	rec, err := store.NewTable[standing.Row](w.Engine).Get(w.Context(), store.Key{Partition: "standing/uploads/" + subject})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		w.Fatal(err)
	}
	return standing.Limit{Count: rec.Value.Count, Bytes: rec.Value.Bytes}
}

func (w *world) wantUsed(subject string, want standing.Limit) {
	w.Helper()
	if got := w.used(subject); got != want {
		w.Errorf("%s has used %+v, want %+v", subject, got, want)
	}
}

// quota are the details of QuotaExceeded.
type quota struct {
	Subject         string
	Count, MaxCount uint64
	Bytes, MaxBytes uint64
	RetryAfter      uint64
}

func (q *quota) Fields() []capabilities.Field {
	return []capabilities.Field{{Key: "subject", Value: &q.Subject}, {Key: "count", Value: &q.Count}, {Key: "maxCount", Value: &q.MaxCount, Optional: true},
		{Key: "bytes", Value: &q.Bytes}, {Key: "maxBytes", Value: &q.MaxBytes, Optional: true}, {Key: "retryAfter", Value: &q.RetryAfter}}
}

func TestLimits(t *testing.T) {
	three := standing.Limit{Count: 3}
	alice, bob, owner := chaintest.Key("alice"), chaintest.Key("bob"), chaintest.Key("owner")
	for name, tt := range map[string]struct {
		limits standing.Limits
		// alice and bob are how many of ten blobs of 100 bytes each are taken, on two days; both add to a space of a third one if shared. A piece of
		// alice's is validated in between.
		shared     bool
		alice, bob [2]int
	}{
		"none":                {alice: [2]int{10, 10}, bob: [2]int{10, 10}},
		"each agent":          {limits: standing.Limits{Agent: three}, alice: [2]int{3, 3}, bob: [2]int{3, 3}},
		"bytes of each agent": {limits: standing.Limits{Agent: standing.Limit{Bytes: 599}}, alice: [2]int{5, 5}, bob: [2]int{5, 5}},
		"each space, own":     {limits: standing.Limits{Space: three}, alice: [2]int{10, 10}, bob: [2]int{10, 10}},
		"each space, shared":  {limits: standing.Limits{Space: standing.Limit{Count: 12}}, shared: true, alice: [2]int{10, 10}, bob: [2]int{2, 2}},
		"bytes of a space":    {limits: standing.Limits{Space: standing.Limit{Bytes: 700}}, shared: true, alice: [2]int{7, 7}, bob: [2]int{0, 0}},
		"newcomers":           {limits: standing.Limits{Newcomers: three}, alice: [2]int{3, 10}, bob: [2]int{0, 3}},
		"newcomers and rest":  {limits: standing.Limits{Newcomers: three, Agent: standing.Limit{Count: 8}}, alice: [2]int{3, 8}, bob: [2]int{0, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			w := limited(t, nil, tt.limits)
			for day := range 2 {
				for _, who := range []struct {
					agent capabilities.Signer
					want  int
				}{{alice, tt.alice[day]}, {bob, tt.bob[day]}} {
					on := who.agent
					if tt.shared {
						on = owner
					}
					taken := 0
					for n := range 10 {
						b := newBlob(fmt.Sprint(name, day, who.agent.DID(), n))
						b.Size = 100
						if w.taken(addIn(who.agent, on, b, "")) {
							taken++
						}
					}
					if taken != who.want {
						t.Errorf("day %d: %d of %s's were taken, want %d", day, taken, who.agent.DID(), who.want)
					}
				}
				right := newBlob("something right").CID()
				if err := standing.New(w.Engine, standing.Policy{}, w.Clock.Now).Right(t.Context(), standing.AgentSubject(alice.DID().String()), right); err != nil {
					t.Fatal(err)
				}
				w.Run(36 * time.Hour) // what was never sent has expired
			}
			if got := w.rows("allocation/"); len(got) != 0 {
				t.Errorf("%d rows of allocations are left when all have expired", len(got))
			}
		})
	}
}

// TestRefusedByLimit: a refusal names the account, what is in it, and when to come again; it leaves nothing behind, and what it refused is taken then.
func TestRefusedByLimit(t *testing.T) {
	w := limited(t, nil, standing.Limits{Agent: standing.Limit{Count: 2, Bytes: 500}})
	small, large := newBlob("small"), newBlob("large")
	small.Size, large.Size = 100, 401
	w.add(small, "")
	task := invoke(agent, &space.BlobAdd{Blob: large}, "")
	w.refused(capabilities.QuotaExceeded, task)
	_, err := w.execute(task)
	var f *capabilities.Failure
	if !errors.As(err, &f) {
		t.Fatal(err)
	}
	var details quota
	if err := capabilities.Decode(f.Encode(), &details); err != nil {
		t.Fatal(err)
	}
	if want := (quota{standing.AgentSubject(agent.DID().String()), 1, 2, 100, 500, 12 * 3600}); details != want {
		t.Errorf("the details are %+v, want %+v", details, want)
	}
	if !strings.Contains(f.Message, "has uploaded 1 blobs of 100 bytes today: upload again in 12h") {
		t.Errorf("the message is %q", f.Message)
	}
	w.Run(time.Duration(details.RetryAfter) * time.Second)
	if !w.taken(task) {
		t.Error("refused at the time that was told")
	}
}

// TestAddedAgain: a blob is charged once in a space, whoever adds it and however often, until the address that was charged for has expired.
func TestAddedAgain(t *testing.T) {
	w := limited(t, nil, standing.Limits{Agent: standing.Limit{Count: 1000}, Space: standing.Limit{Count: 1000}})
	owner, other := chaintest.Key("owner"), chaintest.Key("other")
	agents := []capabilities.Signer{agent, chaintest.Key("alice")}
	account := standing.AgentSubject(agent.DID().String())
	shared := "space/" + owner.DID().String()
	b := newBlob("some bytes")
	for n := range 5 {
		w.taken(addIn(agents[n%2], owner, b, fmt.Sprint(n)))
	}
	w.wantUsed(account, standing.Limit{Count: 1, Bytes: b.Size})
	w.wantUsed(shared, standing.Limit{Count: 1, Bytes: b.Size})
	w.wantUsed(standing.AgentSubject(agents[1].DID().String()), standing.Limit{})

	// Whatever came in between.
	const between = 40
	for n := range between {
		w.taken(addIn(agent, owner, newBlob(fmt.Sprint("between ", n, "!")), ""))
	}
	was := w.used(account)
	w.taken(addIn(agent, owner, b, "after others"))
	w.Run(13 * time.Hour) // into the next day
	w.taken(addIn(agent, owner, b, "on the next day"))
	if was.Count != 1+between || w.used(account) != was {
		t.Errorf("there are %+v in the account, %+v after the blob was added again", was, w.used(account))
	}

	// More bytes would come by that address, and in another space it is another allocation.
	longer := b
	longer.Size = 900
	w.taken(addIn(agent, owner, longer, ""))
	w.taken(addIn(agent, other, b, ""))
	w.wantUsed(account, standing.Limit{Count: 2, Bytes: 900 + b.Size})

	// What was never sent is forgotten; then it is charged once more, by whoever adds it.
	w.Run(48 * time.Hour)
	if got := w.rows("allocation/"); len(got) != 0 {
		t.Errorf("%d rows of allocations are left when all have expired", len(got))
	}
	w.taken(addIn(agents[1], owner, b, "later"))
	w.taken(addIn(agents[1], owner, b, "and again"))
	w.wantUsed(standing.AgentSubject(agents[1].DID().String()), standing.Limit{Count: 1, Bytes: b.Size})

	// What is there costs nothing, even those who may add nothing any more.
	w.bucket.blobs[string(b.Digest)] = b.Size
	w.deps.Policy.Limits = standing.Limits{Agent: standing.Limit{Bytes: 1}}
	w.serve()
	w.refused(capabilities.QuotaExceeded, addIn(agent, owner, newBlob("something else"), ""))
	for n, space := range []capabilities.Signer{owner, other} {
		if !w.taken(addIn(agent, space, b, fmt.Sprint("there ", n))) {
			t.Error("content that is stored is refused")
		}
	}
	w.Run(time.Minute)
	if items := w.rows("space/"); len(items) != 2 {
		t.Errorf("%d blobs are in spaces, want 2", len(items))
	}
}

// TestRepeatedCostsNothing: whoever repeats somebody's old invocations, on the next day too, does not use up what that one may upload.
func TestRepeatedCostsNothing(t *testing.T) {
	w := limited(t, nil, standing.Limits{Agent: standing.Limit{Count: 40}})
	var old []capabilities.Task
	for n := range 40 {
		old = append(old, invoke(agent, &space.BlobAdd{Blob: newBlob(fmt.Sprint("old ", n))}, ""))
		if !w.taken(old[n]) {
			t.Fatal("refused within the limit")
		}
	}
	for range 2 {
		for _, task := range old {
			if !w.taken(task) {
				t.Error("an acknowledged invocation that is repeated is refused")
			}
		}
		w.Run(36 * time.Hour)
	}
	for n := range 40 {
		if !w.taken(invoke(agent, &space.BlobAdd{Blob: newBlob(fmt.Sprint("new ", n))}, "")) {
			t.Fatal("refused within the limit of the next day")
		}
	}
}

// TestLimitsTogether: adds that meet, at one replica or two, take no more than there is; those of one blob are charged once.
func TestLimitsTogether(t *testing.T) {
	const callers, limit = 24, 9
	w := limited(t, nil, standing.Limits{Agent: standing.Limit{Count: limit}})
	replicas := []*uploads.Service{w.service}
	w.serve()
	replicas = append(replicas, w.service)
	together := func(task func(n int) capabilities.Task) (taken int) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for n := range callers {
			wg.Go(func() {
				inv := task(n)
				m := new(capabilities.Message)
				m.AddInvocation(inv.UCAN)
				_, err := replicas[n%2].Methods()[inv.Can()](t.Context(), capabilities.Invocation{Task: capabilities.TaskOf(m, inv.UCAN), Message: m})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					taken++
				} else if f := (*capabilities.Failure)(nil); !errors.As(err, &f) || f.Name != capabilities.QuotaExceeded {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return taken
	}
	same := newBlob("the same")
	if got := together(func(n int) capabilities.Task { return invoke(agent, &space.BlobAdd{Blob: same}, fmt.Sprint(n)) }); got != callers {
		t.Errorf("%d of %d adds of one blob were taken", got, callers)
	}
	w.wantUsed(standing.AgentSubject(agent.DID().String()), standing.Limit{Count: 1, Bytes: same.Size})
	got := together(func(n int) capabilities.Task {
		return invoke(agent, &space.BlobAdd{Blob: newBlob(fmt.Sprint("blob ", n))}, "")
	})
	if got != limit-1 {
		t.Errorf("%d further blobs were taken, want %d", got, limit-1)
	}
}

// TestLimitsAndFaults: whatever call of the engine fails, and however, a blob is charged once, and what is kept of that goes when it is worth nothing.
func TestLimitsAndFaults(t *testing.T) {
	faults := []storetest.Fault{storetest.FailBefore, storetest.FailAfter, storetest.ReportConflict, storetest.Duplicate}
	storetest.Sweep(t, faults, func(t *testing.T, choose storetest.Chooser) {
		w := limited(t, choose, standing.Limits{Agent: standing.Limit{Count: 2}, Space: standing.Limit{Count: 2}})
		owner := chaintest.Key("owner")
		b := newBlob("some bytes")
		for n := range 2 {
			if !w.taken(addIn(agent, owner, b, fmt.Sprint(n))) {
				t.Error("refused")
			}
		}
		if !w.taken(addIn(agent, owner, newBlob("another"), "")) || w.taken(addIn(agent, owner, newBlob("a third"), "")) {
			t.Error("not two were charged")
		}
		w.bucket.blobs[string(b.Digest)] = b.Size
		w.Run(48 * time.Hour)
		if items, left := w.rows("space/"), w.rows("allocation/"); len(items) != 1 || len(left) != 0 {
			t.Errorf("%d blobs are in the space, %d allocations are left", len(items), len(left))
		}
	})
}
