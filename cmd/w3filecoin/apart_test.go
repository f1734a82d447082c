package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/store/aws"
	"github.com/storacha/w3filecoin/store/aws/awstest"
	"github.com/storacha/w3filecoin/wire"
)

// apart is a network in which each role is a process of its own, with its own key, database and directory, and knows of the others what
// its configuration says.
type apart struct {
	*eye
	t      *testing.T
	dir    string
	fronts []*offerer
	// roles by the name of their configuration: "one", "two" (storefronts), "aggregator", "dealer", "dealtracker", "compute", "devnet".
	roles map[string]*daemon
	url   map[string]string
	// bucket is the store on AWS that W3FILECOIN_TEST_AWS names, made for this test; nil: databases of their own.
	bucket *aws.Location
	// did is who a role is, key the did:key that signs for it.
	did, key map[string]string
}

// newApart makes keys, delegations and configurations with the program, as operators do, and starts all processes at once.
func newApart(t *testing.T) *apart {
	t.Helper()
	n := &apart{t: t, dir: t.ArtifactDir(), roles: map[string]*daemon{}, url: map[string]string{}, did: map[string]string{}, key: map[string]string{}}
	n.bucket = awstest.Services(t)
	names := []string{"one", "two", "aggregator", "dealer", "dealtracker", "compute"}
	free := addresses(t, len(names)+1)
	listen := map[string]string{"devnet": free[len(names)]}
	for i, name := range names {
		listen[name], n.url[name] = free[i], "http://"+free[i]
		n.key[name] = newKey(t, n.file(name+".pem"))
		n.did[name] = n.key[name]
	}
	n.url["devnet"] = "http://" + listen["devnet"]
	// One storefront and the aggregator have names of their own; the others are their keys.
	n.did["one"], n.did["aggregator"] = "did:web:one.example", "did:web:aggregator.example"
	agents := []string{newKey(t, n.file("agent1.pem")), newKey(t, n.file("agent2.pem"))}

	n.delegate("aggregator", "one", "piece/offer")
	n.delegate("aggregator", "two", "piece/offer")
	n.delegate("compute", "one", "compute/piececid")
	n.delegate("compute", "two", "compute/piececid")
	n.delegate("dealer", "aggregator", "aggregate/offer")

	var table strings.Builder
	table.WriteString("[keys]\n")
	static := map[capabilities.DID]capabilities.DID{}
	for _, name := range []string{"one", "aggregator"} {
		fmt.Fprintf(&table, "%q = %q\n", n.did[name], n.key[name])
		static[parsed(t, n.did[name])] = parsed(t, n.key[name])
	}
	identity := func(role, name string) string {
		text := fmt.Sprintf("data = %q\nstore = %q\nroles = [%q]\n%s[%s]\nkey = %q\nlisten = %q\n", name, n.store(name, role), role, &table, role, name+".pem",
			listen[name])
		if n.did[name] != n.key[name] {
			text += fmt.Sprintf("did = %q\n", n.did[name])
		}
		return text
	}
	neighbour := func(section, name, proof string) string {
		text := fmt.Sprintf("[%s]\ndid = %q\nurl = %q\n", section, n.did[name], n.url[name])
		if proof != "" {
			text += fmt.Sprintf("proof = %q\n", proof)
		}
		return text
	}
	registered := func(section, name string) string { return neighbour("["+section+"]", name, "") }
	const sizes = `sizes = ["1MiB", "2MiB", "4MiB", "8MiB"]` + "\n"
	for i, name := range []string{"one", "two"} {
		n.configure(name, identity("storefront", name)+fmt.Sprintf("allow = [%q]\n", agents[i])+
			"max_piece = \"4MiB\"\ncontent_retry = \"100ms\"\npull = \"5s\"\n"+
			neighbour("storefront.aggregator", "aggregator", proofFile("aggregator", name, "piece/offer"))+
			neighbour("storefront.compute", "compute", proofFile("compute", name, "compute/piececid"))+
			neighbour("storefront.dealtracker", "dealtracker", ""))
	}
	aggregator := identity("aggregator", "aggregator") + sizes + "budget = \"1s\"\npull = \"5s\"\n" +
		neighbour("aggregator.dealer", "dealer", proofFile("dealer", "aggregator", "aggregate/offer")) +
		registered("aggregator.storefronts", "one") + registered("aggregator.storefronts", "two")
	n.configure("aggregator", aggregator)
	if n.bucket != nil {
		// Where a store allows it, two processes run the role beside each other.
		replica := addresses(t, 1)[0]
		n.url["replica"] = "http://" + replica
		n.configure("replica", strings.Replace(aggregator, listen["aggregator"], replica, 1))
	}
	n.configure("dealer", identity("dealer", "dealer")+sizes+"poll = \"100ms\"\n"+
		neighbour("dealer.dealtracker", "dealtracker", "")+registered("dealer.aggregators", "aggregator"))
	devnet := fmt.Sprintf("[devnet]\nlisten = %q\nepoch = \"50ms\"\ngenesis = %d\n", listen["devnet"], time.Now().Unix())
	n.configure("dealtracker", identity("dealtracker", "dealtracker")+
		fmt.Sprintf("rpc = %q\nnetwork = \"devnet\"\nclients = [\"f01001\"]\npoll = \"100ms\"\n", n.url["devnet"])+devnet)
	n.configure("compute", identity("compute", "compute")+
		registered("compute.storefronts", "one")+registered("compute.storefronts", "two"))
	n.configure("devnet", "data = \"devnet\"\nroles = [\"devnet\"]\n"+devnet+
		fmt.Sprintf("offers = %q\npieces = [\"%s/piece/{piece}\", \"%s/piece/{piece}\"]\n", n.url["dealer"], n.url["one"], n.url["two"]))

	for _, d := range n.roles {
		d.start()
	}
	for _, d := range n.roles {
		d.ready()
	}
	keys := roles.NewKeys(roles.KeysConfig{Static: static, Now: time.Now})
	for i, name := range []string{"one", "two"} {
		n.fronts = append(n.fronts, dial(t, n.url[name], signerOf(t, n.file(fmt.Sprintf("agent%d.pem", i+1))), keys))
	}
	n.eye = newEye(keys, dial(t, n.url["aggregator"], n.fronts[0].agent, keys), dial(t, n.url["dealer"], n.fronts[0].agent, keys))
	return n
}

// store is the setting of a process, empty for a database of its own. What it names has been created.
func (n *apart) store(name, role string) string {
	if n.bucket == nil {
		return ""
	}
	where := *n.bucket
	if name == "two" { // the storefront beside this one has tables of its own
		where.Prefix += "-two"
	}
	cli(n.t, "admin", "init", "--store", where.String(), "--role", role)
	cli(n.t, "admin", "check", "--store", where.String(), "--role", role)
	return where.String()
}

func (n *apart) file(name string) string { return filepath.Join(n.dir, name) }

func (n *apart) configure(name, text string) {
	n.t.Helper()
	var urls []string
	if name != "devnet" {
		urls = append(urls, n.url[name])
	}
	n.roles[name] = newDaemon(n.t, name, writeConfig(n.t, n.file(name+".toml"), text), urls...)
}

func proofFile(from, to, can string) string {
	return from + "-" + to + "-" + strings.ReplaceAll(can, "/", "-") + ".ucan"
}

func (n *apart) delegate(from, to, can string) {
	n.t.Helper()
	args := []string{"delegate", "--key", n.file(from + ".pem"), "--to", n.did[to], "--can", can, "-o", n.file(proofFile(from, to, can))}
	if n.did[from] != n.key[from] {
		args = append(args, "--did", n.did[from])
	}
	cli(n.t, args...)
}

func parsed(t testing.TB, text string) capabilities.DID {
	t.Helper()
	did, err := wire.ParseDID(text)
	if err != nil {
		t.Fatal(err)
	}
	return did
}

// offerSome offers that many pieces at both storefronts in turn, several at a time.
func (n *apart) offerSome(r *rand.Rand, count int) (list []*offering) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience+time.Duration(count)*200*time.Millisecond)
	defer cancel()
	work := make(chan func())
	var group sync.WaitGroup
	list = make([]*offering, count)
	for range 8 {
		group.Go(func() {
			for f := range work {
				f()
			}
		})
	}
	for i := range count {
		c := newContent(n.t, r, 0)
		work <- func() {
			var err error
			if list[i], err = n.promised(ctx, n.fronts[i%len(n.fronts)], c); err != nil {
				n.t.Errorf("offering %s: %v", c.cid, err)
			}
		}
	}
	close(work)
	group.Wait()
	if n.t.Failed() {
		n.t.FailNow()
	}
	return list
}

// TestRolesApart runs each role as a process of its own, two storefronts among them, and gets W3FILECOIN_PIECES pieces through all of them. All are
// accepted, by chains that verify, and no process logs an error. Then roles are away for a while, one by one: what needs them waits with a
// reason, and goes on when they are back.
func TestRolesApart(t *testing.T) {
	aside(t)
	few := uint64(40)
	if testing.Short() {
		few = 12
	}
	pieces := int(number(t, "W3FILECOIN_PIECES", few))
	r := rand.New(rand.NewPCG(seed(t), 0))
	n := newApart(t)

	began := time.Now()
	n.offerSome(r, pieces)
	acknowledged := time.Since(began)
	n.settle(t, r, patience+time.Duration(pieces)*200*time.Millisecond)
	dealt := time.Since(began)
	if err := n.check(t.Context(), r, 0); err != nil {
		t.Fatal(err)
	}
	count := len(n.done)
	t.Logf("%d pieces: acknowledged in %.1f s (%.0f/s), dealt in %.1f s (%.1f/s), all chains verified after %.1f s", count,
		acknowledged.Seconds(), float64(count)/acknowledged.Seconds(), dealt.Seconds(), float64(count)/dealt.Seconds(), time.Since(began).Seconds())
	if measured := n.measured(`w3filecoin_state_age_seconds_count{of="piece",role="storefront",state="dealt"}`, "one", "two"); measured != count {
		t.Errorf("the storefronts have measured %d pieces in deals, not %d", measured, count)
	}

	if n.bucket != nil {
		n.logRequests(count)
	}
	n.downloadAggregate()

	if !testing.Short() {
		n.goAway(r)
	}
	n.concluded(t, n.file("devnet/devnet.json"))
	for _, d := range n.roles {
		d.stop()
		d.log.clean(t)
	}
}

// downloadAggregate downloads an aggregate as one file, with pieces of both storefronts if there is such a one: from the aggregator, which has none of them,
// and where a storefront sends for it.
func (n *apart) downloadAggregate() {
	n.t.Helper()
	fronts := map[string]map[*offerer]bool{}
	for _, o := range n.done {
		st, err := o.standing(n.t.Context())
		if err != nil {
			n.t.Fatal(err)
		}
		if fronts[st.Aggregate] == nil {
			fronts[st.Aggregate] = map[*offerer]bool{}
		}
		fronts[st.Aggregate][o.at] = true
	}
	name := ""
	for aggregate, of := range fronts {
		if name == "" || len(of) > len(fronts[name]) {
			name = aggregate
		}
	}
	whole := download(n.t, n.url["one"]+"/aggregate/"+name, "")
	if sum, err := piece.Sum(whole); err != nil || sum.String() != name {
		n.t.Errorf("the file of aggregate %s, %d bytes of %d storefronts, is %s, %v", name, len(whole), len(fronts[name]), sum, err)
	}
	n.t.Logf("checked: the file of an aggregate, %d bytes, with pieces of %d storefronts", len(whole), len(fronts[name]))
	for _, at := range []int{1, len(whole) / 3, len(whole) - 1000} {
		if got := download(n.t, n.url["aggregator"]+"/aggregate/"+name, fmt.Sprintf("bytes=%d-%d", at, at+999)); !bytes.Equal(got, whole[at:at+1000]) {
			n.t.Errorf("bytes of aggregate %s from %d on are others than in the whole", name, at)
		}
	}
}

// measured adds up a measurement of some storefronts.
func (n *apart) measured(name string, fronts ...string) (sum int) {
	n.t.Helper()
	for _, front := range fronts {
		resp, err := http.Get(n.url[front] + "/metrics")
		if err != nil {
			n.t.Fatal(err)
		}
		defer resp.Body.Close()
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
				v, err := strconv.Atoi(value)
				if err != nil {
					n.t.Fatal(err)
				}
				sum += v
			}
		}
	}
	return sum
}

// logRequests tells how often the roles have asked the services of their store, what is asked without work left out.
func (n *apart) logRequests(pieces int) {
	n.t.Helper()
	type operation struct{ service, name string }
	requests, units := map[operation]float64{}, map[operation]float64{}
	bytes := map[string]float64{}
	sizes := regexp.MustCompile(`^w3filecoin_store_(sent|received)_bytes_total\{role="\w+",service="(\w+)"\} (\S+)$`)
	series := regexp.MustCompile(`^w3filecoin_store_(requests|capacity_units)_total\{operation="(\w+)",role="\w+"(?:,service="(\w+)")?\} (\S+)$`)
	for name, url := range n.url {
		if name == "devnet" {
			continue
		}
		resp, err := http.Get(url + "/metrics")
		if err != nil {
			n.t.Fatal(err)
		}
		defer resp.Body.Close()
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if m := sizes.FindStringSubmatch(lines.Text()); m != nil {
				v, err := strconv.ParseFloat(m[3], 64)
				if err != nil {
					n.t.Fatal(err)
				}
				bytes[m[2]+" "+m[1]] += v
			}
			m := series.FindStringSubmatch(lines.Text())
			if m == nil || m[2] == "ReceiveMessage" || m[2] == "GetQueueUrl" {
				continue
			}
			v, err := strconv.ParseFloat(m[4], 64)
			if err != nil {
				n.t.Fatal(err)
			}
			if m[1] == "requests" {
				requests[operation{m[3], m[2]}] += v
			} else {
				units[operation{"dynamodb", m[2]}] += v
			}
		}
	}
	if len(requests) == 0 {
		n.t.Error("the roles asked no service of their store")
	}
	for _, op := range slices.SortedFunc(maps.Keys(requests), func(a, b operation) int { return strings.Compare(a.service+a.name, b.service+b.name) }) {
		n.t.Logf("%-9s %-24s %6.0f requests, %5.1f a piece; %7.1f units", op.service, op.name, requests[op], requests[op]/float64(pieces), units[op])
	}
	for _, what := range slices.Sorted(maps.Keys(bytes)) {
		n.t.Logf("%-34s %9.0f bytes, %7.0f a piece", what, bytes[what], bytes[what]/float64(pieces))
	}
}

// goAway takes roles away and brings them back.
func (n *apart) goAway(r *rand.Rand) {
	n.t.Helper()
	// The aggregator is away: pieces wait at the storefront, which says why.
	n.roles["aggregator"].stop()
	n.show(n.offerSome(r, 6), "aggregation: ", " cannot be reached")
	n.roles["aggregator"].start()
	n.roles["aggregator"].ready()
	// The dealer dies while the aggregate is on its way, more than once.
	for range 3 {
		sometime(n.t, r, time.Second)
		n.roles["dealer"].kill()
		n.roles["dealer"].start()
		n.roles["dealer"].ready()
	}
	n.settle(n.t, r, patience)

	// Compute and the deal tracker are away, and a storefront dies.
	n.roles["compute"].kill()
	n.show(n.offerSome(r, 6), "validation: ", " cannot be reached")
	n.roles["dealtracker"].kill()
	n.roles["one"].kill()
	for _, name := range []string{"one", "compute", "dealtracker"} {
		n.roles[name].start()
	}
	for _, name := range []string{"one", "compute", "dealtracker"} {
		n.roles[name].ready()
	}
	n.settle(n.t, r, patience)
}

// show waits until the storefronts say that offers wait, why, and when there is another try.
func (n *apart) show(list []*offering, texts ...string) {
	n.t.Helper()
	for _, o := range list {
		eventually(n.t, fmt.Sprintf("%s says %q", o.task, texts), func(ctx context.Context) error {
			s, err := o.standing(ctx)
			if err != nil {
				return err
			}
			for _, text := range texts {
				if !strings.Contains(s.Reason, text) {
					return fmt.Errorf("it is %s: %s", s.State, s.Reason)
				}
			}
			if s.Next.IsZero() {
				return errors.New("the next try is not shown")
			}
			return nil
		})
	}
}
