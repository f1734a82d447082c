package uploads

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/blob"
	httpcap "github.com/storacha/w3filecoin/capabilities/http"
	"github.com/storacha/w3filecoin/capabilities/space"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/capabilities/upload"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
	"github.com/storacha/w3filecoin/wire"
)

// ErrNoBlob: the bucket does not hold the blob (yet).
var ErrNoBlob = errors.New("blob not in the bucket")

// Stored is a blob that a bucket holds.
type Stored struct {
	Size uint64 // bytes
	URL  string // where anybody can read it
}

// Bucket keeps blobs: a directory of the service's own, or object storage that takes presigned requests. Safe for concurrent use.
type Bucket interface {
	// Stat returns the blob of a digest if the bucket vouches for all of its bytes: because it has hashed them while it took them, or checks a
	// checksum that is stored with them. The error wraps ErrNoBlob if there is none, whole and durable.
	Stat(ctx context.Context, digest blob.Digest) (Stored, error)

	// Allocate returns an address that takes exactly these bytes by HTTP PUT: no other length, no other digest, and no request that
	// begins after expires. It reserves nothing, and may be called any number of times.
	Allocate(ctx context.Context, b blob.Blob, expires time.Time) (blob.Address, error)
}

// Claims keeps claims. Repeating it does nothing.
type Claims interface {
	Keep(ctx context.Context, claim capabilities.Task) error
}

// Policy says who may upload what.
type Policy struct {
	// MayUpload reports whether content may be stored in a space; nil allows all.
	MayUpload func(space string) bool
	// MaxSize is the largest blob in bytes. Required.
	MaxSize uint64
	// Limits bound what is allocated per day.
	Limits standing.Limits
}

// DefaultWindow is how long an upload may begin after it was allocated.
const DefaultWindow = 24 * time.Hour

// grace is what an upload that began within its window has to end.
const grace = time.Hour

// Deps is what uploads are made of. Every field is required but Claims, Window (DefaultWindow) and Policy.MayUpload.
type Deps struct {
	Signer capabilities.Signer
	Store  store.Driver
	Keys   capabilities.Keys
	Bucket Bucket
	// Claims keeps the claims of where blobs are; nil: they are in the receipts of blob/accept alone.
	Claims Claims
	Policy Policy
	Window time.Duration
	Now    func() time.Time
	Log    *slog.Logger
}

// Service takes uploads for a storefront. It shares the storefront's rows of tasks, which take the receipts of http/put (ucan/conclude)
// and serve those of blob/accept.
type Service struct {
	Deps
	ledger      *tasks.Ledger
	items       store.Table[Item]
	allocations store.Table[Allocation]
	standings   *standing.Register
}

// New returns the service.
func New(d Deps) (*Service, error) {
	switch {
	case !d.Signer.DID().Defined():
		return nil, errors.New("uploads: no signer")
	case d.Store == nil, d.Keys == nil, d.Bucket == nil, d.Now == nil, d.Log == nil:
		return nil, errors.New("uploads: store, keys, bucket, clock and log are required")
	case d.Policy.MaxSize == 0:
		return nil, errors.New("uploads: the largest blob is not set")
	}
	if d.Window <= 0 {
		d.Window = DefaultWindow
	}
	return &Service{
		Deps:        d,
		ledger:      tasks.New(d.Store, d.Keys, d.Now, d.Log),
		items:       store.NewTable[Item](d.Store),
		allocations: store.NewTable[Allocation](d.Store),
		standings:   standing.New(d.Store, standing.Policy{}, d.Now),
	}, nil
}

// Methods returns the capabilities that are executed here.
func (s *Service) Methods() map[string]capabilities.Method {
	return map[string]capabilities.Method{
		space.BlobAddAbility:    s.add,
		space.BlobGetAbility:    s.get,
		space.BlobListAbility:   s.list,
		space.BlobRemoveAbility: s.remove,
		space.IndexAddAbility:   s.addIndex,
		upload.AddAbility:       s.addUpload,
	}
}

// WithEffects reports whether clients need the blocks of the effects in the reply to an ability: those of space/blob/add carry the address.
func WithEffects(ability string) bool { return ability == space.BlobAddAbility }

// add executes space/blob/add: it allocates, within the limits, and if the blob is there already accepts it at once.
func (s *Service) add(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
	var nb space.BlobAdd
	if err := inv.Caveats(&nb); err != nil {
		return nil, err
	}
	owner, err := s.spaceOf(inv)
	if err != nil {
		return nil, err
	}
	if err := s.checkBlob(nb.Blob); err != nil {
		return nil, err
	}
	stored, err := s.Bucket.Stat(ctx, nb.Blob.Digest)
	there := err == nil
	if err != nil && !errors.Is(err, ErrNoBlob) {
		return nil, fmt.Errorf("looking for blob %s: %w", nb.Blob.CID(), err)
	}
	if there && stored.Size != nb.Blob.Size {
		return nil, sizeFailure("blob %s has %d bytes, not %d: state its size", nb.Blob.CID(), stored.Size, nb.Blob.Size)
	}
	// Whole seconds, as the address states it.
	expires := s.Now().Add(s.Window).Truncate(time.Second)
	if !there {
		if earlier, err := s.admit(ctx, inv, nb.Blob, expires); err != nil || earlier != nil {
			return earlier, err
		}
	}
	plan, err := s.plan(inv.Task, nb.Blob, owner)
	if err != nil {
		return nil, err
	}

	fx := capabilities.Effects{Fork: []capabilities.Task{plan.allocate, plan.put, plan.accept}}
	var effects store.Effects
	allocated := blob.AllocateOK{}
	if there {
		if err := s.acceptNow(ctx, plan, stored, &fx); err != nil {
			return nil, err
		}
	} else {
		address, err := s.Bucket.Allocate(ctx, nb.Blob, expires)
		if err != nil {
			return nil, fmt.Errorf("allocating blob %s: %w", nb.Blob.CID(), err)
		}
		allocated = blob.AllocateOK{Size: nb.Blob.Size, Address: &address}
		expireQueue.SendAt(&effects, expires.Add(grace), addMessage{inv.Link()})
		// Before the acknowledgement: the receipt of http/put must not come to nobody who waits for it.
		if _, err := s.ledger.Await(ctx, plan.put.Link(), &plan.put, tasks.Key(inv.Link()), deliveredQueue.Name, false); err != nil {
			return nil, err
		}
	}
	r, err := capabilities.Issue(s.Signer, plan.allocate.Link(), &allocated, capabilities.Effects{})
	if err != nil {
		return nil, err
	}
	if err := s.tell(&fx, r, plan.allocate.Block()); err != nil {
		return nil, err
	}
	ok := space.BlobAddOK{Site: capabilities.Await{Selector: ".out.ok.site", Task: plan.accept.Link()}}
	if r, err = capabilities.Issue(s.Signer, inv.Link(), &ok, fx); err != nil {
		return nil, err
	}
	return s.ledger.Accept(ctx, inv.Task, r, fx, store.Listing{}, effects)
}

// spaceOf returns the space that an invocation is about, if it may be used here.
func (s *Service) spaceOf(inv capabilities.Invocation) (capabilities.DID, error) {
	did, err := wire.ParseDID(inv.Resource())
	if err != nil || did.Method() != "key" || len(did.String()) > maxSpace {
		return did, capabilities.Fail("InvalidSpace", "a space is a did:key of at most %d characters", maxSpace)
	}
	if s.Policy.MayUpload != nil && !s.Policy.MayUpload(inv.Resource()) {
		return did, capabilities.Fail(capabilities.Unauthorized,
			"%s may not store content here: ask the operator to add it to the storefront's allow-list", did)
	}
	return did, nil
}

// maxSpace is how long the DID of a space may be for the rows that name it. All kinds of keys but RSA of more than 2048 bits fit.
const maxSpace = 400

func (s *Service) checkBlob(b blob.Blob) error {
	if !supported(b.Digest) {
		return capabilities.NewUnsupportedContent(b.CID())
	}
	if b.Size > s.Policy.MaxSize {
		return sizeFailure("blob of %d bytes, at most %d are accepted: split it", b.Size, s.Policy.MaxSize)
	}
	return nil
}

// sizeFailure has the name that the published service gives to a size that it does not take.
func sizeFailure(format string, args ...any) *capabilities.Failure {
	return capabilities.Fail("BlobSizeOutsideOfSupportedRange", format, args...)
}

// supported reports whether blobs of such digests are taken: sha2-256, whole.
func supported(d blob.Digest) bool {
	decoded, err := multihash.Decode(multihash.Multihash(d))
	return err == nil && decoded.Code == multihash.SHA2_256 && decoded.Length == 32
}

// plan is the tasks that follow from one space/blob/add. They name it as their cause, so they are its own, and made again they are the same.
type plan struct {
	add, allocate, put, accept capabilities.Task
	provider                   capabilities.Signer
	blob                       blob.Blob
	space                      capabilities.DID
}

func (s *Service) plan(add capabilities.Task, b blob.Blob, owner capabilities.DID) (p plan, err error) {
	self := s.Signer.DID()
	p = plan{add: add, blob: b, space: owner}
	if p.provider, err = b.Digest.Provider(); err != nil {
		return p, err
	}
	p.allocate, err = capabilities.Invoke(s.Signer, self, self.String(),
		&blob.Allocate{Blob: b, Cause: add.Link(), Space: blob.Space{DID: owner}}, capabilities.Terms{})
	if err != nil {
		return p, err
	}
	fact, err := httpcap.KeysFact(p.provider)
	if err != nil {
		return p, err
	}
	p.put, err = capabilities.Invoke(p.provider, p.provider.DID(), p.provider.DID().String(), &httpcap.Put{
		Body:    b,
		URL:     capabilities.Await{Selector: ".out.ok.address.url", Task: p.allocate.Link()},
		Headers: capabilities.Await{Selector: ".out.ok.address.headers", Task: p.allocate.Link()},
	}, capabilities.Terms{Facts: [][]byte{fact}})
	if err != nil {
		return p, err
	}
	p.accept, err = capabilities.Invoke(s.Signer, self, self.String(), &blob.Accept{Blob: b, Space: blob.Space{DID: owner},
		Put: capabilities.Await{Selector: ".out.ok", Task: p.put.Link()}}, capabilities.Terms{})
	return p, err
}

// acceptNow concludes http/put and blob/accept of a blob that is there.
func (s *Service) acceptNow(ctx context.Context, p plan, stored Stored, fx *capabilities.Effects) error {
	put, err := capabilities.Issue(p.provider, p.put.Link(), &httpcap.PutOK{}, capabilities.Effects{})
	if err != nil {
		return err
	}
	if err := s.tell(fx, put, p.put.Block()); err != nil {
		return err
	}
	if err := s.accept(ctx, p.add.Link(), p.accept, p.blob, p.space, stored); err != nil {
		return err
	}
	kept, err := s.ledger.Read(ctx, p.accept.Link())
	if err != nil {
		return err
	}
	return s.tell(fx, kept.Receipt, kept.Message.Blocks()...)
}

// tell forks a ucan/conclude that brings a receipt with blocks that belong to it.
func (s *Service) tell(fx *capabilities.Effects, r *capabilities.Receipt, with ...capabilities.Block) error {
	links := []cid.Cid{r.Link()}
	fx.Attached = append(fx.Attached, r.Block())
	for _, b := range with {
		if !b.CID.Equals(r.Link()) {
			links = append(links, b.CID)
			fx.Attached = append(fx.Attached, b)
		}
	}
	self := s.Signer.DID()
	task, err := capabilities.Invoke(s.Signer, self, self.String(), &ucan.Conclude{Receipt: r.Link()},
		capabilities.Terms{Facts: [][]byte{ucan.LinksFact(links...)}})
	if err != nil {
		return err
	}
	fx.Fork = append(fx.Fork, task)
	return nil
}

// get executes space/blob/get/0/1.
func (s *Service) get(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
	var nb space.BlobGet
	if err := inv.Caveats(&nb); err != nil {
		return nil, err
	}
	if _, err := s.spaceOf(inv); err != nil {
		return nil, err
	}
	rec, err := s.items.Get(ctx, itemKey(inv.Resource(), nb.Digest))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if !rec.Exists() || !rec.Value.present() {
		return nil, capabilities.Fail("BlobNotFound", "blob %s is not in space %s", multihash.Multihash(nb.Digest).B58String(), inv.Resource())
	}
	item := rec.Value.item(nb.Digest)
	return capabilities.Issue(s.Signer, inv.Link(), &item, capabilities.Effects{})
}

// maxList is how many blobs a page of a list has.
const maxList = 100

// list executes space/blob/list.
func (s *Service) list(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
	var nb space.BlobList
	if err := inv.Caveats(&nb); err != nil {
		return nil, err
	}
	if _, err := s.spaceOf(inv); err != nil {
		return nil, err
	}
	limit := maxList
	if nb.Size > 0 && nb.Size < maxList {
		limit = int(nb.Size)
	}
	partition := spacePartition(inv.Resource())
	recs, next, err := s.items.Query(ctx, partition, "", nb.Cursor, limit)
	if err != nil && nb.Cursor != "" {
		// The cursor comes from outside. If there is an answer without it, it is to blame.
		if _, _, err := s.items.Query(ctx, partition, "", "", 1); err == nil {
			return nil, capabilities.Malformed(inv.Can(), inv.Resource(), errors.New("the cursor is not of this list"))
		}
	}
	if err != nil {
		return nil, err
	}
	ok := space.BlobListOK{Cursor: next}
	for _, rec := range recs {
		if !rec.Value.present() {
			continue
		}
		digest, err := multihash.FromB58String(rec.Key.Sort)
		if err != nil {
			return nil, fmt.Errorf("row %s: %w", rec.Key, err)
		}
		ok.Results = append(ok.Results, rec.Value.item(blob.Digest(digest)))
	}
	ok.Size = uint64(len(ok.Results))
	return capabilities.Issue(s.Signer, inv.Link(), &ok, capabilities.Effects{})
}

// remove executes space/blob/remove: the space no longer lists the blob. Custody keeps the bytes, because pieces of others may rest on them.
func (s *Service) remove(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
	var nb space.BlobRemove
	if err := inv.Caveats(&nb); err != nil {
		return nil, err
	}
	if _, err := s.spaceOf(inv); err != nil {
		return nil, err
	}
	key := itemKey(inv.Resource(), nb.Digest)
	rec, err := s.items.Get(ctx, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	var ok space.BlobRemoveOK
	var effects store.Effects
	if rec.Exists() && rec.Value.present() {
		ok.Size = rec.Value.Size
		removeQueue.Send(&effects, removeMessage{Key: key, At: rec.Value.At})
	}
	r, err := capabilities.Issue(s.Signer, inv.Link(), &ok, capabilities.Effects{})
	if err != nil {
		return nil, err
	}
	return s.ledger.Accept(ctx, inv.Task, r, capabilities.Effects{}, store.Listing{}, effects)
}

// addIndex executes space/index/add: the index has to be there. It is content like any other; nothing here reads it.
func (s *Service) addIndex(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
	var nb space.IndexAdd
	if err := inv.Caveats(&nb); err != nil {
		return nil, err
	}
	if _, err := s.spaceOf(inv); err != nil {
		return nil, err
	}
	digest := blob.Digest(nb.Index.Hash())
	if !supported(digest) {
		return nil, capabilities.NewUnsupportedContent(nb.Index)
	}
	if _, err := s.Bucket.Stat(ctx, digest); errors.Is(err, ErrNoBlob) {
		return nil, capabilities.Fail("IndexNotFound", "index %s was not stored here: store it first", nb.Index)
	} else if err != nil {
		return nil, fmt.Errorf("looking for index %s: %w", nb.Index, err)
	}
	r, err := capabilities.Issue(s.Signer, inv.Link(), &space.IndexAddOK{}, capabilities.Effects{})
	if err != nil {
		return nil, err
	}
	return s.ledger.Accept(ctx, inv.Task, r, capabilities.Effects{}, store.Listing{}, store.Effects{})
}

// maxShards is how many shards one upload/add may name.
const maxShards = 1000

// addUpload executes upload/add. The task is the record of it; nothing here depends on it.
func (s *Service) addUpload(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
	var nb upload.Add
	if err := inv.Caveats(&nb); err != nil {
		return nil, err
	}
	if _, err := s.spaceOf(inv); err != nil {
		return nil, err
	}
	if len(nb.Shards) > maxShards {
		return nil, capabilities.Malformed(inv.Can(), inv.Resource(), fmt.Errorf("%d shards, at most %d at a time", len(nb.Shards), maxShards))
	}
	ok := upload.AddOK(nb)
	r, err := capabilities.Issue(s.Signer, inv.Link(), &ok, capabilities.Effects{})
	if err != nil {
		return nil, err
	}
	return s.ledger.Accept(ctx, inv.Task, r, capabilities.Effects{}, store.Listing{}, store.Effects{})
}

// moment is a time as lists show it.
func moment(milliseconds int64) string {
	return time.UnixMilli(milliseconds).UTC().Format("2006-01-02T15:04:05.000Z")
}
