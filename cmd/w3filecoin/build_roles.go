package main

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/storacha/w3filecoin/aggregator"
	"github.com/storacha/w3filecoin/broker"
	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/pdp"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/chain"
	"github.com/storacha/w3filecoin/compute"
	"github.com/storacha/w3filecoin/dealer"
	"github.com/storacha/w3filecoin/dealtracker"
	"github.com/storacha/w3filecoin/resolver"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/source/s3"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/storefront"
)

func (n *node) storefront(driver store.Driver, log *slog.Logger) (roles.Service, map[string]http.Handler, map[string]int, error) {
	cfg := n.cfg.Storefront
	places, err := n.ownPlaces(log)
	if err != nil {
		return nil, nil, nil, err
	}
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
	policy := storefront.Policy{MaxPiece: uint64(cfg.MaxPiece), InfoToOfferersOnly: cfg.InfoToOfferersOnly, Reputation: cfg.Reputation.policy(),
		Validation: storefront.Validation{Mode: storefront.Mode(cfg.Validation.Mode), Agree: cfg.Validation.Agree, Ask: cfg.Validation.Ask,
			Check: cfg.Validation.Check, Distrust: time.Duration(cfg.Validation.Distrust)},
		Limits: cfg.Limits.limits(), Newcomers: !cfg.UploadLimits.limits().Newcomers.None()}
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
	resolve, err := resolver.New(resolver.Config{Contents: s, Locator: custody, Keys: byKey, Log: log})
	if err != nil {
		return nil, nil, nil, err
	}
	n.pieces = resolver.Custody{Contents: s, Bytes: custody}
	routes := map[string]http.Handler{
		"/content/": content, "/piece/{cid}": resolve, "GET /{cid}": resolve, "/key/": resolve, aggregatePath: n.aggregatesElsewhere(),
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
		Timing: aggregator.Timing{Budget: time.Duration(cfg.Budget), Quarantine: time.Duration(cfg.QuarantineWait), Pull: time.Duration(cfg.Pull)},
	})
	if err != nil {
		return nil, nil, nil, err
	}
	if n.files, err = n.aggregates(s, known, log); err != nil {
		return nil, nil, nil, err
	}
	return s, map[string]http.Handler{aggregatePath: n.files}, nil, nil
}

// offersName is the directory in which earlier versions kept offer documents.
const offersName = "offers"

func (n *node) dealer(driver store.Driver, log *slog.Logger) (roles.Service, map[string]http.Handler, map[string]int, error) {
	cfg := n.cfg.Dealer
	tracker, err := n.peer(dealtrackerRole, dealerRole, "", cfg.DealTracker)
	if err != nil {
		return nil, nil, nil, err
	}
	documents, err := broker.OpenDocuments(broker.DocumentsConfig{Store: driver, Dir: cfg.Offers, Log: log})
	if err != nil {
		return nil, nil, nil, err
	}
	earlier := cmp.Or(cfg.Offers, filepath.Join(n.cfg.Data, offersName))
	adopted, err := documents.Adopt(context.Background(), earlier)
	if err != nil {
		return nil, nil, nil, err
	}
	if adopted > 0 {
		log.Info("offer documents of an earlier version are in the store now", "directory", earlier, "count", adopted)
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

// storefrontHosts are the hosts where storefronts have content, and that may lie in private networks as they are configured here: some that are
// named, those of the storefronts, and those that the storefront of this process or on the same store sends to.
func (n *node) storefrontHosts(named []string, storefronts []Registered) ([]string, error) {
	hosts := slices.Clone(named)
	if n.cfg.runs(storefrontRole) {
		hosts = append(hosts, hostOf(n.cfg.url(storefrontRole)))
		for i := range n.cfg.Storefront.Buckets {
			b, err := n.cfg.Storefront.Buckets[i].open()
			if err != nil {
				return nil, err
			}
			host, err := b.Host(context.Background())
			if err != nil {
				return nil, err
			}
			hosts = append(hosts, host)
		}
	}
	if n.cfg.Store != "" { // where storefronts on the same store have their uploads
		b, err := openUploads(context.Background(), n.cfg.Store, n.cfg.Storefront.UploadsPrivate)
		if err != nil {
			return nil, err
		}
		host, err := b.Host(context.Background())
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, host)
	}
	for _, s := range storefronts {
		hosts = append(hosts, hostOf(s.URL))
	}
	return slices.DeleteFunc(hosts, func(h string) bool { return h == "" }), nil
}

func (n *node) compute(driver store.Driver, log *slog.Logger) (roles.Service, map[string]http.Handler, map[string]int, error) {
	cfg := n.cfg.Compute
	_, conn := n.registered(storefrontRole, cfg.Storefronts)
	hosts, err := n.storefrontHosts(cfg.AllowHosts, cfg.Storefronts)
	if err != nil {
		return nil, nil, nil, err
	}
	fetcher, err := source.NewHTTP(source.HTTPConfig{AllowHosts: hosts})
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
