package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/broker"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/store/aws/awstest"
)

// twins are two processes of the same roles on one store of AWS, "left" and "right", beside one of all other roles. Each has a data directory of its own.
type twins struct {
	*eye
	t           *testing.T
	dir         string
	left, right *daemon
	rest        *daemon
	// at is a client of each storefront, dealers one of each dealer.
	at, dealers map[*daemon]*offerer
}

// newTwins starts processes of some roles twice. The store has been created, and the keys.
func newTwins(t *testing.T, twice ...string) (n *twins, store string) {
	t.Helper()
	where := awstest.Services(t)
	if where == nil {
		t.Skip("W3FILECOIN_TEST_AWS does not say where DynamoDB, SQS and S3 are: make test-aws does")
	}
	n = &twins{t: t, dir: t.ArtifactDir(), at: map[*daemon]*offerer{}, dealers: map[*daemon]*offerer{}}
	keys := n.file("keys")
	if err := os.Mkdir(keys, 0o700); err != nil {
		t.Fatal(err)
	}
	cli(t, "admin", "init", "--store", where.String(), "--role", strings.Join(twice, ","), "--keys", keys)
	var once []string
	for _, role := range allRoles {
		if !slices.Contains(twice, role) {
			once = append(once, role)
			newKey(t, filepath.Join(keys, role+".pem"))
		}
	}
	did := map[string]string{}
	for _, role := range allRoles {
		did[role] = cli(t, "key", "show", filepath.Join(keys, role+".pem"))
	}
	for _, d := range []struct{ from, to, can string }{{aggregatorRole, storefrontRole, "piece/offer"}, {computeRole, storefrontRole, "compute/piececid"},
		{dealerRole, aggregatorRole, "aggregate/offer"}} {
		cli(t, "delegate", "--key", filepath.Join(keys, d.from+".pem"), "--to", did[d.to], "--can", d.can, "-o", n.file(proofFile(d.from, d.to, d.can)))
	}
	names := []string{"left", "right", "rest"}
	free := addresses(t, len(names)*len(allRoles)+1)
	devnet := free[len(free)-1]
	// url is where a process has a role, or finds it: among its twins what is twice is its own.
	url := func(name, role string) string {
		i := slices.Index(names, name)
		if slices.Contains(once, role) {
			i = 2
		} else if i == 2 {
			i = 1 // the others know of the right one alone
		}
		return "http://" + free[i*len(allRoles)+slices.Index(allRoles, role)]
	}
	configure := func(name string, mine []string, store string) *daemon {
		var text strings.Builder
		for _, role := range allRoles {
			if slices.Contains(mine, role) {
				fmt.Fprintf(&text, "[%s]\nkey = %q\nlisten = %q\n%s\n", role, filepath.Join(keys, role+".pem"), strings.TrimPrefix(url(name, role), "http://"), map[string]string{
					storefrontRole:  fmt.Sprintf("max_piece = \"4MiB\"\ncontent_retry = \"100ms\"\npull = \"2s\"\nuploads_private = %t", name == "left"),
					aggregatorRole:  "sizes = [\"1MiB\", \"2MiB\", \"4MiB\", \"8MiB\"]\nbudget = \"500ms\"\npull = \"2s\"",
					dealerRole:      "sizes = [\"1MiB\", \"2MiB\", \"4MiB\", \"8MiB\"]\npoll = \"50ms\"",
					dealtrackerRole: "poll = \"100ms\"",
					computeRole:     fmt.Sprintf("allow_hosts = [%q, %q, %q]", hostOf(url("left", storefrontRole)), hostOf(url("right", storefrontRole)), hostOf(where.S3)),
				}[role])
			}
		}
		elsewhere := func(at, setting, role, proof string) {
			if slices.Contains(mine, at) && !slices.Contains(mine, role) {
				fmt.Fprintf(&text, "[%s]\ndid = %q\nurl = %q\n", setting, did[role], url(name, role))
				if proof != "" {
					fmt.Fprintf(&text, "proof = %q\n", proof)
				}
			}
		}
		elsewhere(storefrontRole, "storefront.aggregator", aggregatorRole, proofFile(aggregatorRole, storefrontRole, "piece/offer"))
		elsewhere(storefrontRole, "storefront.compute", computeRole, proofFile(computeRole, storefrontRole, "compute/piececid"))
		elsewhere(aggregatorRole, "aggregator.dealer", dealerRole, proofFile(dealerRole, aggregatorRole, "aggregate/offer"))
		elsewhere(aggregatorRole, "[aggregator.storefronts]", storefrontRole, "")
		elsewhere(dealerRole, "dealer.dealtracker", dealtrackerRole, "")
		elsewhere(dealerRole, "[dealer.aggregators]", aggregatorRole, "")
		elsewhere(computeRole, "[compute.storefronts]", storefrontRole, "")
		if name == "rest" {
			fmt.Fprintf(&text, "[devnet]\nenabled = true\nlisten = %q\nepoch = \"50ms\"\noffers = %q\npieces = [%q]\n", devnet, url(name, dealerRole),
				url(name, storefrontRole)+"/piece/{piece}")
		}
		var urls []string
		for _, role := range mine {
			urls = append(urls, url(name, role))
		}
		head := fmt.Sprintf("data = %q\nstore = %q\nroles = [\"%s\"]\n", name, store, strings.Join(mine, `", "`))
		return newDaemon(t, name, writeConfig(t, n.file(name+".toml"), head+text.String()), urls...)
	}
	n.left, n.right = configure("left", twice, where.String()), configure("right", twice, where.String())
	n.rest = configure("rest", once, "")
	all := []*daemon{n.left, n.right, n.rest}
	for _, d := range all {
		d.start()
	}
	for _, d := range all {
		d.ready()
	}
	newKey(t, n.file("agent.pem"))
	agent, known := signerOf(t, n.file("agent.pem")), roles.NewKeys(roles.KeysConfig{Now: time.Now})
	for _, d := range all[:2] {
		n.at[d], n.dealers[d] = dial(t, url(d.name, storefrontRole), agent, known), dial(t, url(d.name, dealerRole), agent, known)
	}
	n.eye = newEye(known, dial(t, url("rest", aggregatorRole), agent, known), n.dealers[n.right])
	return n, where.String()
}

func (n *twins) file(name string) string { return filepath.Join(n.dir, name) }

// vanish ends a process as a machine that is gone, disk included.
func (n *twins) vanish(d *daemon) {
	n.t.Helper()
	d.kill()
	if err := os.RemoveAll(n.file(d.name)); err != nil {
		n.t.Fatal(err)
	}
}

// nothing checks that a process has not even made a data directory.
func (n *twins) nothing(d *daemon) {
	n.t.Helper()
	if _, err := os.Stat(n.file(d.name)); !errors.Is(err, fs.ErrNotExist) {
		n.t.Errorf("%s keeps %q, %v", d.name, filesIn(n.t, n.file(d.name)), err)
	}
}

// filesIn lists the files in a directory.
func filesIn(t testing.TB, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestNothingOnDisk: on a store of AWS a process keeps nothing. What is uploaded at one storefront is served, validated and offered by the other, the one and its disk
// gone; a disk that vanishes in between is missed by nobody; what one dealer has published, the other lists and serves; and neither has even made its data directory.
func TestNothingOnDisk(t *testing.T) {
	aside(t)
	r := rand.New(rand.NewPCG(seed(t), 0))
	n, store := newTwins(t, storefrontRole, dealerRole)
	left, right := n.at[n.left], n.at[n.right]

	// One takes and serves the bytes itself, the other sends clients to the bucket: it is the same content.
	var contents []content
	for i := range 6 {
		c := newContent(t, r, 0)
		contents = append(contents, c)
		if err := []*offerer{left, right}[i%2].store(t.Context(), c.cid, "content", bytes.NewReader(c.bytes), int64(len(c.bytes))); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range contents {
		for _, at := range []*offerer{left, right} {
			if got := download(t, at.url+"/content/"+c.cid.String(), ""); !bytes.Equal(got, c.bytes) {
				t.Errorf("%s has %d bytes of %s", at.url, len(got), c.cid)
			}
		}
	}
	n.nothing(n.left)
	n.vanish(n.left)
	for _, c := range contents {
		if got := download(t, right.url+"/content/"+c.cid.String(), ""); !bytes.Equal(got, c.bytes) {
			t.Errorf("the other storefront has %d bytes of %s", len(got), c.cid)
		}
		if _, err := n.invoke(t.Context(), right, c); err != nil {
			t.Fatal(err)
		}
	}
	n.left.start()
	n.left.ready()
	n.settle(t, r, patience)

	// Whichever storefront a storage provider asks, it finds the piece; in the bucket, where it can reach it.
	for _, c := range contents {
		for _, at := range []*offerer{left, right} {
			location := redirect(t, at.url+"/piece/"+c.piece.String())
			if got := download(t, location, ""); !bytes.Equal(got, c.bytes) || strings.HasPrefix(location, at.url) != (at == left) {
				t.Errorf("%d bytes of piece %s at %s", len(got), c.piece, location)
			}
		}
	}
	n.concluded(t, n.file("rest/devnet.json"))
	// Either dealer has the documents of both, also when nothing is left of what has run before.
	documents := func(d *daemon) map[string]string {
		var page broker.List
		if err := n.dealers[d].getJSON(t.Context(), "/offers?limit=1000", &page); err != nil {
			t.Fatal(err)
		}
		texts := map[string]string{}
		for _, o := range page.Offers {
			texts[o.Key] = string(download(t, n.dealers[d].url+"/offers/"+o.Key, ""))
		}
		return texts
	}
	before := documents(n.right)
	n.vanish(n.right)
	n.right.start()
	n.right.ready()
	for _, d := range []*daemon{n.left, n.right} {
		if got := documents(d); len(got) == 0 || !maps.Equal(got, before) {
			t.Errorf("%s serves %d documents, not the %d that there are", d.name, len(got), len(before))
		}
	}
	for _, d := range []*daemon{n.left, n.right} {
		d.stop()
		d.log.clean(t)
		n.nothing(d)
	}

	// To a machine of one's own, and from there to another store.
	away, where := awstest.Services(t).String(), sqliteScheme+n.file("home")
	there := cli(t, "admin", "copy", "--uploads", "--from", store, "--to", where, "--json")
	back := cli(t, "admin", "copy", "--uploads", "--from", where, "--to", away, "--json")
	if want := fmt.Sprintf(`"count": %d,`, len(filesIn(t, n.file("home/uploads")))); there != back || !strings.Contains(there, want) {
		t.Errorf("want %s in\n%s\nand\n%s", want, there, back)
	}
	home, err := source.OpenReadOnlyDir(n.file("home/uploads"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range contents {
		if length, err := home.Verified(t.Context(), c.cid); err != nil || length != int64(len(c.bytes)) {
			t.Errorf("%s: %d bytes, %v", c.cid, length, err)
		}
	}
	n.rest.stop()
	n.rest.log.clean(t)
}

// TestEarlierUploads: what a process has in its data directory from before it had a store that is shared, it still reads, and says so.
func TestEarlierUploads(t *testing.T) {
	var said strings.Builder
	n := &node{cfg: Config{Data: t.TempDir(), Store: "aws://test?region=us-east-1&s3=http://127.0.0.1:1&path_style=true"}}
	places := func() []source.Place {
		t.Helper()
		list, err := n.ownPlaces(slog.New(slog.NewTextHandler(&said, nil)))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if list := places(); len(list) != 1 {
		t.Errorf("%d places without a directory", len(list))
	}
	dir, err := source.OpenDir(filepath.Join(n.cfg.Data, uploadsName))
	if err != nil {
		t.Fatal(err)
	}
	if list := places(); len(list) != 1 || said.Len() > 0 {
		t.Errorf("%d places with an empty directory; it says %s", len(list), &said)
	}
	c := newContent(t, rand.New(rand.NewPCG(1, 2)), 1000)
	if _, err := dir.Put(t.Context(), c.cid, bytes.NewReader(c.bytes), 1000); err != nil {
		t.Fatal(err)
	}
	list := places()
	if len(list) != 2 || !list[1].ReadOnly() || list[0].ReadOnly() || !strings.Contains(said.String(), "admin copy --uploads") {
		t.Fatalf("%d places; it says %s", len(list), &said)
	}
	if length, err := list[1].Stat(t.Context(), c.cid); err != nil || length != 1000 {
		t.Errorf("%d bytes, %v", length, err)
	}
}

// TestNoKeyOfItsOwn: on a store that processes share, none becomes somebody by itself.
func TestNoKeyOfItsOwn(t *testing.T) {
	cfg := defaultConfig()
	cfg.Data, cfg.Store, cfg.Roles = filepath.Join(t.TempDir(), "data"), "aws://test?region=us-east-1", []string{computeRole}
	cfg.Compute.Listen = "127.0.0.1:0"
	n, err := build(cfg, slog.New(slog.DiscardHandler))
	if err == nil {
		err = n.close()
	}
	var exit *exitError
	if !errors.As(err, &exit) || !strings.Contains(err.Error(), "compute.key") || exit.code != exitUsage {
		t.Errorf("without a key: %v", err)
	}
	if _, err := os.Stat(cfg.Data); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it made a data directory: %v", err)
	}
}
