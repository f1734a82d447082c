package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/store/aws/awstest"
)

// replicated is a network on AWS with two processes of each role, which share key and state, behind a load balancer for each role. Between the
// processes and the services of their store stand faults.
type replicated struct {
	*apart
	faults    *faults
	balancers map[string]*balancer
	steady    *steady
	kills     int
	// counters are the requests that processes have counted, by service and operation, those that have ended among them.
	counters map[string]float64
}

// replicasOf are the names of a role's processes.
func replicasOf(role string) []string { return []string{role + "-1", role + "-2"} }

// newReplicated starts one, with settings of every process beside the usual ones.
func newReplicated(t *testing.T, r *rand.Rand, setting string) *replicated {
	t.Helper()
	where := awstest.Services(t)
	if where == nil {
		t.Skip("W3FILECOIN_TEST_AWS is not set: `make test-aws` runs this test")
	}
	n := &replicated{
		apart:  &apart{t: t, dir: t.ArtifactDir(), bucket: where, roles: map[string]*daemon{}, url: map[string]string{}, did: map[string]string{}, key: map[string]string{}},
		faults: newFaults(t, *where, rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))), balancers: map[string]*balancer{}, counters: map[string]float64{},
	}
	cli(t, "admin", "init", "--store", where.String())
	cli(t, "admin", "check", "--store", where.String())
	free := addresses(t, 3*len(allRoles)+1)
	listen := map[string]string{devnetName: free[0]}
	n.url[devnetName] = "http://" + free[0]
	shared := map[string]string{} // URL of a role, which is its balancer's
	for i, role := range allRoles {
		n.key[role] = newKey(t, n.file(role+".pem"))
		n.did[role] = n.key[role]
		own := free[1+3*i:]
		for j, name := range replicasOf(role) {
			listen[name], n.url[name] = own[j], "http://"+own[j]
		}
		n.balancers[role] = newBalancer(t, own[2], own[0], own[1])
		shared[role] = n.balancers[role].url
	}
	agents := []string{newKey(t, n.file("agent1.pem")), newKey(t, n.file("agent2.pem"))}
	n.delegate(aggregatorRole, storefrontRole, "piece/offer")
	n.delegate(computeRole, storefrontRole, "compute/piececid")
	n.delegate(dealerRole, aggregatorRole, "aggregate/offer")

	neighbour := func(section, role, proof string) string {
		text := fmt.Sprintf("[%s]\ndid = %q\nurl = %q\n", section, n.did[role], shared[role])
		if proof != "" {
			text += fmt.Sprintf("proof = %q\n", proof)
		}
		return text
	}
	registered := func(section, role string) string { return neighbour("["+section+"]", role, "") }
	const sizes = `sizes = ["1MiB", "2MiB", "4MiB", "8MiB"]` + "\n"
	devnet := fmt.Sprintf("[devnet]\nlisten = %q\nepoch = \"50ms\"\ngenesis = %d\n", listen[devnetName], time.Now().Unix())
	settings := map[string]string{
		storefrontRole: fmt.Sprintf("allow = [%q, %q]\nmax_piece = \"4MiB\"\ncontent_retry = \"100ms\"\npull = \"5s\"\n", agents[0], agents[1]) +
			neighbour("storefront.aggregator", aggregatorRole, proofFile(aggregatorRole, storefrontRole, "piece/offer")) +
			neighbour("storefront.compute", computeRole, proofFile(computeRole, storefrontRole, "compute/piececid")) +
			neighbour("storefront.dealtracker", dealtrackerRole, ""),
		aggregatorRole: sizes + "budget = \"1s\"\npull = \"5s\"\n" +
			neighbour("aggregator.dealer", dealerRole, proofFile(dealerRole, aggregatorRole, "aggregate/offer")) +
			registered("aggregator.storefronts", storefrontRole),
		dealerRole: sizes + "poll = \"100ms\"\n" +
			neighbour("dealer.dealtracker", dealtrackerRole, "") + registered("dealer.aggregators", aggregatorRole),
		dealtrackerRole: fmt.Sprintf("rpc = %q\nnetwork = \"devnet\"\nclients = [\"f01001\"]\npoll = \"100ms\"\n", n.url[devnetName]) + devnet,
	}
	store := map[string]string{}
	var hosts []string // that content is uploaded to
	for _, role := range allRoles {
		for _, name := range replicasOf(role) {
			where := n.faults.location(name)
			if store[name] = where.String(); role == storefrontRole {
				hosts = append(hosts, fmt.Sprintf("%q", hostOf(where.S3)))
			}
		}
	}
	settings[computeRole] = fmt.Sprintf("allow_hosts = [%s]\n", strings.Join(hosts, ", ")) + registered("compute.storefronts", storefrontRole)
	for _, role := range allRoles {
		for _, name := range replicasOf(role) {
			n.configure(name, fmt.Sprintf("%s\ndata = %q\nstore = %q\nroles = [%q]\n[%s]\nkey = %q\nlisten = %q\nurl = %q\n",
				setting, name, store[name], role, role, role+".pem", listen[name], shared[role])+settings[role])
		}
	}
	n.configure(devnetName, "data = \"devnet\"\nroles = [\"devnet\"]\n"+devnet+
		fmt.Sprintf("offers = %q\npieces = [\"%s/piece/{piece}\"]\n", shared[dealerRole], shared[storefrontRole]))
	for name, d := range n.roles {
		if name != devnetName {
			d.start()
		}
	}
	for role, b := range n.balancers {
		eventually(t, "the balancer has both replicas of the "+role, func(context.Context) error {
			if n := len(b.choose()); n < 2 {
				return fmt.Errorf("it has %d", n)
			}
			return nil
		})
	}
	n.roles[devnetName].start()
	n.roles[devnetName].ready()

	keys := roles.NewKeys(roles.KeysConfig{Now: time.Now})
	n.steady = &steady{base: &http.Transport{MaxIdleConnsPerHost: 64}}
	t.Cleanup(n.steady.base.CloseIdleConnections)
	at := func(role, agent string) *offerer {
		o := dial(t, shared[role], signerOf(t, n.file(agent)), keys)
		o.http = &http.Client{Transport: n.steady}
		o.conn = client.Dial(shared[role], o.http)
		return o
	}
	n.fronts = []*offerer{at(storefrontRole, "agent1.pem"), at(storefrontRole, "agent2.pem")}
	n.eye = newEye(keys, at(aggregatorRole, "agent1.pem"), at(dealerRole, "agent1.pem"))
	n.lags = true
	return n
}

// steady is how clients reach services of which a process may die: it repeats requests that met a broken connection, HTTP 502 or 503, and nothing
// else. Every answer that is one comes through.
type steady struct {
	base     *http.Transport
	mu       sync.Mutex
	repeated int
}

func (s *steady) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	if req.Body != nil && req.GetBody == nil {
		return s.base.RoundTrip(req)
	}
	ctx, cancel := context.WithTimeout(req.Context(), patience)
	defer cancel()
	first := true
	failed := repeat(ctx, func(context.Context) error {
		if !first {
			s.mu.Lock()
			s.repeated++
			s.mu.Unlock()
		}
		first = false
		again := req.Clone(req.Context())
		if req.GetBody != nil {
			if again.Body, err = req.GetBody(); err != nil {
				return nil
			}
		}
		resp, err = s.base.RoundTrip(again)
		switch {
		case err != nil && req.Context().Err() == nil:
			return err
		case err == nil && (resp.StatusCode == http.StatusBadGateway || resp.StatusCode == http.StatusServiceUnavailable):
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
			resp.Body.Close()
			return fmt.Errorf("%s: %s", resp.Status, text)
		case err == nil:
			// Answers that break off are no answers either.
			body, broken := io.ReadAll(resp.Body)
			resp.Body.Close()
			if broken != nil {
				return broken
			}
			resp.Body = io.NopCloser(bytes.NewReader(body))
		}
		return nil
	})
	if failed != nil {
		return nil, fmt.Errorf("repeated for %s: %w", patience, failed)
	}
	return resp, err
}

// offer stores content and offers it. What it gets is an answer, or nobody is there.
func (n *replicated) offer(ctx context.Context, at *offerer, c content) error {
	// An upload is repeated as a new one; what it promises is the content's, which is looked at with the offer.
	err := repeat(ctx, func(ctx context.Context) error {
		_, err := client.PutBlob(ctx, client.Upload{
			Conn: at.conn, Agent: at.agent, Storefront: at.storefront, Keys: at.keys, Space: at.with, HTTP: at.http, Patience: patience,
			Terms: capabilities.Terms{Expiration: time.Now().Add(time.Hour)},
		}, blob.Blob{Digest: blob.Digest(c.cid.Hash()), Size: uint64(len(c.bytes))}, func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(c.bytes)), nil
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("storing %s: %w", c.cid, err)
	}
	_, err = n.invoke(ctx, at, c)
	return err
}

// offerAll offers so many pieces, several at a time, one in eight of them twice and by another agent as well.
func (n *replicated) offerAll(ctx context.Context, seed uint64, count int) error {
	const parallel = 16
	var group sync.WaitGroup
	errs := make([]error, parallel)
	for i := range parallel {
		group.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for j := i; j < count && errs[i] == nil; j += parallel {
				c := newContent(n.t, r, 0)
				at, other := n.fronts[j%2], n.fronts[1-j%2]
				if errs[i] = n.offer(ctx, at, c); errs[i] == nil && r.IntN(8) == 0 {
					_, err := n.invoke(ctx, at, c)
					_, others := n.invoke(ctx, other, c)
					errs[i] = errors.Join(err, others)
				}
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// watch looks at offers, at the oldest that have not ended and at some that have, until all of at least count have ended. Where the last ones wait for more
// volume, it offers some.
func (n *replicated) watch(ctx context.Context, r *rand.Rand, count int) error {
	const most = 40
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var filled time.Time
	for {
		n.mu.Lock()
		open := slices.Clone(n.open[:min(len(n.open), most)])
		enough := len(n.open) == 0 && len(n.done) >= count
		n.mu.Unlock()
		if enough {
			return nil
		}
		ended, err := n.lookAt(ctx, r, open, 10)
		if err != nil && ctx.Err() != nil {
			return n.unfinished(err)
		}
		if err != nil {
			return err
		}
		if len(open) > 0 && ended > len(open)/2 {
			continue
		}
		if ended == 0 && len(open) > 0 && time.Since(filled) > 3*time.Second {
			if missing := n.missing(ctx, open[0]); missing > 0 {
				filled = time.Now()
				if err := n.offer(ctx, n.fronts[0], newContent(n.t, r, int(missing)/128*127)); err != nil {
					return err
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return n.unfinished(ctx.Err())
		}
	}
}

// unfinished says what is left when the time is over.
func (n *replicated) unfinished(why error) error {
	n.mu.Lock()
	open, done := slices.Clone(n.open), len(n.done)
	n.mu.Unlock()
	if len(open) == 0 {
		return fmt.Errorf("only %d offers have ended: %w", done, why)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := open[0].standing(ctx)
	return fmt.Errorf("%d offers have not ended, %d have: %w; the first is %s: %+v, %v", len(open), done, why, open[0].task, s, err)
}

// kill ends a process as a power failure would, and starts it again.
func (n *replicated) kill(name string) {
	n.t.Helper()
	n.count(name)
	n.roles[name].kill()
	n.faults.release(name)
	n.roles[name].start()
	n.kills++
}

var requestSeries = regexp.MustCompile(`^w3filecoin_store_requests_total\{operation="(\w+)",role="(\w+)",service="(\w+)"\} (\S+)$`)

// count adds up what a process says of its requests, before it ends. One that has not begun yet says nothing.
func (n *replicated) count(name string) {
	n.t.Helper()
	resp, err := (&http.Client{Timeout: 5 * time.Second}).Get(n.url[name] + "/metrics")
	if err != nil {
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return
	}
	for line := range strings.SplitSeq(string(body), "\n") {
		if m := requestSeries.FindStringSubmatch(line); m != nil {
			v, err := strconv.ParseFloat(m[4], 64)
			if err != nil {
				n.t.Error(err)
			}
			n.counters[m[3]+" "+m[1]] += v
		}
	}
}

// undead checks that no message of any role failed for the last time.
func (n *replicated) undead() {
	n.t.Helper()
	var letters []deadLetter
	if err := json.Unmarshal([]byte(cli(n.t, "admin", "dead", "list", "--store", n.bucket.String(), "--json")), &letters); err != nil {
		n.t.Fatal(err)
	}
	for _, l := range letters {
		n.t.Errorf("dead letter %s after %d attempts: %s", l.ID, l.Attempts, l.Error)
	}
}

// TestReplicas runs two processes of each role on one store, kills one with SIGKILL every now and then while W3FILECOIN_PIECES pieces are
// offered and get their deals, and lets the services of the store fail, repeat, delay and forget as they may. What was acknowledged ends
// well, no receipt changes, nothing is done twice, no message dies, and no process logs an error.
func TestReplicas(t *testing.T) {
	aside(t)
	pieces := int(number(t, "W3FILECOIN_PIECES", 30))
	seed := seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	n := newReplicated(t, r, "")
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute+time.Duration(pieces)*time.Second)
	defer cancel()
	results := make(chan error, 2)
	offering := rand.New(rand.NewPCG(seed, 1)).Uint64()
	go func() {
		err := n.offerAll(ctx, offering, pieces)
		t.Logf("%d pieces were acknowledged after %.0f s", pieces, time.Since(began).Seconds())
		results <- err
	}()
	go func() { results <- n.watch(ctx, rand.New(rand.NewPCG(seed, 2)), pieces) }()

	// A process dies after so many messages were worked on: the more is done, the sooner.
	interval := min(100, 12*pieces/10)
	for running := 2; running > 0; {
		select {
		case err := <-results:
			if err != nil {
				t.Fatal(err)
			}
			running--
		case <-n.faults.after(interval/2 + r.IntN(interval)):
			role := allRoles[r.IntN(len(allRoles))]
			name := replicasOf(role)[r.IntN(2)]
			n.kill(name)
			if r.IntN(8) == 0 {
				n.kill(name) // while it starts
			}
		}
	}
	for _, d := range n.roles {
		d.ready()
	}
	n.concluded(t, n.file("devnet/devnet.json"))
	took := time.Since(began)
	n.undead()
	for name := range n.roles {
		if name != devnetName {
			n.count(name)
		}
	}
	for _, d := range n.roles {
		d.ask()
	}
	for _, d := range n.roles {
		d.await()
		d.log.clean(t)
	}
	n.faults.report(pieces)
	n.report(pieces)
	t.Logf("checked: %d pieces in %.0f s, %.1f/s; %d processes were killed; %d requests of clients met a process that was gone, or HTTP 503, and were repeated",
		len(n.done), took.Seconds(), float64(len(n.done))/took.Seconds(), n.kills, n.steady.repeated)
}

// report tells what the processes have counted, as far as they could before they were killed.
func (n *replicated) report(pieces int) {
	n.t.Helper()
	var list []string
	for op, v := range n.counters {
		list = append(list, fmt.Sprintf("%s %.1f", op, v/float64(pieces)))
	}
	slices.Sort(list)
	n.t.Logf("w3filecoin_store_requests_total, a piece: %s", strings.Join(list, ", "))
}

// TestRollingRestart asks every replica to end and starts it again, the first of each role and then the second, while pieces are offered. No request
// fails, no connection is refused, no message waits for the end of a lease, and everything that was offered gets its deal.
func TestRollingRestart(t *testing.T) {
	aside(t)
	seed := seed(t)
	n := newReplicated(t, rand.New(rand.NewPCG(seed, 0)), "drain = \"10s\"")
	n.faults.calm = true
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()

	const offering = 2
	rolled, results := make(chan struct{}), make(chan error, offering)
	for i := range offering {
		go func() {
			r := rand.New(rand.NewPCG(seed, uint64(i+1)))
			for {
				if err := n.offer(ctx, n.fronts[i], newContent(t, r, 0)); err != nil {
					results <- err
					return
				}
				select {
				case <-rolled:
					results <- nil
					return
				case <-time.After(time.Duration(r.Int64N(int64(500 * time.Millisecond)))):
				}
			}
		}()
	}
	for turn := range 2 {
		began, working := time.Now(), 0
		for _, role := range allRoles {
			name := replicasOf(role)[turn]
			working += n.faults.holds(name)
			n.roles[name].ask()
		}
		for _, role := range allRoles {
			n.roles[replicasOf(role)[turn]].await()
		}
		t.Logf("asked to end, one process of each role has within %s; they worked on %d messages", time.Since(began).Round(10*time.Millisecond), working)
		for _, role := range allRoles {
			name := replicasOf(role)[turn]
			if held := n.faults.holds(name); held > 0 {
				t.Errorf("%s has ended with %d messages that nobody gets before their lease is over", name, held)
			}
			n.roles[name].start()
		}
		for _, role := range allRoles {
			n.roles[replicasOf(role)[turn]].ready()
			eventually(t, "the balancer knows that the "+role+" is back", func(context.Context) error {
				if !n.balancers[role].backends[turn].isReady() {
					return errors.New("it does not")
				}
				return nil
			})
		}
	}
	close(rolled)
	for range offering {
		if err := <-results; err != nil {
			t.Fatal(err)
		}
	}
	if err := n.watch(ctx, rand.New(rand.NewPCG(seed, 0)), 1); err != nil {
		t.Fatal(err)
	}
	n.concluded(t, n.file("devnet/devnet.json"))
	n.undead()
	served, failed, refused := 0, 0, 0
	for role, b := range n.balancers {
		served, failed, refused = served+b.served, failed+b.failed, refused+b.refused
		if b.refused > 0 {
			t.Errorf("replicas of the %s took %d connections no more before they had said so", role, b.refused)
		}
		if b.failed > 0 {
			t.Errorf("%d requests to the %s failed: %s", b.failed, role, strings.Join(b.reasons, "; "))
		}
	}
	for _, d := range n.roles {
		d.ask()
	}
	for name, d := range n.roles {
		d.await()
		d.log.clean(t)
		if held := n.faults.holds(name); held > 0 {
			t.Errorf("%s has ended with %d messages that nobody gets before their lease is over", name, held)
		}
	}
	t.Logf("checked: %d pieces, %d requests through load balancers, every replica restarted once; %d failed, %d connections were refused", len(n.done), served, failed, refused)
}
