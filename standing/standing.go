// Package standing keeps what a role knows of those who offer things to it: how much they have offered today, and how often what they offered was
// proven wrong. What they upload is offered too, in this sense, and has accounts of its own. One row per subject holds both, and a row says all that there is to say, so an admission reads one row and the rows are as many
// as the subjects.
//
// An account of a day (a UTC day) is reserved before the offer is acknowledged, by the task of the offer: repeating an offer takes nothing more. A
// reservation whose offer failed afterwards is not given back. So an account may count too much until the day is over, never too little.
//
// A score grows by one with every offer that was proven wrong, and by nothing else, and halves with time. Each offer proven right takes a little off. What
// it leads to is the role's business: see [Policy].
package standing

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/store"
)

// Limit bounds what a subject may offer on one UTC day. A field that is zero bounds nothing.
type Limit struct {
	Count uint64 // pieces offered, or blobs uploaded
	Bytes uint64 // padded bytes of the pieces, bytes of the blobs, as claimed
}

// None reports whether nothing is bounded.
func (l Limit) None() bool { return l == Limit{} }

// Limits bound what agents may offer on one UTC day; the zero Limits nothing.
type Limits struct {
	// Agent bounds each agent, and Space each resource that agents act on, other than their own DID.
	Agent, Space Limit
	// Newcomers bounds all agents together of whom nothing was proven right yet: a new DID costs nothing, so limits of each do not bound many.
	Newcomers Limit
}

// Policy says what a score leads to. The zero Policy: to nothing.
type Policy struct {
	// HalfLife is the time in which a score halves; 72 h if zero.
	HalfLife time.Duration
	// Quarantine is the score from which a subject is served apart from others, Refuse the one from which it is not served; zero: never.
	Quarantine, Refuse float64
}

// DefaultPolicy quarantines after three and refuses after ten offers that were proven wrong within three days or so.
func DefaultPolicy() Policy { return Policy{HalfLife: 72 * time.Hour, Quarantine: 3, Refuse: 10} }

func (p Policy) withDefaults() Policy {
	if p.HalfLife <= 0 {
		p.HalfLife = 72 * time.Hour
	}
	return p
}

const (
	// repaid is what an offer proven right takes off a score: one wrong in a hundred keeps it level.
	repaid = 0.01
	// maxSentence bounds a score at so many times the score of refusal: after three half-lives anybody is served again.
	maxSentence = 8
	// remembered is how many tasks a row remembers for offers and verdicts that come again.
	remembered = 32
	// negligible is a score that is none.
	negligible = 0.005
)

// Level is how a subject is served.
type Level int

// Levels.
const (
	Good Level = iota
	Quarantined
	Refused
)

func (l Level) String() string { return [...]string{"good", "quarantined", "refused"}[l] }

// Standing is what is known of a subject at a time.
type Standing struct {
	Subject string
	Score   float64
	Level   Level
	// RetryAfter is when a refused subject is served again, if nothing more is proven against it.
	RetryAfter time.Duration
	// Right and Wrong count verdicts. Right counts only where it changed the row: the first one, and those that repaid something.
	Right, Wrong uint64
	// Cause is of the latest verdict that was against it, Since when that was.
	Cause string
	Since time.Time
	// Pardoned is when an operator last pardoned it; zero: never.
	Pardoned time.Time
}

// Row is what is kept of a subject, under `standing/{subject}`. Times are milliseconds since the Unix epoch.
type Row struct {
	Subject string `cbor:"n"`
	// Day is the day of the account, in days since the Unix epoch, and Taken the latest tasks it was reserved for.
	Day   int64    `cbor:"d,omitzero"`
	Count uint64   `cbor:"c,omitzero"`
	Bytes uint64   `cbor:"b,omitzero"`
	Taken [][]byte `cbor:"k,omitzero"`
	// Score is in thousandths, as of At; Judged are the latest tasks that changed it.
	Score  uint64   `cbor:"s,omitzero"`
	At     int64    `cbor:"a,omitzero"`
	Judged [][]byte `cbor:"j,omitzero"`
	Right  uint64   `cbor:"r,omitzero"`
	Wrong  uint64   `cbor:"w,omitzero"`
	Cause  string   `cbor:"u,omitzero"`
	Since  int64    `cbor:"i,omitzero"`

	Pardoned int64 `cbor:"p,omitzero"`
	// The policy when the score last changed: enough to tell where it stands now. Thousandths, and milliseconds.
	HalfLife   int64  `cbor:"h,omitzero"`
	Quarantine uint64 `cbor:"q,omitzero"`
	Refuse     uint64 `cbor:"f,omitzero"`
}

// AgentSubject is what an agent is called.
func AgentSubject(did string) string { return "agent/" + did }

func key(subject string) store.Key { return store.Key{Partition: "standing/" + subject} }

// index lists the subjects that something was proven against.
const index = "standing"

// maxCause bounds the text of a cause, in bytes.
const maxCause = 512

// Register is the rows of one role.
type Register struct {
	rows   store.Table[Row]
	policy Policy
	now    func() time.Time
	// stripes keep callers of one process from losing the same row to each other again and again; between processes the rows' versions decide.
	stripes [64]sync.Mutex
}

// New returns the register over a role's rows.
func New(rows store.Rows, policy Policy, now func() time.Time) *Register {
	return &Register{rows: store.NewTable[Row](rows), policy: policy.withDefaults(), now: now}
}

func (r *Register) lock(subject string) func() {
	h := fnv.New32a()
	_, _ = h.Write([]byte(subject)) // never fails
	m := &r.stripes[h.Sum32()%uint32(len(r.stripes))]
	m.Lock()
	return m.Unlock
}

// Of returns the standing of a subject. One that nothing is known of is [Good].
func (r *Register) Of(ctx context.Context, subject string) (Standing, error) {
	rec, err := r.rows.Get(ctx, key(subject))
	if errors.Is(err, store.ErrNotFound) {
		return Standing{Subject: subject}, nil
	}
	if err != nil {
		return Standing{}, err
	}
	return rec.Value.standing(r.policy, r.now()), nil
}

// Exceeded says that a subject has offered as much as it may for today.
type Exceeded struct {
	Subject     string
	Limit, Used Limit
	RetryAfter  time.Duration
}

func (e *Exceeded) Error() string {
	return fmt.Sprintf("%s has used %d of %d, in bytes %d of %d, for today", e.Subject, e.Used.Count, e.Limit.Count, e.Used.Bytes, e.Limit.Bytes)
}

const day = 24 * time.Hour

// Reserve takes one offer of some bytes out of what the subject may offer today. The error is [*Exceeded] if it may not; then nothing was written.
// Reserving for a task again, soon after, takes nothing.
func (r *Register) Reserve(ctx context.Context, subject string, task cid.Cid, bytes uint64, limit Limit) error {
	defer r.lock(subject)()
	_, err := r.rows.Update(ctx, key(subject), func(rec *store.Record[Row], _ *store.Effects) error {
		now := r.now()
		v := &rec.Value
		if today := now.Unix() / int64(day/time.Second); v.Day != today {
			v.Day, v.Count, v.Bytes, v.Taken = today, 0, 0, nil
		}
		if known(v.Taken, task) {
			return store.ErrUnchanged
		}
		over := limit.Count != 0 && v.Count >= limit.Count ||
			limit.Bytes != 0 && (bytes > limit.Bytes || v.Bytes > limit.Bytes-bytes)
		if over {
			return &Exceeded{subject, limit, Limit{v.Count, v.Bytes}, now.Truncate(day).Add(day).Sub(now)}
		}
		v.Subject = subject
		v.Count++
		v.Bytes += bytes
		v.Taken = remember(v.Taken, task)
		return nil
	})
	return err
}

// Offerer is who offers: an agent, on a resource that may be its own DID.
type Offerer struct {
	Agent, Space string
	// Newcomer says that nothing was proven right of the agent yet.
	Newcomer bool
}

// ReserveAll reserves as Reserve does for all that limits bound: the agent, its space, newcomers. It ends with the first that may not; what was taken from
// those before stays taken. The accounts are those of subjects whose names begin with prefix, so that different things can be counted apart.
func (r *Register) ReserveAll(ctx context.Context, prefix string, by Offerer, task cid.Cid, bytes uint64, limits Limits) error {
	for _, account := range []struct {
		subject string
		limit   Limit
		counts  bool
	}{
		{AgentSubject(by.Agent), limits.Agent, true},
		{"space/" + by.Space, limits.Space, by.Space != by.Agent},
		{"newcomers", limits.Newcomers, by.Newcomer},
	} {
		if !account.counts || account.limit.None() {
			continue
		}
		if err := r.Reserve(ctx, prefix+account.subject, task, bytes, account.limit); err != nil {
			return err
		}
	}
	return nil
}

// Wrong notes that what a task offered was proven wrong. Noting a task again, soon after, changes nothing.
func (r *Register) Wrong(ctx context.Context, subject string, task cid.Cid, cause string) (Standing, error) {
	defer r.lock(subject)()
	rec, err := r.rows.Update(ctx, key(subject), func(rec *store.Record[Row], _ *store.Effects) error {
		v := &rec.Value
		if known(v.Judged, task) {
			return store.ErrUnchanged
		}
		now := r.now()
		score := v.score(r.policy.HalfLife, now) + 1
		if most := r.policy.Refuse * maxSentence; r.policy.Refuse > 0 {
			score = min(score, most)
		}
		v.Subject = subject
		v.set(score, r.policy, now)
		v.Judged = remember(v.Judged, task)
		v.Wrong++
		v.Cause, v.Since = cause[:min(len(cause), maxCause)], now.UnixMilli()
		rec.Listing = store.Listing{Index: index, Sort: subject}
		return nil
	})
	if err != nil {
		return Standing{}, fmt.Errorf("noting what %s offered: %w", subject, err)
	}
	return rec.Value.standing(r.policy, r.now()), nil
}

// Right notes that what a task offered was proven right. It writes only where that changes something: a score that is left, or, where newcomers are
// told from others, the first time.
func (r *Register) Right(ctx context.Context, subject string, task cid.Cid) error {
	defer r.lock(subject)()
	_, err := r.rows.Update(ctx, key(subject), func(rec *store.Record[Row], _ *store.Effects) error {
		v := &rec.Value
		now := r.now()
		score := v.score(r.policy.HalfLife, now)
		if known(v.Judged, task) || v.Right > 0 && score < negligible {
			return store.ErrUnchanged
		}
		v.Subject = subject
		v.set(max(0, score-repaid), r.policy, now)
		v.Judged = remember(v.Judged, task)
		v.Right++
		return nil
	})
	if err != nil {
		return fmt.Errorf("noting what %s offered: %w", subject, err)
	}
	return nil
}

// List returns subjects that something was proven against, by name, after cursor; next is empty when there are no more. It is for operators: it needs no
// policy, and shows subjects as the policy of their latest verdict has them.
func List(ctx context.Context, rows store.Rows, now time.Time, cursor string, limit int) (list []Standing, next string, err error) {
	recs, next, err := store.NewTable[Row](rows).Scan(ctx, index, "", cursor, limit)
	if err != nil {
		return nil, "", err
	}
	for _, rec := range recs {
		list = append(list, rec.Value.standing(rec.Value.policy(), now))
	}
	return list, next, nil
}

// Pardon takes the score of a subject away. What it has offered today stays counted. store.ErrNotFound if nothing was proven against it.
func Pardon(ctx context.Context, rows store.Rows, now time.Time, subject string) error {
	_, err := store.NewTable[Row](rows).Update(ctx, key(subject), func(rec *store.Record[Row], _ *store.Effects) error {
		if rec.Value.Wrong == 0 {
			return fmt.Errorf("%s: %w", subject, store.ErrNotFound)
		}
		if rec.Value.Score == 0 && rec.Listing == (store.Listing{}) {
			return store.ErrUnchanged
		}
		rec.Value.Score, rec.Value.At, rec.Value.Pardoned = 0, now.UnixMilli(), now.UnixMilli()
		rec.Listing = store.Listing{}
		return nil
	})
	return err
}

func (v *Row) score(halfLife time.Duration, now time.Time) float64 {
	age := max(0, now.Sub(time.UnixMilli(v.At)))
	return float64(v.Score) / 1000 * math.Exp2(-float64(age)/float64(halfLife))
}

func (v *Row) set(score float64, p Policy, now time.Time) {
	v.Score, v.At = uint64(math.Round(score*1000)), now.UnixMilli()
	v.HalfLife = p.HalfLife.Milliseconds()
	v.Quarantine, v.Refuse = uint64(math.Round(p.Quarantine*1000)), uint64(math.Round(p.Refuse*1000))
}

func (v *Row) policy() Policy {
	return Policy{time.Duration(v.HalfLife) * time.Millisecond, float64(v.Quarantine) / 1000, float64(v.Refuse) / 1000}.withDefaults()
}

func (v *Row) standing(p Policy, now time.Time) Standing {
	s := Standing{Subject: v.Subject, Score: v.score(p.HalfLife, now), Right: v.Right, Wrong: v.Wrong, Cause: v.Cause, Since: date(v.Since), Pardoned: date(v.Pardoned)}
	if s.Score < negligible {
		s.Score = 0
	}
	switch {
	case p.Refuse > 0 && s.Score >= p.Refuse:
		s.Level = Refused
		s.RetryAfter = time.Duration(float64(p.HalfLife)*math.Log2(s.Score/p.Refuse)).Truncate(time.Second) + time.Second
	case p.Quarantine > 0 && s.Score >= p.Quarantine:
		s.Level = Quarantined
	}
	return s
}

func date(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// short names a task in a row: as much of its hash as nobody can meet by intent.
func short(task cid.Cid) []byte {
	hash := task.Hash()
	return hash[len(hash)-min(16, len(hash)):]
}

func known(list [][]byte, task cid.Cid) bool {
	name := short(task)
	return slices.ContainsFunc(list, func(b []byte) bool { return string(b) == string(name) })
}

func remember(list [][]byte, task cid.Cid) [][]byte {
	list = append(list, short(task))
	return list[max(0, len(list)-remembered):]
}
