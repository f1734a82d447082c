package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/devnet"
	"github.com/storacha/w3filecoin/resolver"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/store"
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
	// files serves aggregates as files, where the aggregator runs; pieces are those of the storefront, where that runs.
	files   http.Handler
	pieces  resolver.Payloads
	closers []func() error
	// draining: the process was asked to end. ending is closed when it does, and takes no more requests.
	draining atomic.Bool
	ending   chan struct{}
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
	if cfg.keepsData() {
		if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
			return nil, usage("choose a directory that you may write to", "creating the data directory: %v", err)
		}
	}
	n = &node{cfg: cfg, log: log, signers: map[string]capabilities.Signer{}, roles: map[string]*role{},
		decoding: semaphore.NewWeighted(roles.DecodingBudget), metrics: roles.NewMetrics(), ending: make(chan struct{})}
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
		Name: r.name, Signer: signer, Service: service, Changes: changes, Patience: 20 * time.Second, Ending: n.ending, After: time.After, Log: n.log,
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
		Ready: n.unlessDraining(newReadiness(waker, time.Now, log).check),
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
