package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// balancer is a load balancer in front of the replicas of a role. It asks each whether it is ready, as operators are told to configure theirs, and sends
// requests in turn to those that are.
type balancer struct {
	url      string
	backends []*backend

	mu      sync.Mutex
	next    int
	served  int
	failed  int      // requests that it could not get an answer to, or a fault
	refused int      // connections that a replica did not take which had said that it was ready
	reasons []string // of some of them
}

type backend struct {
	url       string
	transport *http.Transport
	mu        sync.Mutex
	ready     bool
}

func (b *backend) is(ready bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ready = ready
}

func (b *backend) isReady() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ready
}

// readyInterval is how often a balancer asks a replica whether it is ready.
const readyInterval = time.Second

func newBalancer(t testing.TB, address string, replicas ...string) *balancer {
	t.Helper()
	b := &balancer{url: "http://" + address}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: b}
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(l) })
	stop := make(chan struct{})
	for _, address := range replicas {
		one := &backend{url: "http://" + address, transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute}}
		b.backends = append(b.backends, one)
		running.Go(func() {
			for tick := time.NewTicker(readyInterval); ; {
				resp, err := (&http.Client{Transport: one.transport, Timeout: 10 * time.Second}).Get(one.url + "/readyz")
				if err == nil {
					resp.Body.Close()
				}
				one.is(err == nil && resp.StatusCode == http.StatusOK)
				select {
				case <-tick.C:
				case <-stop:
					return
				}
			}
		})
	}
	t.Cleanup(func() {
		close(stop)
		server.Close()
		running.Wait()
		for _, one := range b.backends {
			one.transport.CloseIdleConnections()
		}
	})
	return b
}

// choose returns the backends that are ready, the one whose turn it is first.
func (b *balancer) choose() (list []*backend) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next++
	for i := range b.backends {
		if one := b.backends[(b.next+i)%len(b.backends)]; one.isReady() {
			list = append(list, one)
		}
	}
	return list
}

// failing notes a request that a client has to repeat.
func (b *balancer) failing(r *http.Request, why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed++
	if len(b.reasons) < 10 {
		b.reasons = append(b.reasons, fmt.Sprintf("%s %s: %v", r.Method, r.URL.Path, why))
	}
}

func (b *balancer) fails(w http.ResponseWriter, r *http.Request, status int, why error) {
	b.failing(r, why)
	http.Error(w, "the load balancer has no answer", status)
}

// refused: there was nobody to take the connection, so nothing was asked.
func refused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

func (b *balancer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client is gone
	}
	for _, one := range b.choose() {
		req, err := http.NewRequestWithContext(r.Context(), r.Method, one.url+r.URL.RequestURI(), bytes.NewReader(body))
		if err != nil {
			b.fails(w, r, http.StatusBadRequest, err)
			return
		}
		req.Header = r.Header.Clone()
		resp, err := one.transport.RoundTrip(req)
		if refused(err) {
			one.is(false) // until it says again that it is ready
			b.mu.Lock()
			b.refused++
			b.mu.Unlock()
			continue
		}
		if r.Context().Err() != nil {
			return
		}
		if err != nil {
			b.fails(w, r, http.StatusBadGateway, err)
			return
		}
		defer resp.Body.Close()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		if _, err := io.Copy(w, resp.Body); err != nil {
			b.failing(r, err)
			panic(http.ErrAbortHandler)
		}
		if resp.StatusCode >= 500 {
			b.failing(r, errors.New(resp.Status))
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.served++
		return
	}
	b.fails(w, r, http.StatusServiceUnavailable, fmt.Errorf("no replica is ready"))
}
