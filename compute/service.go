package compute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multicodec"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// Timing says how long things may take. The zero value of a field means its default.
type Timing struct {
	// Retry is how long after a failure the addresses that failed are tried again, if somebody asks; 1 s.
	Retry time.Duration
	// Stuck is how long a job may run before it is taken for lost, and begun again if somebody asks; 6 hours. It has to exceed the time that
	// the largest content takes.
	Stuck time.Duration
}

func (t Timing) withDefaults() Timing {
	t.Retry = cmp.Or(t.Retry, time.Second)
	t.Stuck = cmp.Or(t.Stuck, 6*time.Hour)
	return t
}

// Deps is what a compute provider is made of. Every field is required but Timing.
type Deps struct {
	Signer  capabilities.Signer
	Store   store.Driver
	Keys    capabilities.Keys
	Fetcher Fetcher
	// Conn returns the connection by which receipts are pushed to whoever asked, false if they are not.
	Conn   func(did string) (capabilities.Conn, bool)
	Timing Timing
	Now    func() time.Time
	Log    *slog.Logger
}

// Service is the compute role.
type Service struct {
	Deps
	ledger  *tasks.Ledger
	courier *tasks.Courier
	jobs    store.Table[Job]
	results store.Table[Result]
}

// New returns a compute provider.
func New(d Deps) (*Service, error) {
	switch {
	case !d.Signer.DID().Defined():
		return nil, errors.New("compute: no signer")
	case d.Store == nil, d.Keys == nil, d.Fetcher == nil, d.Conn == nil, d.Now == nil, d.Log == nil:
		return nil, errors.New("compute: store, keys, fetcher, connections, clock and log are required")
	}
	d.Timing = d.Timing.withDefaults()
	s := &Service{
		Deps:    d,
		ledger:  tasks.New(d.Store, d.Keys, d.Now, d.Log),
		jobs:    store.NewTable[Job](d.Store),
		results: store.NewTable[Result](d.Store),
	}
	s.courier = &tasks.Courier{
		Ledger: s.ledger, Signer: d.Signer, Deliveries: store.NewTable[tasks.Delivery](d.Store), Blobs: d.Store,
		Queue: deliverQueue, Conn: d.Conn, Now: d.Now,
	}
	return s, nil
}

// Methods returns the capabilities that the provider executes.
func (s *Service) Methods() map[string]capabilities.Method {
	return map[string]capabilities.Method{computecap.PieceCIDAbility: s.pieceCID}
}

// pieceCID executes compute/piececid: it answers from the job's row, and starts the job if that is what there is to do. Called again after
// a change of the row it answers anew, so whoever waits calls it again.
func (s *Service) pieceCID(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
	var nb computecap.PieceCID
	if err := inv.Caveats(&nb); err != nil {
		return nil, err
	}
	if kept, err := s.ledger.Receipt(ctx, inv.Link()); !errors.Is(err, store.ErrNotFound) {
		return kept, err
	}
	if inv.Resource() != s.Signer.DID().String() {
		return nil, capabilities.Fail(capabilities.UnsupportedCapability, "%s does not have a %q capability provider", inv.Resource(), inv.Can())
	}
	if !supported(nb.Content) {
		r, err := capabilities.IssueFailure(s.Signer, inv.Link(), capabilities.NewUnsupportedContent(nb.Content), capabilities.Effects{})
		if err != nil {
			return nil, err
		}
		return s.ledger.Accept(ctx, inv.Task, r, capabilities.Effects{}, store.Listing{}, store.Effects{})
	}
	job, err := s.jobs.Get(ctx, jobKey(inv.Link()))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if job.Exists() && s.underWay(&job.Value) && (inv.Waits || job.Value.Push) {
		return nil, accepted()
	}
	claimed, err := s.locations(ctx, inv, nb.Content)
	if err != nil {
		return nil, err
	}
	var answer error
	_, err = s.jobs.UpdateFrom(ctx, job, func(j *store.Record[Job], fx *store.Effects) (err error) {
		answer, err = s.decide(j, fx, inv, nb.Content, claimed)
		return err
	})
	if err != nil {
		return nil, err
	}
	return nil, answer
}

func accepted() error {
	return &capabilities.Unavailable{Accepted: true, RetryAfter: 5 * time.Second, Reason: "the piece CID is being computed"}
}

func (s *Service) underWay(j *Job) bool {
	return j.State == Running && s.Now().Sub(time.UnixMilli(j.Since)) < s.Timing.Stuck
}

// decide answers an invocation from the row of its job, which may be empty, and changes the row by what follows.
func (s *Service) decide(j *store.Record[Job], fx *store.Effects, inv capabilities.Invocation, content cid.Cid, claimed []Location) (answer, err error) {
	now := s.Now()
	notFound := func() error { return capabilities.NewContentNotFound(content, j.Value.Reason) }
	switch {
	case !j.Exists() && len(claimed) == 0:
		return capabilities.NewContentNotFound(content,
			"no valid assert/location claim by "+inv.Issuer.String()+" came with the invocation: attach one that names this content"), store.ErrUnchanged
	case !j.Exists():
		j.Listing = jobListing(content, inv.Link())
		j.Value = Job{Task: capabilities.Pending(inv.Task).Encode(), Content: content, Invoker: inv.Issuer.String()}
	case s.underWay(&j.Value):
		if inv.Waits || j.Value.Push {
			return accepted(), store.ErrUnchanged
		}
		j.Value.Push = true
		return accepted(), nil
	case j.Value.State == Failed && !isNew(claimed, j.Value.Locations):
		// The failure is told before it is forgotten; then the same addresses may be tried once more.
		if !j.Value.Told {
			j.Value.Told = true
			return notFound(), nil
		}
		if now.Sub(time.UnixMilli(j.Value.Since)) < s.Timing.Retry {
			return notFound(), store.ErrUnchanged
		}
	}
	if len(claimed) > 0 {
		j.Value.Locations = claimed
	}
	j.Value.enter(Running, now)
	j.Value.Try++
	j.Value.Push = j.Value.Push || !inv.Waits
	computeQueue.Send(fx, computeMessage{Task: inv.Link(), Try: j.Value.Try})
	return accepted(), nil
}

// isNew reports whether something is claimed that was not known.
func isNew(claimed, known []Location) bool {
	return slices.ContainsFunc(claimed, func(l Location) bool { return !slices.Contains(known, l) })
}

// supported reports whether a content CID names a whole byte string by a hash that is computed along with the piece: raw or CAR codec,
// sha2-256.
func supported(c cid.Cid) bool {
	p := c.Prefix()
	return p.Version == 1 && (p.Codec == cid.Raw || p.Codec == uint64(multicodec.Car)) && p.MhType == multihash.SHA2_256 && p.MhLength == 32
}

// Receipt returns the conclusion of a task. store.ErrNotFound if the task is unknown or not concluded.
func (s *Service) Receipt(ctx context.Context, task cid.Cid) (*capabilities.Message, error) {
	rec, err := s.ledger.Get(ctx, task)
	if err != nil {
		return nil, err
	}
	if !rec.Concluded {
		return nil, store.ErrNotFound
	}
	return rec.Decode()
}

// statusPage bounds how many jobs a status lists.
const statusPage = 100

// Status tells what is known of a content: the piece that its bytes gave, or the jobs for it. store.ErrNotFound if nothing is.
func (s *Service) Status(ctx context.Context, c cid.Cid) (*capabilities.Status, error) {
	status := &capabilities.Status{Role: "compute", CID: c.String()}
	result, err := s.results.Get(ctx, resultKey(c))
	switch {
	case err == nil:
		const computed = "computed"
		status.Pieces = append(status.Pieces, capabilities.PieceStatus{
			Piece: result.Value.Piece.String(), Content: c.String(),
			Waiting: capabilities.NewWaiting(computed, map[string]int64{computed: result.Value.At}, "", 0),
			Tasks:   map[string]string{computecap.PieceCIDAbility: result.Value.Task.String()},
		})
		return status, nil
	case !errors.Is(err, store.ErrNotFound):
		return nil, err
	}
	jobs, _, err := s.jobs.Scan(ctx, jobListing(c, c).Index, "", "", statusPage)
	if err != nil {
		return nil, err
	}
	for _, j := range jobs {
		times := map[State]int64{j.Value.State: j.Value.Since}
		status.Pieces = append(status.Pieces, capabilities.PieceStatus{
			Content: c.String(), Attempts: uint64(j.Value.Try),
			Waiting: capabilities.NewWaiting(j.Value.State, times, j.Value.Reason, 0),
			Tasks:   map[string]string{computecap.PieceCIDAbility: jobTask(j.Key)},
		})
	}
	if len(status.Pieces) == 0 {
		return nil, store.ErrNotFound
	}
	return status, nil
}

func jobTask(k store.Key) string { return k.Partition[len("job/"):] }

// Start arms what no message arms: nothing. A provider has no timers.
func (s *Service) Start(context.Context) error { return nil }

// taskOf returns the task of a job.
func taskOf(j *Job, link cid.Cid) (capabilities.Task, error) {
	m, err := (&tasks.Record{Message: j.Task}).Decode()
	if err != nil {
		return capabilities.Task{}, err
	}
	t, ok := capabilities.FindTask(m, link)
	if !ok {
		return capabilities.Task{}, fmt.Errorf("the row of job %s lacks its task", link)
	}
	return t, nil
}
