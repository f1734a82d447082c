package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"golang.org/x/sync/semaphore"

	"github.com/storacha/w3filecoin/aggregator"
	"github.com/storacha/w3filecoin/broker"
	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/pdp"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/chain"
	"github.com/storacha/w3filecoin/compute"
	"github.com/storacha/w3filecoin/dealer"
	"github.com/storacha/w3filecoin/dealtracker"
	"github.com/storacha/w3filecoin/devnet"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/resolver"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/source/s3"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/storefront"
	"github.com/storacha/w3filecoin/uploads"
	"github.com/storacha/w3filecoin/wire"
)

// node is the roles of one process, wired together. It is built in one place, top to bottom, and started by run.
type node struct {
	cfg  Config
	log  *slog.Logger
	keys *roles.Keys
	// attestors are authorities whose sessions every role honours.
	attestors []capabilities.DID
	signers   map[string]capabilities.Signer
	roles     map[string]*role
	// decoding bounds the request bodies of all roles together.
	decoding *semaphore.Weighted
	devnet   *simulated
	admin    *adminServer // nil: none
	metrics  *roles.Metrics
	// following follows the events of buckets until its context ends; nil: nothing does.
	following func(context.Context) error
	closers   []func() error
}

// role is one role of a node: its server, its workers and where it listens.
type role struct {
	name     string
	server   *roles.Server
	rows     store.Rows
	workers  *roles.Workers
	handler  http.Handler
	listener net.Listener
}

// simulated is the devnet beside the roles.
type simulated struct {
	chain    *devnet.Chain
	provider *devnet.Provider
	listener net.Listener
	url      string
}

// build wires the roles that the configuration names. It listens already, but nothing is answered before run.
func build(cfg Config, log *slog.Logger) (n *node, err error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		return nil, usage("choose a directory that you may write to", "creating the data directory: %v", err)
	}
	n = &node{cfg: cfg, log: log, signers: map[string]capabilities.Signer{}, roles: map[string]*role{},
		decoding: semaphore.NewWeighted(roles.DecodingBudget), metrics: roles.NewMetrics()}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()

	// Who we are.
	static := map[capabilities.DID]capabilities.DID{}
	for web, key := range cfg.Keys {
		w, err1 := wire.ParseDID(web)
		k, err2 := wire.ParseDID(key)
		if err := errors.Join(err1, err2); err != nil {
			return n, err
		}
		static[w] = k
	}
	for _, name := range allRoles {
		if !cfg.runs(name) {
			continue
		}
		s, err := n.cfg.signer(name, func() (capabilities.Signer, error) { return wire.GenerateSigner(rand.Reader) })
		if err != nil {
			return n, err
		}
		n.signers[name] = s
		if s.DID() != s.KeyDID() {
			static[s.DID()] = s.KeyDID()
		}
	}
	n.keys = roles.NewKeys(roles.KeysConfig{Static: static, Web: cfg.DIDWeb, Now: time.Now})
	for _, a := range cfg.Attestors {
		did, err := wire.ParseDID(a)
		if err != nil {
			return n, err
		}
		n.attestors = append(n.attestors, did)
	}

	// Where we are. A port of 0 is known only now, and others are told of it.
	for _, name := range allRoles {
		if !cfg.runs(name) {
			continue
		}
		id := n.cfg.identity(name)
		l, err := n.listen(name+".listen", id.Listen)
		if err != nil {
			return n, err
		}
		id.Listen = l.Addr().String()
		n.roles[name] = &role{name: name, listener: l}
	}
	if cfg.simulates() {
		if err := n.buildChain(); err != nil {
			return n, err
		}
	}

	for _, name := range allRoles {
		if r := n.roles[name]; r != nil {
			if err := n.buildRole(r); err != nil {
				return n, fmt.Errorf("building the %s: %w", name, err)
			}
		}
	}
	if cfg.simulates() {
		if err := n.buildProvider(); err != nil {
			return n, err
		}
	}
	if err := n.buildAdmin(); err != nil {
		return n, err
	}
	return n, nil
}

func (n *node) listen(setting, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, usage("choose another with "+setting, "listening: %v", err)
	}
	n.closers = append(n.closers, func() error {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return l, nil
}

func (n *node) close() (err error) {
	for _, c := range slices.Backward(n.closers) {
		err = errors.Join(err, c())
	}
	n.closers = nil
	return err
}

// buildRole opens the role's engine and puts server, workers and HTTP interface around its service.
func (n *node) buildRole(r *role) error {
	engine, err := n.openStore(r.name)
	if err != nil {
		return err
	}
	n.closers = append(n.closers, engine.Close)
	changes := new(roles.Changes)
	waker := store.NewWaker(changes.Watch(engine))
	r.rows = waker
	n.metrics.DeadLetters(r.name, waker)

	signer := n.signers[r.name]
	revocations := roles.NewRevocations(waker, n.keys, time.Now)
	service, routes, widths, err := n.service(r.name, waker)
	if err != nil {
		return err
	}
	log := n.log.With("role", r.name) // for what does not say itself which role it is
	methods := service.Methods()
	r.server = roles.NewServer(roles.Server{
		Name: r.name, Signer: signer, Service: service, Changes: changes, Patience: 20 * time.Second, After: time.After, Log: n.log,
		Authority: &roles.Authority{Self: signer.DID(), Attestors: n.attestors, Keys: n.keys, Now: time.Now, Revoked: revocations.Revoked,
			Disagreed: func(_ context.Context, u *capabilities.UCAN, why error) {
				log.Error("two judges disagree about a chain of proofs; it is refused", "task", u.Link(), "err", why)
			}},
		WithEffects: uploads.WithEffects,
		Extra:       map[string]capabilities.Method{ucan.RevokeAbility: revocations.Method(signer)},
		Observe:     n.metrics.Execution(func(ability string) bool { return methods[ability] != nil || ability == ucan.RevokeAbility }),
	})
	r.workers = &roles.Workers{
		Role: r.name, Driver: waker, Handlers: service.Handlers(), Width: 8, Widths: widths,
		Now: time.Now, Rand: mathrand.Float64, After: time.After, Idle: n.idle(), Log: n.log, Observe: n.metrics.Message(time.Now),
	}
	if routes == nil {
		routes = map[string]http.Handler{}
	}
	routes["GET /metrics"] = n.metrics.Handler()
	version := buildVersion()
	h := &roles.HTTP{
		Server: r.server, MaxBody: roles.MaxBody(r.name), Decoding: n.decoding, Revocations: revocations, Routes: routes,
		Ready: newReadiness(waker, time.Now, log).check,
		Version: roles.Version{Name: r.name, Version: version.Version, Commit: version.Commit,
			DID: signer.DID().String(), PublicKey: signer.KeyDID().String()},
	}
	r.handler = h.Handler()
	return nil
}

// idle is how often queues are looked at for messages with a due time: often where budgets are seconds.
func (n *node) idle() time.Duration {
	if n.cfg.Aggregator.Budget != 0 && time.Duration(n.cfg.Aggregator.Budget) < time.Minute {
		return 50 * time.Millisecond
	}
	return time.Second
}

// service builds one role's service, its further routes, and the widths of queues that differ from the rest.
func (n *node) service(name string, driver store.Driver) (roles.Service, map[string]http.Handler, map[string]int, error) {
	log := n.log.With("role", name)
	switch name {
	case storefrontRole:
		return n.storefront(driver, log)
	case aggregatorRole:
		return n.aggregator(driver, log)
	case dealerRole:
		return n.dealer(driver, log)
	case dealtrackerRole:
		return n.dealtracker(driver, log)
	}
	return n.compute(driver, log)
}

func (n *node) storefront(driver store.Driver, log *slog.Logger) (roles.Service, map[string]http.Handler, map[string]int, error) {
	cfg := n.cfg.Storefront
	own, err := source.OpenDir(filepath.Join(n.cfg.Data, "uploads"))
	if err != nil {
		return nil, nil, nil, err
	}
	places := []source.Place{own}
	for _, path := range cfg.Directories {
		d, err := source.OpenReadOnlyDir(path)
		if err != nil {
			return nil, nil, nil, err
		}
		places = append(places, d)
	}
	var (
		byKey   keys
		origins []source.Origin
	)
	for i := range cfg.Buckets {
		b, err := cfg.Buckets[i].open()
		if err != nil {
			return nil, nil, nil, err
		}
		if cfg.Buckets[i].ByKey {
			byKey = append(byKey, b)
		}
		guarded := source.Guard(b, &source.Health{Name: "bucket " + b.Name(), Now: time.Now, Log: log})
		if cfg.Buckets[i].Copy {
			origins = append(origins, source.PlaceOrigin("bucket "+b.Name(), b))
			continue
		}
		if cfg.Buckets[i].Uploads { // new content goes there, and is read from there first
			places = slices.Insert(places, 0, source.Place(guarded))
		} else {
			places = append(places, guarded)
		}
	}
	custody, err := source.NewCustody(n.cfg.url(storefrontRole), places...)
	if err != nil {
		return nil, nil, nil, err
	}
	importer, err := n.importer(custody, origins, log)
	if err != nil {
		return nil, nil, nil, err
	}
	aggregator, err := n.peer(aggregatorRole, storefrontRole, piececap.OfferAbility, cfg.Aggregator)
	if err != nil {
		return nil, nil, nil, err
	}
	providers, arbiter, err := n.providers()
	if err != nil {
		return nil, nil, nil, err
	}
	var nodes []capabilities.Peer
	for _, node := range cfg.Nodes {
		peer, err := n.remote("nodes", storefrontRole, pdp.InfoAbility, node)
		if err != nil {
			return nil, nil, nil, err
		}
		nodes = append(nodes, peer)
	}
	asked := 0
	for _, p := range providers {
		asked += p.Parallel
	}
	var tracker capabilities.Peer
	if n.cfg.runs(dealtrackerRole) || cfg.DealTracker.URL != "" {
		if tracker, err = n.peer(dealtrackerRole, storefrontRole, "", cfg.DealTracker); err != nil {
			return nil, nil, nil, err
		}
	}
	limit := func(count uint64, size Size) standing.Limit { return standing.Limit{Count: count, Bytes: uint64(size)} }
	policy := storefront.Policy{MaxPiece: uint64(cfg.MaxPiece), InfoToOfferersOnly: cfg.InfoToOfferersOnly, Reputation: cfg.Reputation.policy(),
		Validation: storefront.Validation{Mode: storefront.Mode(cfg.Validation.Mode), Agree: cfg.Validation.Agree, Ask: cfg.Validation.Ask,
			Check: cfg.Validation.Check, Distrust: time.Duration(cfg.Validation.Distrust)},
		Limits: storefront.Limits{
			Agent:     limit(cfg.Limits.AgentCount, cfg.Limits.AgentSize),
			Space:     limit(cfg.Limits.SpaceCount, cfg.Limits.SpaceSize),
			Newcomers: limit(cfg.Limits.NewcomersCount, cfg.Limits.NewcomersSize),
		}}
	if len(cfg.Allow) > 0 && !cfg.Open {
		self := n.signers[storefrontRole].DID().String()
		policy.MayOffer = func(with string) bool {
			return slices.Contains(cfg.Allow, with) || with == self && cfg.Ingest.Queue != ""
		}
	}
	kept, err := n.claims(policy, driver, log)
	if err != nil {
		return nil, nil, nil, err
	}
	fetcher, err := n.fetcher(custody)
	if err != nil {
		return nil, nil, nil, err
	}
	s, err := storefront.New(storefront.Deps{
		Signer: n.signers[storefrontRole], Store: driver, Keys: n.keys, Group: cfg.Group, Aggregator: aggregator, Compute: providers, Arbiter: arbiter, Nodes: nodes, Tracker: tracker,
		Custody: custody, Importer: importer, Fetcher: fetcher, Claims: kept, Policy: policy, Parallel: 16, Now: time.Now, Log: log, Observe: n.metrics.Step(storefrontRole, n.log),
		Timing: storefront.Timing{ContentRetry: time.Duration(cfg.ContentRetry), ContentWindow: time.Duration(cfg.ContentWindow),
			Pull: time.Duration(cfg.Pull)},
	})
	if err != nil {
		return nil, nil, nil, err
	}
	content := source.NewContentHandler(custody, source.ContentConfig{Log: log})
	resolving := resolver.Config{Contents: s, Locator: custody, Bytes: custody, Keys: byKey, Log: log}
	if n.cfg.runs(aggregatorRole) {
		resolving.Aggregates = aggregates{n}
	}
	resolve, err := resolver.New(resolving)
	if err != nil {
		return nil, nil, nil, err
	}
	routes := map[string]http.Handler{
		"/content/": content, "/piece/{cid}": resolve, "GET /{cid}": resolve, "/key/": resolve, "/aggregate/": resolve,
	}
	joined, err := n.uploads(s, custody, kept, policy, driver, routes, log)
	if err != nil {
		return nil, nil, nil, err
	}
	provider := arbiter.Peer // of a quorum; whoever is first else
	if provider.Conn == nil && len(providers) > 0 {
		provider = providers[0].Peer
	}
	following, err := n.ingester(custody, provider, driver, log)
	if err != nil {
		return nil, nil, nil, err
	}
	if following != nil {
		joined, err = roles.Join(joined, following)
	}
	return joined, routes, map[string]int{storefront.ValidateQueue: asked, storefront.ImportQueue: cmp.Or(cfg.Imports, 4)}, err
}

// importer copies content into custody from origins and from the sources that are configured, nil if there are none.
func (n *node) importer(custody *source.Custody, origins []source.Origin, log *slog.Logger) (storefront.Importer, error) {
	cfg := n.cfg.Storefront
	fetcher, err := source.NewHTTP(source.HTTPConfig{AllowHosts: cfg.AllowHosts})
	if err != nil {
		return nil, err
	}
	for _, template := range cfg.Sources {
		o, err := source.URLOrigin(template, fetcher)
		if err != nil {
			return nil, err
		}
		origins = append(origins, o)
	}
	if len(origins) == 0 {
		return nil, nil
	}
	return source.NewSources(custody, maxPayload(cfg.MaxPiece), time.Now, log, origins...)
}

// providers returns the compute providers that the storefront may ask: the one of this process, or configured in its place, and the further ones. In a
// quorum the first is the arbiter of the others.
func (n *node) providers() (list []storefront.Provider, arbiter storefront.Provider, err error) {
	cfg := n.cfg.Storefront
	provider := func(p Provider, peer capabilities.Peer) storefront.Provider {
		const parallel = 8
		return storefront.Provider{Peer: peer, Near: p.Near, Parallel: cmp.Or(p.Parallel, parallel)}
	}
	if n.cfg.runs(computeRole) || cfg.Compute.URL != "" {
		peer, err := n.peer(computeRole, storefrontRole, computecap.PieceCIDAbility, cfg.Compute.Neighbour)
		if err != nil {
			return nil, arbiter, err
		}
		if one := provider(cfg.Compute, peer); storefront.Mode(cfg.Validation.Mode) == storefront.Quorum {
			arbiter = one
		} else {
			list = append(list, one)
		}
	}
	for _, p := range cfg.Providers {
		peer, err := n.remote("providers", storefrontRole, computecap.PieceCIDAbility, p.Neighbour)
		if err != nil {
			return nil, arbiter, err
		}
		list = append(list, provider(p, peer))
	}
	return list, arbiter, nil
}

// keys are the buckets whose objects everybody may read by key, the first of them if none is named.
type keys []*s3.Bucket

func (k keys) LocateKey(ctx context.Context, bucket, key string) (source.Location, error) {
	for _, b := range k {
		if bucket == "" || bucket == b.Name() {
			return b.LocateKey(ctx, key)
		}
	}
	return source.Location{}, source.ErrNoContent
}

// aggregates are those of the aggregator in this process, which is built after the resolver.
type aggregates struct{ n *node }

func (a aggregates) PiecesOf(ctx context.Context, link piece.Link) ([]piece.Link, error) {
	return a.n.roles[aggregatorRole].server.Service.(*aggregator.Service).PiecesOf(ctx, link)
}

// maxPayload is how many bytes of content fit a piece of a padded size.
func maxPayload(padded Size) int64 { return int64(padded) / 128 * 127 }

func (n *node) aggregator(driver store.Driver, log *slog.Logger) (roles.Service, map[string]http.Handler, map[string]int, error) {
	cfg := n.cfg.Aggregator
	peer, err := n.peer(dealerRole, aggregatorRole, aggregatecap.OfferAbility, cfg.Dealer)
	if err != nil {
		return nil, nil, nil, err
	}
	known, conn := n.registered(storefrontRole, cfg.Storefronts)
	s, err := aggregator.New(aggregator.Deps{
		Signer: n.signers[aggregatorRole], Store: driver, Keys: n.keys, Dealer: peer,
		Storefronts: func(did string) (aggregator.Storefront, bool) {
			r, ok := known[did]
			return aggregator.Storefront{Lane: r.Lane, Limit: standing.Limit{Count: cfg.StorefrontCount, Bytes: uint64(cfg.StorefrontSize)}}, ok
		},
		Reputation: cfg.Reputation.policy(),
		Conn:       conn, Ladder: n.cfg.ladder(), Parallel: 16, Now: time.Now, Log: log, Observe: n.metrics.Step(aggregatorRole, n.log),
		Timing: aggregator.Timing{Budget: time.Duration(cfg.Budget), Pull: time.Duration(cfg.Pull)},
	})
	return s, nil, nil, err
}

func (n *node) dealer(driver store.Driver, log *slog.Logger) (roles.Service, map[string]http.Handler, map[string]int, error) {
	cfg := n.cfg.Dealer
	tracker, err := n.peer(dealtrackerRole, dealerRole, "", cfg.DealTracker)
	if err != nil {
		return nil, nil, nil, err
	}
	dir := cfg.Offers
	if dir == "" {
		dir = filepath.Join(n.cfg.Data, "offers")
	}
	documents, err := broker.OpenDocuments(broker.DocumentsConfig{Dir: dir, Log: log, Now: time.Now})
	if err != nil {
		return nil, nil, nil, err
	}
	var sizes []uint64
	for _, s := range cfg.Sizes {
		sizes = append(sizes, uint64(s))
	}
	known, conn := n.registered(aggregatorRole, cfg.Aggregators)
	s, err := dealer.New(dealer.Deps{
		Signer: n.signers[dealerRole], Store: driver, Keys: n.keys, Tracker: tracker,
		Aggregators: func(did string) bool { _, ok := known[did]; return ok },
		Conn:        conn, Brokers: []dealer.Broker{documents}, DealSizes: sizes, Replicas: cfg.Replicas,
		Timing: dealer.Timing{Poll: time.Duration(cfg.Poll)}, Now: time.Now, Log: log, Observe: n.metrics.Step(dealerRole, n.log),
	})
	if err != nil {
		return nil, nil, nil, err
	}
	offers := documents.Handler()
	return s, map[string]http.Handler{"GET /offers": offers, "GET /offers/{key}": offers}, nil, nil
}

func (n *node) dealtracker(driver store.Driver, log *slog.Logger) (roles.Service, map[string]http.Handler, map[string]int, error) {
	cfg := n.cfg.DealTracker
	network := chain.Mainnet()
	switch cfg.Network {
	case "calibration":
		network = chain.Calibration()
	case devnetName:
		network = chain.Network{Name: devnetName, Genesis: n.cfg.Devnet.Genesis, Epoch: time.Duration(n.cfg.Devnet.Epoch), Finality: devnetFinality}
	}
	rpc := cfg.RPC
	if n.devnet != nil {
		network = chain.Network{Name: devnetName, Genesis: n.devnet.chain.Genesis().Unix(), Epoch: n.devnet.chain.EpochDuration(),
			Finality: n.devnet.chain.Finality()}
		rpc = n.devnet.url
	}
	lotus, err := chain.NewLotus(chain.Config{URL: rpc, Token: cfg.Token, Network: network, Clients: cfg.Clients, Log: log})
	if err != nil {
		return nil, nil, nil, err
	}
	s, err := dealtracker.New(dealtracker.Deps{
		Signer: n.signers[dealtrackerRole], Store: driver, Source: lotus, Now: time.Now, Log: log,
		Confidence: dealtracker.Confidence(cfg.Confidence), Backfill: cfg.Backfill,
		Timing: dealtracker.Timing{Poll: time.Duration(cfg.Poll)},
	})
	return s, nil, nil, err
}

func (n *node) compute(driver store.Driver, log *slog.Logger) (roles.Service, map[string]http.Handler, map[string]int, error) {
	cfg := n.cfg.Compute
	_, conn := n.registered(storefrontRole, cfg.Storefronts)
	hosts := slices.Clone(cfg.AllowHosts)
	if n.cfg.runs(storefrontRole) {
		hosts = append(hosts, hostOf(n.cfg.url(storefrontRole)))
		// The storefront sends there for what it has in buckets.
		for i := range n.cfg.Storefront.Buckets {
			b, err := n.cfg.Storefront.Buckets[i].open()
			if err != nil {
				return nil, nil, nil, err
			}
			host, err := b.Host(context.Background())
			if err != nil {
				return nil, nil, nil, err
			}
			hosts = append(hosts, host)
		}
	}
	for _, s := range cfg.Storefronts {
		hosts = append(hosts, hostOf(s.URL))
	}
	fetcher, err := source.NewHTTP(source.HTTPConfig{AllowHosts: slices.DeleteFunc(hosts, func(h string) bool { return h == "" })})
	if err != nil {
		return nil, nil, nil, err
	}
	s, err := compute.New(compute.Deps{
		Signer: n.signers[computeRole], Store: driver, Keys: n.keys, Fetcher: fetcher, Conn: conn, Now: time.Now, Log: log,
	})
	parallel := cfg.Parallel
	if parallel == 0 {
		parallel = runtime.GOMAXPROCS(0)
	}
	return s, nil, map[string]int{compute.QueueName: parallel}, err
}

func (r Reputation) policy() standing.Policy {
	return standing.Policy{HalfLife: time.Duration(r.HalfLife), Quarantine: float64(r.Quarantine), Refuse: float64(r.Refuse)}
}

func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Host
}

// peer returns a neighbour as the role in `of` reaches it: in this process with a delegation made on the spot, or remote as configured.
func (n *node) peer(name, of, can string, remote Neighbour) (capabilities.Peer, error) {
	if n.cfg.runs(name) {
		p := capabilities.Peer{DID: n.signers[name].DID(), Conn: &local{n, name}}
		if can == "" || p.DID == n.signers[of].DID() {
			return p, nil
		}
		d, err := capabilities.Delegate(n.signers[name], n.signers[of].DID(), []capabilities.Grant{{Can: can, With: p.DID.String()}}, capabilities.Terms{})
		p.Proofs = []capabilities.Delegation{d}
		return p, err
	}
	return n.remote(name, of, can, remote)
}

// remote returns a neighbour in another process, as configured.
func (n *node) remote(name, of, can string, remote Neighbour) (capabilities.Peer, error) {
	did, err := wire.ParseDID(remote.DID)
	if err != nil {
		return capabilities.Peer{}, fmt.Errorf("%s.%s.did: %w", of, name, err)
	}
	p := capabilities.Peer{DID: did, Conn: client.Dial(remote.URL, nil)}
	if remote.Proof == "" {
		return p, nil
	}
	b, err := os.ReadFile(remote.Proof)
	if err != nil {
		return p, usage("ask the operator of the "+name+" for it", "reading the delegation of the %s: %v", name, err)
	}
	d, err := capabilities.Extract(b)
	if err != nil {
		return p, fmt.Errorf("%s: %w", remote.Proof, err)
	}
	if err := n.checkProof(d, did, n.signers[of].DID(), can); err != nil {
		return p, usage("ask the operator of the "+name+" for another one", "%s: %v", remote.Proof, err)
	}
	p.Proofs = []capabilities.Delegation{d}
	return p, nil
}

// checkProof refuses a standing delegation that cannot do what it is for. One that expires is among them: tasks signed with it would become void while
// they wait.
func (n *node) checkProof(d capabilities.Delegation, from, to capabilities.DID, can string) error {
	switch {
	case d.Issuer != from:
		return fmt.Errorf("it was issued by %s, not by %s", d.Issuer, from)
	case d.Audience != to:
		return fmt.Errorf("it is for %s, this role is %s", d.Audience, to)
	case d.Expiration != nil:
		return fmt.Errorf("it expires on %s: delegations between services must not", time.Unix(*d.Expiration, 0).UTC())
	}
	claim := wire.Capability{Can: can, With: from.String()}
	for _, c := range d.Capabilities {
		if capabilities.Covers(c, claim) == nil {
			return nil
		}
	}
	return fmt.Errorf("it does not delegate %s on %s", can, from)
}

// registered returns who may invoke on a role, and how receipts are pushed to them. A role of this process is always among them.
func (n *node) registered(name string, list []Registered) (map[string]Registered, func(string) (capabilities.Conn, bool)) {
	known := map[string]Registered{}
	conns := map[string]capabilities.Conn{}
	for _, r := range list {
		known[r.DID] = r
		if r.URL != "" {
			conns[r.DID] = client.Dial(r.URL, nil)
		}
	}
	if n.cfg.runs(name) {
		did := n.signers[name].DID().String()
		known[did] = Registered{DID: did}
		conns[did] = &local{n, name}
	}
	return known, func(did string) (capabilities.Conn, bool) {
		c, ok := conns[did]
		return c, ok
	}
}

// local reaches a role of the same process. It looks the role up when it is called, because roles reach each other in circles.
type local struct {
	n    *node
	name string
}

func (l *local) Execute(ctx context.Context, m *capabilities.Message) (*capabilities.Message, error) {
	return roles.Local{Server: l.n.roles[l.name].server}.Execute(ctx, m)
}

func (l *local) Receipt(ctx context.Context, task cid.Cid) (*capabilities.Message, error) {
	return roles.Local{Server: l.n.roles[l.name].server}.Receipt(ctx, task)
}

// run starts everything and returns when ctx is cancelled and all has ended, or with the first error.
func (n *node) run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	start := func(what string, f func() error) {
		group.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				mu.Lock()
				if first == nil {
					first = fmt.Errorf("%s: %w", what, err)
				}
				mu.Unlock()
				stop()
			}
		})
	}
	serve := func(what string, l net.Listener, h http.Handler) {
		fresh := new(freshConns)
		srv := &http.Server{
			Handler: h, ConnState: fresh.track, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
			ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug),
		}
		start(what, func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
		group.Go(func() {
			<-ctx.Done()
			// Requests under way may end; their clients repeat what was cut off.
			grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			fresh.close()
			if err := srv.Shutdown(grace); err != nil {
				err = errors.Join(err, srv.Close())
				n.log.Warn("closing connections", "server", what, "err", err)
			}
		})
	}
	for _, name := range allRoles {
		r := n.roles[name]
		if r == nil {
			continue
		}
		if err := r.server.Service.Start(ctx); err != nil {
			return fmt.Errorf("starting the %s: %w", name, err)
		}
		serve(name, r.listener, r.handler)
		start(name+" workers", func() error { return r.workers.Run(ctx) })
	}
	if n.following != nil {
		start("following buckets", func() error { return n.following(ctx) })
	}
	if d := n.devnet; d != nil {
		serve(devnetName, d.listener, d.chain.Handler())
		if d.provider != nil {
			start("devnet provider", func() error { return d.provider.Run(ctx) })
		}
	}
	if n.admin != nil {
		serve("admin", n.admin.listener, n.admin.handler)
	}
	group.Wait()
	return first
}

// freshConns are connections that no request has come over yet. Clients open some in advance, and a server that shuts down would
// wait five seconds for each.
type freshConns struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func (f *freshConns) track(c net.Conn, s http.ConnState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s != http.StateNew {
		delete(f.conns, c)
		return
	}
	if f.conns == nil {
		f.conns = map[net.Conn]struct{}{}
	}
	f.conns[c] = struct{}{}
}

func (f *freshConns) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		_ = c.Close()
	}
}

// devnetFinality is how many epochs below its head the simulated chain is final.
const devnetFinality = 2

// buildChain opens the simulated chain.
func (n *node) buildChain() error {
	c, err := devnet.OpenChain(devnet.ChainConfig{
		Epoch: time.Duration(n.cfg.Devnet.Epoch), PublishDelay: 2, ActivateDelay: 3, Finality: devnetFinality, Genesis: n.cfg.Devnet.Genesis,
		Path: filepath.Join(n.cfg.Data, "devnet.json"), Now: time.Now,
	})
	if err != nil {
		return err
	}
	l, err := n.listen("devnet.listen", n.cfg.Devnet.Listen)
	if err != nil {
		return err
	}
	n.cfg.Devnet.Listen = l.Addr().String()
	n.devnet = &simulated{chain: c, listener: l, url: "http://" + l.Addr().String()}
	return nil
}

// buildProvider adds the simulated storage provider, if this process knows where offers and pieces are.
func (n *node) buildProvider() error {
	offers, pieces := n.cfg.Devnet.Offers, n.cfg.Devnet.Pieces
	if offers == "" && n.cfg.runs(dealerRole) {
		offers = n.cfg.url(dealerRole)
	}
	if len(pieces) == 0 && n.cfg.runs(storefrontRole) {
		pieces = []string{n.cfg.url(storefrontRole) + "/piece/{piece}"}
	}
	if offers == "" || len(pieces) == 0 {
		return nil
	}
	p, err := devnet.OpenProvider(devnet.ProviderConfig{
		Address: "f01000", Client: "f01001", Offers: offers, Pieces: pieces,
		Market: n.devnet.chain, Path: filepath.Join(n.cfg.Data, "devnet-provider.json"), Now: time.Now, After: time.After,
		Poll: time.Duration(n.cfg.Devnet.Epoch), Log: n.log.With("role", "devnet-provider"),
	})
	n.devnet.provider = p
	return err
}

// trimmed shortens a CID for people.
func trimmed(s string) string {
	if len(s) <= 24 {
		return s
	}
	return s[:12] + "…" + s[len(s)-8:]
}

// logger writes text to a terminal and JSON to anything else.
func (a *app) logger(level slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if a.terminal {
		return slog.New(slog.NewTextHandler(a.stderr, options))
	}
	return slog.New(slog.NewJSONHandler(a.stderr, options))
}

func parseLevel(s string) (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(strings.ToUpper(s))); err != nil {
		return l, usage("choose debug, info, warn or error", "%q is not a log level", s)
	}
	return l, nil
}
