package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/storacha/w3filecoin/roles/client"
)

// loadRun is what a server did with requests for a while.
type loadRun struct {
	requests  int
	took      time.Duration
	latencies []time.Duration // of each, ascending
	replies   [][]byte        // if they were kept
}

func (r loadRun) rate() float64 { return float64(r.requests) / r.took.Seconds() }

// quantile returns a latency that a share q of all do not exceed.
func (r loadRun) quantile(q float64) time.Duration {
	if len(r.latencies) == 0 {
		return 0
	}
	return r.latencies[min(len(r.latencies)-1, int(q*float64(len(r.latencies))))]
}

// drive posts bodies to a server over n connections, one request at a time on each, until the time is up or the bodies are. Any answer but 200
// ends it. It speaks just enough HTTP/1.1 by itself, the same to every server, so that as little as possible of what is measured is its own. With
// keep, replies are returned in the order of the bodies.
func drive(ctx context.Context, address string, bodies [][]byte, n int, d time.Duration, keep bool) (loadRun, error) {
	u, err := url.Parse(address)
	if err != nil {
		return loadRun{}, err
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: ", path, u.Host, client.ContentType)
	var (
		next  atomic.Int64
		group sync.WaitGroup
		mu    sync.Mutex
		run   loadRun
		first error
	)
	if keep {
		run.replies = make([][]byte, len(bodies))
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	began := time.Now()
	for range n {
		group.Go(func() {
			var mine []time.Duration
			err := func() error {
				c, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
				if err != nil {
					return err
				}
				defer c.Close()
				defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })()
				in := bufio.NewReaderSize(c, 8<<10)
				out := make([]byte, 0, 2<<10)
				for ctx.Err() == nil && (d == 0 || time.Since(began) < d) {
					i := int(next.Add(1)) - 1
					if i >= len(bodies) {
						return nil
					}
					out = append(out[:0], head...)
					out = strconv.AppendInt(out, int64(len(bodies[i])), 10)
					out = append(out, "\r\n\r\n"...)
					out = append(out, bodies[i]...)
					sent := time.Now()
					if _, err := c.Write(out); err != nil {
						return err
					}
					reply, err := readReply(in)
					if err != nil {
						return err
					}
					mine = append(mine, time.Since(sent))
					if keep {
						run.replies[i] = reply
					}
				}
				return ctx.Err()
			}()
			mu.Lock()
			defer mu.Unlock()
			run.latencies = append(run.latencies, mine...)
			if err != nil && first == nil {
				first = err
				stop()
			}
		})
	}
	group.Wait()
	run.took = time.Since(began)
	run.requests = len(run.latencies)
	slices.Sort(run.latencies)
	if first != nil {
		return run, fmt.Errorf("driving %s: %w", address, first)
	}
	return run, nil
}

func readReply(in *bufio.Reader) ([]byte, error) {
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close() // it has been read to its end
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", resp.Status, body)
	}
	return body, nil
}
