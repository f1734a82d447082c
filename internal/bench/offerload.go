package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
)

// concurrencies are how many requests are in flight.
var concurrencies = []int{1, 16, 64}

// subject is what is driven.
type subject string

const (
	javascript subject = "JavaScript peer"
	allInOne   subject = "all roles, one process"
	storefront subject = "storefront alone"
)

// sample is one short run of one subject.
type sample struct {
	Subject   subject `json:"subject"`
	Round     int     `json:"round"`
	InFlight  int     `json:"in_flight"`
	Requests  int     `json:"requests"`
	Seconds   float64 `json:"seconds"`
	Rate      float64 `json:"per_second"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
	CPU       float64 `json:"server_cpu_us_per_offer"`
	GC        float64 `json:"gc_share"`
	RSS       float64 `json:"peak_rss_mib"`
	AllocKiB  float64 `json:"alloc_kib_per_offer,omitempty"`
	Allocs    float64 `json:"allocs_per_offer,omitempty"`
	Execution float64 `json:"execution_us,omitempty"`            // mean time in the server, without HTTP
	Commit    float64 `json:"transaction_us,omitempty"`          // mean time of a database transaction
	Changes   float64 `json:"changes_per_transaction,omitempty"` // mean
	// FollowUp is the CPU time that each offer costs after the load, until the workers have nothing left to do at once.
	FollowUp float64       `json:"follow_up_us_per_offer,omitempty"`
	Bound    signatureCost `json:"signatures"`
	Fsync    float64       `json:"fsync_us"`
}

type offerLoad struct {
	binary, dir, peer string
	rounds            int
	time              time.Duration
	profile           bool
	say               func(format string, args ...any)
}

// run interleaves the subjects, each round with processes of its own, so that none meets the backlog of another.
func (o *offerLoad) run(ctx context.Context) ([]sample, error) {
	var samples []sample
	for round := range o.rounds {
		for _, s := range []subject{javascript, allInOne, storefront} {
			if s == javascript && o.peer == "" {
				continue
			}
			got, err := o.one(ctx, s, round)
			if err != nil {
				return samples, fmt.Errorf("%s: %w", s, err)
			}
			samples = append(samples, got...)
		}
	}
	return samples, nil
}

func (o *offerLoad) one(ctx context.Context, s subject, round int) ([]sample, error) {
	agent, err := newSigner()
	if err != nil {
		return nil, err
	}
	var (
		p   *process
		url string
		did capabilities.DID
	)
	if s == javascript {
		js, err := startPeer(o.peer)
		if err != nil {
			return nil, err
		}
		defer js.stop()
		p, url, did = js.process, js.url, js.did
	} else {
		n, err := o.serve(s)
		if err != nil {
			return nil, err
		}
		defer func() { _ = n.close() }()
		p, url, did = n.process, n.urls["storefront"], n.dids["storefront"]
	}
	reqs := offersOf(agent, did)
	perSecond := 15_000.0
	if s == javascript {
		perSecond = 1_500
	}
	take := func(seconds float64) ([][]byte, error) { return reqs.sign(int(seconds*perSecond) + 100) }

	// Compilers, connections and pools get warm; the first answer is looked at closely.
	warm, err := take(1)
	if err != nil {
		return nil, err
	}
	first, err := drive(ctx, url, warm[:1], 1, 0, true)
	if err != nil {
		return nil, err
	}
	if _, err := reqs.checkReply(warm[0], first.replies[0]); err != nil {
		return nil, fmt.Errorf("the first reply: %w", err)
	}
	if _, err := drive(ctx, url, warm[1:], 16, time.Second, false); err != nil {
		return nil, err
	}

	var samples []sample
	for _, n := range concurrencies {
		bodies, err := take(o.time.Seconds())
		if err != nil {
			return nil, err
		}
		cost, err := measureSignatures(100 * time.Millisecond)
		if err != nil {
			return nil, err
		}
		sync, err := measureFsync(o.dir, 50)
		if err != nil {
			return nil, err
		}
		if _, err := settle(ctx, p); err != nil {
			return nil, err
		}
		before, err := o.look(ctx, s, p, url)
		if err != nil {
			return nil, err
		}
		p.profile(o.profile && s != javascript, syscall.SIGUSR1)
		run, err := drive(ctx, url, bodies, n, o.time, false)
		p.profile(o.profile && s != javascript, syscall.SIGUSR2)
		if err != nil {
			return nil, err
		}
		after, err := o.look(ctx, s, p, url)
		if err != nil {
			return nil, err
		}
		drained, err := settle(ctx, p)
		if err != nil {
			return nil, err
		}
		offers := float64(run.requests)
		got := sample{
			Subject: s, Round: round, InFlight: n, Requests: run.requests, Seconds: run.took.Seconds(), Rate: run.rate(),
			P50: ms(run.quantile(0.5)), P99: ms(run.quantile(0.99)), CPU: us(after.cpu-before.cpu) / offers,
			GC:  float64(after.gc-before.gc) / float64(max(1, after.cpu-before.cpu)),
			RSS: float64(drained.peak) / (1 << 20), Bound: cost, Fsync: us(sync),
		}
		if s != javascript {
			got.AllocKiB = (after.metrics["go_memstats_alloc_bytes_total"] - before.metrics["go_memstats_alloc_bytes_total"]) / 1024 / offers
			got.Allocs = (after.metrics["go_memstats_mallocs_total"] - before.metrics["go_memstats_mallocs_total"]) / offers
			got.Execution = mean(before, after, "w3filecoin_invocation_seconds", `{ability="filecoin/offer",role="storefront"}`)
			got.Commit = mean(before, after, "w3filecoin_store_transaction_seconds", `{role="storefront"}`)
			count := `w3filecoin_store_transaction_seconds_count{role="storefront"}`
			changes := `w3filecoin_store_changes_total{role="storefront"}`
			got.Changes = (after.metrics[changes] - before.metrics[changes]) / (after.metrics[count] - before.metrics[count])
			got.FollowUp = us(drained.cpu-after.cpu) / offers
		}
		samples = append(samples, got)
		o.say("round %d, %s, %d in flight: %.0f/s, p50 %.2f ms, p99 %.2f ms, %.0f us CPU", round+1, s, n, got.Rate, got.P50, got.P99, got.CPU)
	}
	return samples, nil
}

// look is the state of a server at a moment.
type look struct {
	usage
	metrics map[string]float64
}

func (o *offerLoad) look(ctx context.Context, s subject, p *process, url string) (look, error) {
	var l look
	var err error
	if s != javascript {
		if l.metrics, err = metrics(ctx, url); err != nil {
			return l, err
		}
	}
	l.usage, err = p.usage()
	return l, err
}

// mean is the mean of a histogram between two looks, in microseconds.
func mean(before, after look, name, labels string) float64 {
	delta := func(part string) float64 { return after.metrics[name+part+labels] - before.metrics[name+part+labels] }
	if delta("_count") == 0 {
		return 0
	}
	return delta("_sum") / delta("_count") * 1e6
}

func (o *offerLoad) serve(s subject) (*node, error) {
	signers, err := signersOf(roleNames...)
	if err != nil {
		return nil, err
	}
	settings := map[string]string{"": "[devnet]\nenabled = true\nlisten = \"127.0.0.1:0\"\nepoch = \"1s\"\n"}
	if s == storefront {
		dir, err := os.MkdirTemp(o.dir, "proofs-")
		if err != nil {
			return nil, err
		}
		front := signers["storefront"]
		a, err1 := neighbour(dir, "storefront.aggregator", piececap.OfferAbility, signers["aggregator"], front.DID())
		c, err2 := neighbour(dir, "storefront.compute", computecap.PieceCIDAbility, signers["compute"], front.DID())
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		signers = map[string]capabilities.Signer{"storefront": front}
		settings = map[string]string{"": a + c}
	}
	return serve(o.binary, o.dir, signers, settings)
}

// settle waits until a process has nothing to do for the moment, at most ten seconds.
func settle(ctx context.Context, p *process) (usage, error) {
	last, err := p.usage()
	if err != nil {
		return last, err
	}
	const look = 200 * time.Millisecond
	for range 50 {
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-time.After(look):
		}
		now, err := p.usage()
		if err != nil || now.cpu-last.cpu <= look/10 {
			return now, err
		}
		last = now
	}
	return last, nil
}

// measureFsync returns the median time to append a page to a file and fsync it.
func measureFsync(dir string, n int) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	page := make([]byte, 4096)
	took := make([]time.Duration, n)
	for i := range took {
		began := time.Now()
		if _, err := f.Write(page); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[n/2], nil
}

// pending measures an aggregator while pieces pile up that fill no aggregate.
type pending struct {
	binary, dir string
	marks       []int
	say         func(format string, args ...any)
}

// mark is what the latest pieces cost when so many were pending.
type mark struct {
	Pending int     `json:"pending"`
	Rate    float64 `json:"per_second"`
	CPU     float64 `json:"server_cpu_us_per_piece"`
	RSS     float64 `json:"rss_mib"`
	Heap    float64 `json:"heap_mib"`
	Disk    float64 `json:"disk_bytes_per_piece"`
	P99     float64 `json:"p99_ms"`
}

func (p *pending) run(ctx context.Context) ([]mark, error) {
	signers, err := signersOf("storefront", "aggregator", "dealer")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(p.dir, "proofs-")
	if err != nil {
		return nil, err
	}
	front, aggregator := signers["storefront"], signers["aggregator"]
	dealer, err := neighbour(dir, "aggregator.dealer", aggregatecap.OfferAbility, signers["dealer"], aggregator.DID())
	if err != nil {
		return nil, err
	}
	settings := map[string]string{"": dealer + fmt.Sprintf("[[aggregator.storefronts]]\ndid = %q\n", front.DID())}
	n, err := serve(p.binary, p.dir, map[string]capabilities.Signer{"aggregator": aggregator}, settings)
	if err != nil {
		return nil, err
	}
	defer func() { _ = n.close() }()
	url := n.urls["aggregator"]
	reqs := piecesOf(front, aggregator.DID())
	var marks []mark
	for done, i := 0, 0; i < len(p.marks); i++ {
		// The last thousand before a mark are measured, with the work that follows from them.
		const last = 1000
		for done < p.marks[i] {
			count := min(p.marks[i]-done, 10_000)
			if left := p.marks[i] - done - last; left > 0 {
				count = min(count, left)
			}
			bodies, err := reqs.sign(count)
			if err != nil {
				return marks, err
			}
			before, err := settle(ctx, n.process)
			if err != nil {
				return marks, err
			}
			run, err := drive(ctx, url, bodies, 16, 0, done == 0)
			if err != nil {
				return marks, err
			}
			if done == 0 {
				if _, err := reqs.checkReply(bodies[0], run.replies[0]); err != nil {
					return marks, fmt.Errorf("the first reply: %w", err)
				}
			}
			done += count
			after, err := settle(ctx, n.process)
			if err != nil {
				return marks, err
			}
			if done < p.marks[i] {
				continue
			}
			m, err := metrics(ctx, url)
			if err != nil {
				return marks, err
			}
			got := mark{
				Pending: done, Rate: run.rate(), P99: ms(run.quantile(0.99)), CPU: us(after.cpu-before.cpu) / float64(count),
				RSS: float64(after.rss) / (1 << 20), Heap: m["go_memstats_heap_inuse_bytes"] / (1 << 20),
				Disk: m[`w3filecoin_store_bytes{role="aggregator"}`] / float64(done),
			}
			marks = append(marks, got)
			p.say("%d pending: %.0f us CPU a piece, %.0f MiB", done, got.CPU, got.RSS)
		}
	}
	return marks, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
