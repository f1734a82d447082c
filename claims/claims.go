package claims

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// Bounds of a claim, and of what is read of them.
const (
	maxHash      = 128  // bytes of a multihash
	maxLocations = 16   // addresses of one claim
	maxURL       = 2048 // bytes of an address
	maxShown     = 100  // claims of one content
)

// Deps is what claims are made of. Every field is required but MayClaim and Forward.
type Deps struct {
	Signer capabilities.Signer
	Store  store.Driver
	Keys   capabilities.Keys
	// Revoked reports whether a UCAN was revoked.
	Revoked func(ctx context.Context, ucan cid.Cid) (bool, error)
	// MayClaim reports whether claims may be made on a resource (their `with`); nil allows all.
	MayClaim func(with string) bool
	// Forward is a claims service that is told of the service's own claims; nil: none.
	Forward *capabilities.Peer
	Now     func() time.Time
	Log     *slog.Logger
}

// Service keeps claims.
type Service struct {
	Deps
	ledger     *tasks.Ledger
	records    store.Table[Record]
	references store.Table[Reference]
}

// New returns the service.
func New(d Deps) (*Service, error) {
	switch {
	case !d.Signer.DID().Defined():
		return nil, errors.New("claims: no signer")
	case d.Store == nil, d.Keys == nil, d.Revoked == nil, d.Now == nil, d.Log == nil:
		return nil, errors.New("claims: store, keys, revocations, clock and log are required")
	}
	return &Service{Deps: d, ledger: tasks.New(d.Store, d.Keys, d.Now, d.Log),
		records: store.NewTable[Record](d.Store), references: store.NewTable[Reference](d.Store)}, nil
}

// Record is one claim, under `claims/{multihash}` and `0/{claim}` or `1/{claim}`: the service's own claims come first, so that nobody hides
// them behind many others.
type Record struct {
	// Archive is the claim with its proofs.
	Archive []byte `cbor:"c"`
	At      int64  `cbor:"t"` // milliseconds since the Unix epoch
}

// Reference says where a claim is kept, under `claim/{claim}`.
type Reference struct {
	Key store.Key `cbor:"k"`
}

type (
	claimedMessage struct {
		Task cid.Cid `cbor:"t"`
	}
	forwardMessage struct {
		Key store.Key `cbor:"k"`
	}
)

var (
	claimedQueue = store.NewQueue[claimedMessage]("claimed")
	forwardQueue = store.NewQueue[forwardMessage]("claim-forward")
)

// Methods returns the capabilities that are executed here.
func (s *Service) Methods() map[string]capabilities.Method {
	return map[string]capabilities.Method{
		assert.LocationAbility: s.claim, assert.EqualsAbility: s.claim, assert.InclusionAbility: s.claim, assert.IndexAbility: s.claim,
	}
}

// Handlers returns one handler per message queue. Each is safe to repeat, and to run beside itself.
func (s *Service) Handlers() map[string]store.Handler {
	return map[string]store.Handler{
		claimedQueue.Name: claimedQueue.Handler(s.claimed),
		forwardQueue.Name: forwardQueue.Handler(s.forward),
	}
}

// claim executes assert/…: it acknowledges the claim and leaves the rest to its message.
func (s *Service) claim(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
	if _, err := read(inv.Task); err != nil {
		return nil, err
	}
	if s.MayClaim != nil && !s.MayClaim(inv.Resource()) {
		return nil, capabilities.Fail(capabilities.Unauthorized,
			"%s may not claim anything here: ask the operator to add it to the storefront's allow-list", inv.Resource())
	}
	r, err := capabilities.Issue(s.Signer, inv.Link(), &assert.OK{}, capabilities.Effects{})
	if err != nil {
		return nil, err
	}
	var effects store.Effects
	claimedQueue.Send(&effects, claimedMessage{inv.Link()})
	return s.ledger.Accept(ctx, inv.Task, r, capabilities.Effects{}, store.Listing{}, effects)
}

// statement is what a claim says.
type statement struct {
	caveats capabilities.Caveats
	// about are the multihashes that the claim is found by, the content's first.
	about []multihash.Multihash
	// locations are addresses of the whole content.
	locations []string
}

// read reads a claim. The error is a [capabilities.Failure] that a client can be told.
func read(claim capabilities.Task) (st statement, err error) {
	if len(claim.Capabilities) != 1 {
		return st, capabilities.Fail(capabilities.InvocationCapability, "a claim has a single capability")
	}
	var content assert.Content
	switch claim.Can() {
	case assert.LocationAbility:
		nb := new(assert.Location)
		if err := claim.Caveats(nb); err != nil {
			return st, err
		}
		if err := checkLocations(nb.Location); err != nil {
			return st, capabilities.Malformed(claim.Can(), claim.Resource(), err)
		}
		if *nb.Range == (assert.Range{}) {
			st.locations = nb.Location
		}
		st.caveats, content = nb, nb.Content
	case assert.EqualsAbility:
		nb := new(assert.Equals)
		if err := claim.Caveats(nb); err != nil {
			return st, err
		}
		st.caveats, content = nb, nb.Content
		st.about = []multihash.Multihash{nb.Equals.Hash()}
	case assert.InclusionAbility:
		nb := new(assert.Inclusion)
		if err := claim.Caveats(nb); err != nil {
			return st, err
		}
		st.caveats, content = nb, nb.Content
	case assert.IndexAbility:
		nb := new(assert.Index)
		if err := claim.Caveats(nb); err != nil {
			return st, err
		}
		st.caveats, content = nb, nb.Content
	default:
		return st, capabilities.NewHandlerNotFound(claim.Can(), claim.Resource())
	}
	st.about = slices.Insert(st.about, 0, content.Multihash())
	for _, hash := range st.about {
		if len(hash) > maxHash {
			return st, capabilities.Malformed(claim.Can(), claim.Resource(), fmt.Errorf("a multihash of %d bytes, at most %d are kept", len(hash), maxHash))
		}
	}
	if len(st.about) == 2 && string(st.about[0]) == string(st.about[1]) {
		st.about = st.about[:1]
	}
	return st, nil
}

func checkLocations(list []string) error {
	if len(list) == 0 || len(list) > maxLocations {
		return fmt.Errorf("a claim has 1 to %d locations, not %d", maxLocations, len(list))
	}
	for _, text := range list {
		u, err := url.Parse(text)
		if err != nil || len(text) > maxURL || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			return errors.New("a location is an http(s) address without credentials")
		}
	}
	return nil
}

// claimed keeps a claim that was acknowledged.
func (s *Service) claimed(ctx context.Context, msg claimedMessage) error {
	kept, err := s.ledger.Read(ctx, msg.Task)
	if err != nil {
		return err
	}
	return s.Keep(ctx, kept.Task)
}

// Keep keeps a claim whose issuer's authority has been judged. Repeating it does nothing.
func (s *Service) Keep(ctx context.Context, claim capabilities.Task) error {
	st, err := read(claim)
	if err != nil {
		return fmt.Errorf("keeping claim %s: %w", claim.Link(), err)
	}
	own := claim.Issuer == s.Signer.DID()
	value := Record{Archive: capabilities.Archive(claim), At: s.Now().UnixMilli()}
	for i, hash := range st.about {
		rec := store.Record[Record]{Key: key(hash, claim.Link(), own), Value: value}
		var effects store.Effects
		if own && i == 0 && s.Forward != nil {
			forwardQueue.Send(&effects, forwardMessage{rec.Key})
		}
		if _, err := s.records.Create(ctx, &rec, effects); err != nil {
			return fmt.Errorf("keeping claim %s: %w", claim.Link(), err)
		}
	}
	ref := store.Record[Reference]{Key: store.Key{Partition: "claim/" + claim.Link().String()}, Value: Reference{key(st.about[0], claim.Link(), own)}}
	if _, err := s.references.Create(ctx, &ref, store.Effects{}); err != nil {
		return fmt.Errorf("keeping claim %s: %w", claim.Link(), err)
	}
	return nil
}

func partition(hash multihash.Multihash) string { return "claims/" + hash.B58String() }

func key(hash multihash.Multihash, claim cid.Cid, own bool) store.Key {
	if own {
		return store.Key{Partition: partition(hash), Sort: "0/" + claim.String()}
	}
	return store.Key{Partition: partition(hash), Sort: "1/" + claim.String()}
}

// Of returns the claims about a multihash that are valid now, the service's own first, at most 100 of them.
func (s *Service) Of(ctx context.Context, hash multihash.Multihash) ([]capabilities.Task, error) {
	if len(hash) > maxHash {
		return nil, nil
	}
	recs, _, err := s.records.Query(ctx, partition(hash), "", "", 0)
	if err != nil {
		return nil, err
	}
	var list []capabilities.Task
	for _, rec := range recs {
		claim, valid, err := s.valid(ctx, rec.Value)
		if err != nil {
			return nil, err
		}
		if !valid {
			continue
		}
		if list = append(list, claim); len(list) == maxShown {
			break
		}
	}
	return list, nil
}

// Get returns a claim; store.ErrNotFound if it is unknown, or not valid now.
func (s *Service) Get(ctx context.Context, claim cid.Cid) (capabilities.Task, error) {
	ref, err := s.references.Get(ctx, store.Key{Partition: "claim/" + claim.String()})
	if err != nil {
		return capabilities.Task{}, err
	}
	rec, err := s.records.Get(ctx, ref.Value.Key)
	if err != nil {
		return capabilities.Task{}, err
	}
	task, valid, err := s.valid(ctx, rec.Value)
	if err == nil && !valid {
		err = store.ErrNotFound
	}
	return task, err
}

// Locations returns addresses at which content is claimed to be, whole: hints, by anybody.
func (s *Service) Locations(ctx context.Context, content cid.Cid) ([]string, error) {
	list, err := s.Of(ctx, content.Hash())
	if err != nil {
		return nil, err
	}
	var urls []string
	for _, claim := range list {
		st, err := read(claim)
		if err != nil {
			return nil, fmt.Errorf("reading claim %s: %w", claim.Link(), err)
		}
		for _, u := range st.locations {
			if len(urls) < maxLocations && !slices.Contains(urls, u) {
				urls = append(urls, u)
			}
		}
	}
	return urls, nil
}

// valid returns the claim of a record, and whether neither it nor a proof of it has expired or was revoked.
func (s *Service) valid(ctx context.Context, rec Record) (claim capabilities.Task, valid bool, err error) {
	if claim, err = capabilities.Extract(rec.Archive); err != nil {
		return claim, false, fmt.Errorf("reading a stored claim: %w", err)
	}
	now := s.Now().Unix()
	for _, b := range claim.Blocks() {
		u := claim.UCAN
		if !b.CID.Equals(claim.Link()) {
			if u, err = capabilities.ReadUCAN(b); err != nil {
				return claim, false, fmt.Errorf("reading a proof of claim %s: %w", claim.Link(), err)
			}
		}
		if u.Expiration != nil && *u.Expiration <= now || u.NotBefore > now {
			return claim, false, nil
		}
		revoked, err := s.Revoked(ctx, b.CID)
		if err != nil || revoked {
			return claim, false, err
		}
	}
	return claim, true, nil
}

// forward tells another claims service what this one claims. A refusal is tried again as well: the operator of either can mend its cause.
func (s *Service) forward(ctx context.Context, msg forwardMessage) error {
	if s.Forward == nil {
		return nil // no longer wanted
	}
	rec, err := s.records.Get(ctx, msg.Key)
	if err != nil {
		return err
	}
	claim, valid, err := s.valid(ctx, rec.Value)
	if err != nil || !valid {
		return err
	}
	st, err := read(claim)
	if err != nil {
		return err
	}
	// Where that service has delegated to this one, the claim is made on its resource.
	with := s.Signer.DID()
	if len(s.Forward.Proofs) > 0 {
		with = s.Forward.DID
	}
	task, err := capabilities.Invoke(s.Signer, s.Forward.DID, with.String(), st.caveats, s.Forward.Terms(s.Signer.DID(), ""))
	if err != nil {
		return err
	}
	r, _, err := s.ledger.Execute(ctx, s.Forward.Conn, task)
	if err != nil {
		return fmt.Errorf("telling %s of claim %s: %w", s.Forward.DID, claim.Link(), err)
	}
	if r.Out.Error != nil {
		return fmt.Errorf("%s refuses claim %s: %w", s.Forward.DID, claim.Link(), capabilities.ReadFailure(r.Out.Error))
	}
	return nil
}
