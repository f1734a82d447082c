package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// grace is how long requests under way have to end, once no others are taken.
const grace = 5 * time.Second

// run starts everything and returns when ctx is cancelled and all has ended, or with the first error. When ctx is cancelled the process says that it is
// not ready, and no message is begun; requests are still answered for as long as Drain says, so that whoever sends them has time to notice.
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
	group.Go(func() {
		<-ctx.Done()
		n.draining.Store(true)
		if drain := time.Duration(n.cfg.Drain); drain > 0 {
			n.log.Info("asked to end: not ready any more, and still answering", "for", drain)
			<-time.After(drain)
		}
		close(n.ending)
	})
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
			<-n.ending
			// Requests under way may end; their clients repeat what was cut off.
			patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
			defer cancel()
			fresh.close()
			if err := srv.Shutdown(patience); err != nil {
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
