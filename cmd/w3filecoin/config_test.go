package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/standing"
)

func TestReadConfig(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "w3filecoin.toml")
	if err := os.WriteFile(file, []byte(`
data = "state"
[storefront]
listen = "127.0.0.1:9001"
allow = ["did:key:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX"]
max_piece = "2GiB"
[[storefront.providers]]
did = "did:web:compute.example"
url = "https://compute.example"
proof = "compute.ucan"
near = ["region:us-east-1"]
parallel = 3
[storefront.limits]
agent_count = 100
newcomers_size = "1GiB"
[storefront.upload_limits]
agent_size = "10GiB"
newcomers_count = 20
[storefront.reputation]
refuse = 0
[aggregator]
sizes = ["4MiB", "4GiB"]
budget = "90m"
[[aggregator.storefronts]]
did = "did:key:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX"
lane = "trial"
[dealtracker]
rpc = "http://127.0.0.1:1234"
`), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := readConfig(file, []string{"W3FILECOIN_STOREFRONT_LISTEN=127.0.0.1:9100", "W3FILECOIN_DEALTRACKER_CLIENTS=f01, f02", "PATH=x",
		"W3FILECOIN_STOREFRONT_LIMITS_SPACE_COUNT=7", "W3FILECOIN_STOREFRONT_UPLOAD_LIMITS_SPACE_SIZE=3MiB"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.validate(); err != nil {
		t.Fatal(err)
	}
	switch {
	case c.Data != filepath.Join(dir, "state"):
		t.Errorf("data is %s: paths are meant from where the file is", c.Data)
	case c.Storefront.Listen != "127.0.0.1:9100":
		t.Errorf("the environment does not beat the file: %s", c.Storefront.Listen)
	case c.Storefront.MaxPiece != 2<<30, len(c.Aggregator.Sizes) != 2, c.Aggregator.Sizes[0] != 4<<20:
		t.Errorf("sizes: %d, %d", c.Storefront.MaxPiece, c.Aggregator.Sizes)
	case time.Duration(c.Aggregator.Budget) != 90*time.Minute, c.Aggregator.Storefronts[0].Lane != "trial":
		t.Errorf("aggregator: %+v", c.Aggregator)
	case strings.Join(c.DealTracker.Clients, "+") != "f01+f02":
		t.Errorf("clients: %q", c.DealTracker.Clients)
	case len(c.Storefront.Providers) != 1 || c.Storefront.Providers[0].Proof != filepath.Join(dir, "compute.ucan") || c.Storefront.Providers[0].Parallel != 3:
		t.Errorf("providers: %+v", c.Storefront.Providers)
	case c.Storefront.Limits != (Limits{AgentCount: 100, NewcomersSize: 1 << 30, SpaceCount: 7}):
		t.Errorf("limits: %+v", c.Storefront.Limits)
	case c.Storefront.UploadLimits != (Limits{AgentSize: 10 << 30, NewcomersCount: 20, SpaceSize: 3 << 20}):
		t.Errorf("limits of uploads: %+v", c.Storefront.UploadLimits)
	case c.Storefront.UploadLimits.limits() != (standing.Limits{Agent: standing.Limit{Bytes: 10 << 30}, Space: standing.Limit{Bytes: 3 << 20},
		Newcomers: standing.Limit{Count: 20}}):
		t.Errorf("limits of uploads, as they are applied: %+v", c.Storefront.UploadLimits.limits())
	case c.Storefront.Reputation != (Reputation{HalfLife: Duration(72 * time.Hour), Quarantine: 3}), c.Aggregator.Reputation.Refuse != 10:
		t.Errorf("reputation: %+v, %+v", c.Storefront.Reputation, c.Aggregator.Reputation)
	case c.Dealer.Listen != "127.0.0.1:8003":
		t.Errorf("dealer listens on %s", c.Dealer.Listen)
	}
}

// TestConfigSaysWhatToDo: everything that is wrong is said at once, by the name of the setting.
func TestConfigSaysWhatToDo(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(c *Config)
		want   []string
	}{
		{"no chain", func(*Config) {}, []string{"dealtracker.rpc", "--devnet"}},
		{"public without an allow-list", func(c *Config) { c.Storefront.Listen = "0.0.0.0:8001" }, []string{"storefront.allow"}},
		{"unknown role", func(c *Config) { c.Roles = []string{"miner"} }, []string{`no role "miner"`}},
		{"neighbours missing", func(c *Config) { c.Roles = []string{storefrontRole} }, []string{"storefront.aggregator", "storefront.compute", "did and url"}},
		{"proof missing", func(c *Config) {
			c.Roles = []string{aggregatorRole}
			c.Aggregator.Dealer = Neighbour{DID: "did:web:dealer.example", URL: "https://dealer.example"}
		}, []string{"aggregator.dealer.proof", "delegate"}},
		{"half a claims service", func(c *Config) { c.Storefront.Claims.URL = "https://claims.example" }, []string{"storefront.claims", "did"}},
		{"no time for uploads", func(c *Config) { c.Storefront.UploadWindow = 0 }, []string{"upload_window", "24h"}},
		{"devnet alone", func(c *Config) { c.Roles = []string{devnetName} }, []string{"devnet.offers", "devnet.pieces"}},
		{"devnet elsewhere", func(c *Config) {
			c.Roles = []string{dealtrackerRole}
			c.DealTracker.RPC, c.DealTracker.Network = "http://127.0.0.1:8009", devnetName
			c.Devnet.Epoch = 0
		}, []string{"devnet.genesis", "devnet.epoch"}},
		{"refused before quarantined", func(c *Config) {
			c.Storefront.Reputation.Quarantine, c.Aggregator.Reputation.HalfLife = 20, 0
		}, []string{"storefront.reputation", "quarantine = 20", "aggregator.reputation.half_life"}},
		{"half a provider", func(c *Config) {
			c.Storefront.Providers = []Provider{{Neighbour: Neighbour{DID: "did:web:compute.example"}, Near: []string{"us-east-1"}, Parallel: -1}}
		}, []string{"storefront.providers", "did, url and proof", `"us-east-1"`, "parallel = -1"}},
		{"a quorum of nobody", func(c *Config) {
			c.Storefront.Validation = Validation{Mode: "quorum", Agree: 3, Ask: 2, Check: 100, Distrust: Duration(time.Hour)}
		}, []string{"storefront.providers", "agree = 3", "3 of 2 providers"}},
		{"nobody to trust", func(c *Config) { c.Storefront.Validation.Mode = "pdp" }, []string{"storefront.nodes"}},
		{"half a node", func(c *Config) { c.Storefront.Nodes = []Neighbour{{DID: "did:web:node.example"}} }, []string{"storefront.nodes", "did and url"}},
		{"no such mode", func(c *Config) { c.Storefront.Validation = Validation{Mode: "faith", Agree: 1, Ask: 1} },
			[]string{`"faith"`, "check one in 1"}},
		{"several", func(c *Config) {
			c.Aggregator.Sizes = []Size{3}
			c.Storefront.UploadWindow = 0
			c.Storefront.MaxPiece = 100
			c.Dealer.Listen = "nowhere"
			c.Keys = map[string]string{"web": "key"}
			c.Storefront.Allow = []string{"somebody"}
			c.DealTracker.Confidence = "hope"
		}, []string{"aggregator.sizes", "upload_window", "max_piece", "dealer.listen", `"web" is not a DID`, `"somebody"`, "confidence"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := defaultConfig()
			tt.change(&c)
			err := c.validate()
			if err == nil {
				t.Fatal("accepted")
			}
			if code, hint := exitCode(t.Context(), err); code != exitUsage || hint == "" {
				t.Errorf("exit code %d, hint %q", code, hint)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is not said in:\n%v", w, err)
				}
			}
		})
	}
}

func TestConfigRefusesUnknownSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte("[storefront]\nlisten_on = \"x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readConfig(file, nil); err == nil || !strings.Contains(err.Error(), "listen_on") {
		t.Errorf("in the file: %v", err)
	}
	if _, err := readConfig("", []string{"W3FILECOIN_STOREFRONT_LISTEN_ON=x"}); err == nil || !strings.Contains(err.Error(), "LISTEN_ON") {
		t.Errorf("in the environment: %v", err)
	}
	if _, err := readConfig("", []string{"W3FILECOIN_AGGREGATOR_STOREFRONTS=x"}); err == nil {
		t.Error("a setting with parts was read from the environment")
	}
	c := defaultConfig()
	for _, s := range [][2]string{{"storefront_max_piece", "x"}, {"aggregator_budget", "-1h"}, {"devnet_enabled", "perhaps"}, {"dealer_replicas", "many"}} {
		if err := c.set(s[0], s[1]); err == nil {
			t.Errorf("%s = %s was accepted", s[0], s[1])
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{"4MiB": 4 << 20, "32GiB": 32 << 30, "1TiB": 1 << 40, "127": 127, "1 KiB": 1024} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s is %d, %v", text, s, err)
		}
	}
	for _, text := range []string{"", "GiB", "-1", "4MB", "99999999999GiB", "0MiB"} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is a size of %d", text, s)
		}
	}
}

// TestKeysAreKept: a role has the same DID at its second start, and its key is readable by its owner only.
func TestKeysAreKept(t *testing.T) {
	c := defaultConfig()
	c.Data = t.TempDir()
	c.Devnet.Enabled = true
	for _, role := range allRoles {
		c.identity(role).Listen = "127.0.0.1:0"
	}
	c.Devnet.Listen = "127.0.0.1:0"
	var dids [2]string
	for i := range dids {
		n, err := build(c, newApp(nil, nil, os.Stderr).logger(12))
		if err != nil {
			t.Fatal(err)
		}
		dids[i] = n.signers[storefrontRole].DID().String()
		if i == 0 {
			// Nobody else may use the directory meanwhile.
			if _, err := build(c, newApp(nil, nil, os.Stderr).logger(12)); err == nil {
				t.Error("two processes share a data directory")
			}
		}
		if err := n.close(); err != nil {
			t.Fatal(err)
		}
	}
	if dids[0] != dids[1] {
		t.Errorf("the storefront was %s, now it is %s", dids[0], dids[1])
	}
	info, err := os.Stat(filepath.Join(c.Data, "storefront.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key is %v, %v", info.Mode(), err)
	}
}

// TestBucketSettings: credentials that a bucket does not name are the environment's; what cannot work is said at once.
func TestBucketSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte(`
[[storefront.buckets]]
bucket = "one"
endpoint = "https://store.example"
access_key = "own"
secret_key = "own secret"
uploads = true
[[storefront.buckets]]
bucket = "two"
region = "eu-central-1"
keys = ["{car}/{car}.car"]
[dealtracker]
rpc = "http://127.0.0.1:1234"
`), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := readConfig(file, []string{"AWS_ACCESS_KEY_ID=env", "AWS_SECRET_ACCESS_KEY=env secret", "AWS_SESSION_TOKEN=session"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.validate(); err != nil {
		t.Fatal(err)
	}
	one, two := c.Storefront.Buckets[0], c.Storefront.Buckets[1]
	if one.AccessKey != "own" || one.SecretKey != "own secret" || one.SessionToken != "" {
		t.Errorf("bucket one has %+v", one)
	}
	if two.AccessKey != "env" || two.SecretKey != "env secret" || two.SessionToken != "session" {
		t.Errorf("bucket two has %+v", two)
	}
	c.Storefront.Buckets[1].Uploads = true
	c.Storefront.Buckets = append(c.Storefront.Buckets, BucketConfig{Bucket: "three"}, BucketConfig{Bucket: "four", Endpoint: "https://store.example", Keys: []string{"latest"}})
	c.Storefront.Buckets[0].Copy, c.Storefront.Sources = true, []string{"https://gateway.example/latest"}
	err = c.validate()
	for _, want := range []string{"be copied from", "gateway.example/latest", "uploads go to one bucket", "three", "region", "four", `"latest"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not said in: %v", want, err)
		}
	}
}

// TestIngestSettings: credentials are the environment's if none are named, and what cannot work is said at once.
func TestIngestSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte(`
[[storefront.buckets]]
bucket = "one"
region = "eu-central-1"
[dealtracker]
rpc = "http://127.0.0.1:1234"
`), 0o600); err != nil {
		t.Fatal(err)
	}
	queue := "W3FILECOIN_STOREFRONT_INGEST_QUEUE=https://sqs.eu-central-1.amazonaws.com/123456789012/events"
	c, err := readConfig(file, []string{"AWS_ACCESS_KEY_ID=env", "AWS_SECRET_ACCESS_KEY=env secret", queue, "W3FILECOIN_STOREFRONT_INGEST_BUCKETS=one"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.validate(); err != nil {
		t.Fatal(err)
	}
	if i := c.Storefront.Ingest; i.AccessKey != "env" || i.SecretKey != "env secret" || i.Compute != computeLocal || len(i.Buckets) != 1 {
		t.Errorf("ingest: %+v", i)
	}
	c.Storefront.Ingest = IngestConfig{Queue: "arn:aws:sqs:eu-central-1:123456789012:events", Compute: "cloud", Buckets: []string{"two"}, Parallel: -1}
	err = c.validate()
	if err == nil {
		t.Fatal("settings that cannot work are accepted")
	}
	for _, want := range []string{"storefront.ingest.queue:", "storefront.ingest.compute:", "storefront.ingest.buckets: two is not", "storefront.ingest.parallel:"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %s\n%v", want, err)
		}
	}
}
