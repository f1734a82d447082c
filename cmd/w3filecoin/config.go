package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/storacha/w3filecoin/aggregator"
	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/source/s3"
	"github.com/storacha/w3filecoin/standing"
	"github.com/storacha/w3filecoin/storefront"
	"github.com/storacha/w3filecoin/uploads"
	"github.com/storacha/w3filecoin/wire"
)

// Names of the roles, in flags, metrics, logs and files.
const (
	storefrontRole  = "storefront"
	aggregatorRole  = "aggregator"
	dealerRole      = "dealer"
	dealtrackerRole = "dealtracker"
	computeRole     = "compute"
	// devnetName stands among the roles for a process of the devnet.
	devnetName = "devnet"
)

var allRoles = []string{storefrontRole, aggregatorRole, dealerRole, dealtrackerRole, computeRole}

// Config is everything that `serve` can be told: in a TOML file, in the environment (W3FILECOIN_STOREFRONT_LISTEN for storefront.listen), and by
// flags, the later beating the earlier. Roles that run in this process find each other by themselves; those that do not are named by DID, URL and proof.
type Config struct {
	// Data is the directory of all state: a database, keys and blobs per role. Created if it is not there.
	Data string `toml:"data"`
	// Store is where the state is instead: aws://PREFIX?region=REGION&bucket=NAME, uploads too. Many processes may then run the same role. Keys are files
	// that each needs, and are not made by themselves.
	Store string `toml:"store"`
	// Roles run in this process; all if empty. "devnet" among them enables the devnet.
	Roles []string `toml:"roles"`
	// Keys says which did:key stands for DIDs of other methods: "did:web:example.com" = "did:key:z6Mk…".
	Keys map[string]string `toml:"keys"`
	// DIDWeb are the domains whose did:web keys are looked up over HTTPS: "example.com", "*.example.com". Others are unknown.
	DIDWeb []string `toml:"did_web"`
	// Attestors are DIDs of authorities, besides a role itself, whose ucan/attest sessions are honoured.
	Attestors []string `toml:"attestors"`
	// Admin is the address of the admin interface, on loopback: "127.0.0.1:8010". It is off if empty.
	Admin string `toml:"admin"`
	// Drain is how long the process, asked to end, answers requests while it says that it is not ready.
	Drain Duration `toml:"drain"`

	Storefront  StorefrontConfig  `toml:"storefront"`
	Aggregator  AggregatorConfig  `toml:"aggregator"`
	Dealer      DealerConfig      `toml:"dealer"`
	DealTracker DealTrackerConfig `toml:"dealtracker"`
	Compute     ComputeConfig     `toml:"compute"`
	Devnet      DevnetConfig      `toml:"devnet"`
}

// Identity is who a role is and where it is reached.
type Identity struct {
	// Key is the file of the private key (PEM or "Mg…"); {data}/{role}.pem if empty, made at the first start.
	Key string `toml:"key"`
	// DID is a did:web that the key signs for; its did:key if empty.
	DID string `toml:"did"`
	// Listen is the address to listen on, "127.0.0.1:8001".
	Listen string `toml:"listen"`
	// URL is how others reach the role; http://{listen} if empty.
	URL string `toml:"url"`
}

// Neighbour is a role that does not run in this process.
type Neighbour struct {
	DID string `toml:"did"`
	URL string `toml:"url"`
	// Proof is the file of the neighbour's standing delegation to this role, as `w3filecoin delegate` writes it.
	Proof string `toml:"proof"`
}

// Provider is a compute provider that a storefront may ask.
type Provider struct {
	Neighbour
	// Near are the places it is near to: "bucket:NAME", "region:NAME", "host:NAME".
	Near []string `toml:"near"`
	// Parallel is how many contents it is asked about at a time; 8.
	Parallel int `toml:"parallel"`
}

// Registered is a role that may invoke on this one. Receipts are pushed to its URL; without one it has to pull them.
type Registered struct {
	DID  string `toml:"did"`
	URL  string `toml:"url"`
	Lane string `toml:"lane"` // of a storefront at the aggregator; the common one if empty
}

// StorefrontConfig configures the storefront.
type StorefrontConfig struct {
	Identity
	// Group is the group of its pieces at the aggregator; its DID if empty.
	Group string `toml:"group"`
	// Allow lists the resources (spaces, agents) that content may be offered on. Open admits all, and is the default on loopback only.
	Allow []string `toml:"allow"`
	Open  bool     `toml:"open"`
	// MaxPiece is the largest piece in padded bytes ("16GiB"): half the aggregator's largest deal size.
	MaxPiece Size `toml:"max_piece"`
	// Uploads takes content (space/blob/add) from whoever may offer. UploadWindow is how long an upload may begin after it was allocated; 24h.
	Uploads      bool     `toml:"uploads"`
	UploadWindow Duration `toml:"upload_window"`
	// UploadsPrivate says that only the service reaches the bucket of a store on AWS, in which it keeps uploads: it passes the bytes on itself.
	UploadsPrivate bool `toml:"uploads_private"`
	// Fetch brings content into custody from where it is claimed to be.
	Fetch bool `toml:"fetch"`
	// Directories hold content that the operator places there, as files named by content CID.
	Directories []string `toml:"directories"`
	// Buckets hold content too: S3-compatible ones, each with its own store and credentials.
	Buckets []BucketConfig `toml:"buckets"`
	// Ingest follows the events of buckets, and offers what is stored there.
	Ingest IngestConfig `toml:"ingest"`
	// Sources are addresses at which content may lie that is not in custody: "https://gateway.example/{raw}". It is copied from there.
	Sources []string `toml:"sources"`
	// AllowHosts are hosts of sources, and of places where content is claimed to be, in private networks.
	AllowHosts []string `toml:"allow_hosts"`
	// Imports is how many contents are copied at a time; 4.
	Imports int `toml:"imports"`
	// InfoToOfferersOnly restricts filecoin/info to those who offered the piece.
	InfoToOfferersOnly bool `toml:"info_to_offerers_only"`

	ContentRetry Duration `toml:"content_retry"` // first pause before missing content is looked for again; 2s
	// ContentWindow is how long content may take to come before an offer expires; 168h.
	ContentWindow Duration  `toml:"content_window"`
	Pull          Duration  `toml:"pull"` // when receipts that were not pushed are pulled; 30m
	Aggregator    Neighbour `toml:"aggregator"`
	// Compute is the compute provider of this process, or the only one; Providers are further ones.
	Compute   Provider   `toml:"compute"`
	Providers []Provider `toml:"providers"`
	// DealTracker names the provider of a deal in filecoin/info; optional, and without a proof.
	DealTracker Neighbour `toml:"dealtracker"`
	// Claims is a claims service that is told what the storefront claims; optional.
	Claims Neighbour `toml:"claims"`
	// Nodes are storage nodes whose word is taken for the piece of content that they keep, if validation.mode is "pdp".
	Nodes      []Neighbour `toml:"nodes"`
	Validation Validation  `toml:"validation"`
	// Limits bound what is offered, by pieces and their padded sizes, UploadLimits what is uploaded, by blobs and their sizes.
	Limits       Limits     `toml:"limits"`
	UploadLimits Limits     `toml:"upload_limits"`
	Reputation   Reputation `toml:"reputation"`
}

// Validation says whose word a storefront takes for the piece of some content.
type Validation struct {
	// Mode is "recompute", "pdp" (nodes are trusted) or "quorum" (providers are not trusted one by one, compute is their arbiter).
	Mode string `toml:"mode"`
	// Agree is how many providers of a quorum have to agree, of Ask that are asked at most; 2 of 3.
	Agree int `toml:"agree"`
	Ask   int `toml:"ask"`
	// Check: one in so many pieces that are taken on somebody's word is computed all the same; 100.
	Check int `toml:"check"`
	// Distrust is for how long a provider or node that was proven wrong is not asked; 720h.
	Distrust Duration `toml:"distrust"`
}

// Limits bound what a storefront takes in per UTC day: numbers, and sizes together. Zero bounds nothing.
type Limits struct {
	AgentCount uint64 `toml:"agent_count"` // each agent
	AgentSize  Size   `toml:"agent_size"`
	SpaceCount uint64 `toml:"space_count"` // each space, other than an agent's own DID
	SpaceSize  Size   `toml:"space_size"`
	// Newcomers are all agents together that no piece has been validated of yet.
	NewcomersCount uint64 `toml:"newcomers_count"`
	NewcomersSize  Size   `toml:"newcomers_size"`
}

func (l *Limits) limits() standing.Limits {
	return standing.Limits{
		Agent:     standing.Limit{Count: l.AgentCount, Bytes: uint64(l.AgentSize)},
		Space:     standing.Limit{Count: l.SpaceCount, Bytes: uint64(l.SpaceSize)},
		Newcomers: standing.Limit{Count: l.NewcomersCount, Bytes: uint64(l.NewcomersSize)},
	}
}

// Reputation says what follows for those whose offers were proven wrong.
type Reputation struct {
	HalfLife Duration `toml:"half_life"` // in which what was proven wrong counts half; 72h
	// Quarantine and Refuse are how much of it leads to aggregates apart from others, and to refusal; 3 and 10, 0: never.
	Quarantine uint64 `toml:"quarantine"`
	Refuse     uint64 `toml:"refuse"`
}

// BucketConfig is one S3-compatible bucket of content.
type BucketConfig struct {
	Bucket string `toml:"bucket"`
	// Endpoint is the address of the store; AWS if empty. Region is the bucket's; "auto" if there is an endpoint.
	Endpoint string `toml:"endpoint"`
	Region   string `toml:"region"`
	// PathStyle puts the bucket's name into the path of addresses and not into the host.
	PathStyle bool `toml:"path_style"`
	// AccessKey and SecretKey are the credentials, and SessionToken if they are temporary; AWS_ACCESS_KEY_ID,
	// AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN of the environment if empty, and none if those are too.
	AccessKey    string `toml:"access_key"`
	SecretKey    string `toml:"secret_key"`
	SessionToken string `toml:"session_token"`
	// Prefix is put before every key. Keys are templates of them: ["{multihash}"].
	Prefix string   `toml:"prefix"`
	Keys   []string `toml:"keys"`
	// Uploads says that the service stores uploaded content there; in one bucket at most. Without one it does in {data}/uploads, or in the bucket of Store.
	Uploads bool `toml:"uploads"`
	// PublicURL is an address below which everybody can read the objects; addresses are signed if it is empty.
	PublicURL string `toml:"public_url"`
	// Private says that only the service reaches the bucket: it passes the bytes on itself.
	Private bool `toml:"private"`
	// ByKey lets everybody read every object below the prefix, at GET /key/{key}?bucket= of the resolver.
	ByKey bool `toml:"by_key"`
	// Copy says that others write to the bucket: content is copied from it before it is used.
	Copy bool `toml:"copy"`
}

// open returns the bucket as the service uses it.
func (c *BucketConfig) open() (*s3.Bucket, error) {
	return s3.Open(s3.Config{
		Bucket: c.Bucket, Endpoint: c.Endpoint, Region: c.Region, PathStyle: c.PathStyle,
		Credentials: s3.Credentials{AccessKey: c.AccessKey, SecretKey: c.SecretKey, SessionToken: c.SessionToken},
		Prefix:      c.Prefix, Keys: c.Keys, Writable: c.Uploads, PublicURL: c.PublicURL, Private: c.Private,
	})
}

// AggregatorConfig configures the aggregator.
type AggregatorConfig struct {
	Identity
	// Sizes are the deal sizes, ascending: ["32GiB"].
	Sizes []Size `toml:"sizes"`
	// Budget is how long a piece may wait for its aggregate to fill; 24h.
	Budget Duration `toml:"budget"`
	// QuarantineWait is how long a piece that is kept apart from those of others may wait for the volume of an aggregate, until it ends; 336h.
	QuarantineWait Duration     `toml:"quarantine_wait"`
	Pull           Duration     `toml:"pull"`
	Storefronts    []Registered `toml:"storefronts"`
	// AllowHosts are hosts in private networks that pieces may be read from, for the files of aggregates. Those of storefronts that are configured
	// here are added.
	AllowHosts []string  `toml:"allow_hosts"`
	Dealer     Neighbour `toml:"dealer"`
	// StorefrontCount and StorefrontSize bound what each storefront may offer per UTC day: pieces, and their padded sizes together; 0: nothing.
	StorefrontCount uint64     `toml:"storefront_count"`
	StorefrontSize  Size       `toml:"storefront_size"`
	Reputation      Reputation `toml:"reputation"`
}

// DealerConfig configures the dealer.
type DealerConfig struct {
	Identity
	// Sizes are the deal sizes that its brokers take: ["32GiB"].
	Sizes []Size `toml:"sizes"`
	// Poll is the first pause between two questions to the deal tracker about one aggregate, doubling; 1m.
	Poll        Duration     `toml:"poll"`
	Replicas    int          `toml:"replicas"` // active deals with distinct providers that make a success; 1
	Aggregators []Registered `toml:"aggregators"`
	DealTracker Neighbour    `toml:"dealtracker"`
	// Offers is a directory in which offer documents for storage providers are files as well; nowhere but in the store if empty.
	Offers string `toml:"offers"`
}

// DealTrackerConfig configures the deal tracker.
type DealTrackerConfig struct {
	Identity
	// RPC is the address of a Lotus or Forest node, Token its bearer token.
	RPC   string `toml:"rpc"`
	Token string `toml:"token"`
	// Network is "mainnet" or "calibration", or "devnet" for a chain as DevnetConfig describes it, simulated in another process for instance.
	Network string `toml:"network"`
	// Clients are the actor addresses whose deals are wanted; all if empty.
	Clients []string `toml:"clients"`
	Poll    Duration `toml:"poll"` // 30s
	// Confidence is when an active deal counts: "finalized" or "seen".
	Confidence string `toml:"confidence"`
	// Backfill is how many epochs before its first start the tracker looks back; 2880, a day.
	Backfill int64 `toml:"backfill"`
}

// ComputeConfig configures the compute provider.
type ComputeConfig struct {
	Identity
	// Storefronts may ask it, and have results pushed to them.
	Storefronts []Registered `toml:"storefronts"`
	// AllowHosts are hosts in private networks that content may be fetched from. Those of storefronts that are configured here are added.
	AllowHosts []string `toml:"allow_hosts"`
	// Parallel is how many contents are hashed at a time; 2.
	Parallel int `toml:"parallel"`
}

// DevnetConfig runs a SIMULATED chain and a SIMULATED storage provider beside the roles, for trying things out. Nothing is stored on Filecoin.
type DevnetConfig struct {
	Enabled bool     `toml:"enabled"`
	Listen  string   `toml:"listen"` // 127.0.0.1:8009
	Epoch   Duration `toml:"epoch"`  // 200ms
	// Genesis is the time of epoch 0 in Unix seconds. If it is 0 a new chain begins now; a deal tracker in another process has to be told.
	Genesis int64 `toml:"genesis"`
	// Offers is the URL below which the dealer lists its offers, Pieces the URLs of a piece ("http://…/piece/{piece}"), tried in order;
	// those of the dealer and the storefront of this process if empty.
	Offers string   `toml:"offers"`
	Pieces []string `toml:"pieces"`
}

// Size is a number of bytes, written "32GiB", "4MiB" or as plain digits.
type Size uint64

// UnmarshalText reads "32GiB".
func (s *Size) UnmarshalText(text []byte) error {
	t := string(text)
	for suffix, shift := range map[string]uint{"KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40} {
		if digits, ok := strings.CutSuffix(t, suffix); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 64)
			if err != nil || n == 0 || n > 1<<63>>shift {
				return fmt.Errorf("%q is not a size", t)
			}
			*s = Size(n << shift)
			return nil
		}
	}
	n, err := strconv.ParseUint(t, 10, 64)
	if err != nil {
		return fmt.Errorf("%q is not a size: write it like 32GiB", t)
	}
	*s = Size(n)
	return nil
}

// Duration is a time.Duration, written "24h".
type Duration time.Duration

// UnmarshalText reads "24h".
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration: write it like 24h or 30s", text)
	}
	*d = Duration(v)
	return nil
}

// defaultConfig is what an empty file means.
func defaultConfig() Config {
	c := Config{Data: "w3filecoin-data"}
	for i, role := range allRoles {
		c.identity(role).Listen = "127.0.0.1:" + strconv.Itoa(8001+i)
	}
	c.Aggregator.Sizes = []Size{32 << 30}
	c.Dealer.Sizes = []Size{32 << 30}
	c.Storefront.MaxPiece = 16 << 30
	c.Storefront.Validation = Validation{Mode: string(storefront.Recompute), Agree: 2, Ask: 3, Check: 100, Distrust: Duration(30 * 24 * time.Hour)}
	c.Storefront.Reputation = Reputation{HalfLife: Duration(72 * time.Hour), Quarantine: 3, Refuse: 10}
	c.Aggregator.Reputation = c.Storefront.Reputation
	c.Storefront.Uploads = true
	c.Storefront.Fetch = true
	c.Storefront.Ingest.Compute = computeLocal
	c.Storefront.UploadWindow = Duration(uploads.DefaultWindow)
	c.DealTracker.Network = "mainnet"
	c.DealTracker.Confidence = "finalized"
	c.Devnet.Listen = "127.0.0.1:8009"
	c.Devnet.Epoch = Duration(200 * time.Millisecond)
	return c
}

func (c *Config) identity(role string) *Identity {
	switch role {
	case storefrontRole:
		return &c.Storefront.Identity
	case aggregatorRole:
		return &c.Aggregator.Identity
	case dealerRole:
		return &c.Dealer.Identity
	case dealtrackerRole:
		return &c.DealTracker.Identity
	}
	return &c.Compute.Identity
}

// runs reports whether a role runs in this process.
func (c *Config) runs(role string) bool { return len(c.Roles) == 0 || slices.Contains(c.Roles, role) }

// simulates reports whether the devnet runs in this process.
func (c *Config) simulates() bool { return c.Devnet.Enabled || slices.Contains(c.Roles, devnetName) }

// keepsData reports whether this process writes to its data directory.
func (c *Config) keepsData() bool { return c.Store == "" || c.Admin != "" || c.simulates() }

// url is how others reach a role of this process.
func (c *Config) url(role string) string {
	id := c.identity(role)
	if id.URL != "" {
		return strings.TrimSuffix(id.URL, "/")
	}
	return "http://" + id.Listen
}

// readConfig reads the file, if one is named, and the environment.
func readConfig(file string, environ []string) (Config, error) {
	c := defaultConfig()
	if file != "" {
		meta, err := toml.DecodeFile(file, &c)
		if err != nil {
			return c, usage("docs/operations.md describes every setting", "reading configuration: %v", err)
		}
		if unknown := meta.Undecoded(); len(unknown) > 0 {
			return c, usage("docs/operations.md describes every setting", "%s: unknown setting %q", file, unknown[0].String())
		}
		// Paths in a file are meant from where the file is.
		c.Data = beside(file, c.Data)
		for _, p := range c.paths() {
			*p = beside(file, *p)
		}
		for i := range c.Storefront.Providers {
			c.Storefront.Providers[i].Proof = beside(file, c.Storefront.Providers[i].Proof)
		}
		for i := range c.Storefront.Nodes {
			c.Storefront.Nodes[i].Proof = beside(file, c.Storefront.Nodes[i].Proof)
		}
		for i := range c.Storefront.Directories {
			c.Storefront.Directories[i] = beside(file, c.Storefront.Directories[i])
		}
	}
	environment := map[string]string{}
	for _, env := range environ {
		name, value, _ := strings.Cut(env, "=")
		environment[name] = value
		path, ok := strings.CutPrefix(name, "W3FILECOIN_")
		if !ok {
			continue
		}
		if err := c.set(strings.ToLower(path), value); err != nil {
			return c, usage("unset it, or see docs/operations.md for the settings", "environment variable %s: %v", name, err)
		}
	}
	for i := range c.Storefront.Buckets {
		if b := &c.Storefront.Buckets[i]; b.AccessKey == "" && b.SecretKey == "" {
			b.AccessKey, b.SecretKey, b.SessionToken = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"], environment["AWS_SESSION_TOKEN"]
		}
	}
	if i := &c.Storefront.Ingest; i.AccessKey == "" && i.SecretKey == "" {
		i.AccessKey, i.SecretKey, i.SessionToken = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"], environment["AWS_SESSION_TOKEN"]
	}
	return c, nil
}

func (c *Config) paths() []*string {
	paths := []*string{&c.Storefront.Claims.Proof, &c.Storefront.Aggregator.Proof, &c.Storefront.Compute.Proof, &c.Aggregator.Dealer.Proof,
		&c.Dealer.DealTracker.Proof, &c.Dealer.Offers}
	for _, role := range allRoles {
		paths = append(paths, &c.identity(role).Key)
	}
	return paths
}

func beside(file, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(file), path)
}

// set sets one setting by its name with "_" for ".": "storefront_upload_window".
func (c *Config) set(name, value string) error {
	return setField(reflect.ValueOf(c).Elem(), name, value)
}

func setField(v reflect.Value, name, value string) error {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Anonymous {
			if err := setField(v.Field(i), name, value); !errors.Is(err, errNoSetting) {
				return err
			}
			continue
		}
		tag := f.Tag.Get("toml")
		if name == tag {
			return setValue(v.Field(i), value)
		}
		if rest, ok := strings.CutPrefix(name, tag+"_"); ok && v.Field(i).Kind() == reflect.Struct {
			return setField(v.Field(i), rest, value)
		}
	}
	return errNoSetting
}

var errNoSetting = errors.New("there is no such setting")

func setValue(v reflect.Value, value string) error {
	if u, ok := v.Addr().Interface().(interface{ UnmarshalText([]byte) error }); ok {
		return u.UnmarshalText([]byte(value))
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(value)
	case reflect.Bool:
		b, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", value)
		}
		v.SetBool(b)
	case reflect.Uint64:
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not a number", value)
		}
		v.SetUint(n)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not a number", value)
		}
		v.SetInt(n)
	case reflect.Slice:
		list := reflect.MakeSlice(v.Type(), 0, 0)
		for part := range strings.SplitSeq(value, ",") {
			item := reflect.New(v.Type().Elem()).Elem()
			if item.Kind() == reflect.Struct {
				return errors.New("it has parts: set it in the configuration file")
			}
			if err := setValue(item, strings.TrimSpace(part)); err != nil {
				return err
			}
			list = reflect.Append(list, item)
		}
		v.Set(list)
	default:
		return errors.New("it has parts: set it in the configuration file")
	}
	return nil
}

// validate checks the whole configuration and says everything that is wrong with it at once.
func (c *Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Data == "" {
		bad("data: name the directory that holds the state")
	}
	if c.Store != "" {
		if _, err := parseStore(c.Store); err != nil {
			bad("store: %v", err)
		}
	}
	for _, r := range c.Roles {
		if r != devnetName && !slices.Contains(allRoles, r) {
			bad("roles: there is no role %q, only %s, %s", r, strings.Join(allRoles, ", "), devnetName)
		}
	}
	for web, key := range c.Keys {
		for _, d := range []string{web, key} {
			if _, err := wire.ParseDID(d); err != nil {
				bad("keys: %q is not a DID: %v", d, err)
			}
		}
	}
	for _, a := range c.Attestors {
		if _, err := wire.ParseDID(a); err != nil {
			bad("attestors: %q is not a DID: %v", a, err)
		}
	}
	if c.Admin != "" && !loopback(c.Admin) {
		bad("admin: %q is not an address that only this machine reaches, like 127.0.0.1:8010", c.Admin)
	}
	for _, role := range allRoles {
		if !c.runs(role) {
			continue
		}
		id := c.identity(role)
		if _, _, err := net.SplitHostPort(id.Listen); err != nil {
			bad("%s.listen: %q is not an address like 127.0.0.1:8001", role, id.Listen)
		}
		if u, err := url.Parse(c.url(role)); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			bad("%s.url: %q is not an http address", role, id.URL)
		}
		if id.DID != "" {
			if _, err := wire.ParseDID(id.DID); err != nil {
				bad("%s.did: %v", role, err)
			}
		}
	}
	neighbour := func(name, role string, n Neighbour, needsProof bool) {
		switch {
		case c.runs(role):
		case n.DID == "" || n.URL == "":
			bad("%s: the %s does not run in this process, so its did and url are needed", name, role)
		case needsProof && n.Proof == "":
			bad("%s.proof: name the file of its delegation; the %s's operator makes it with `w3filecoin delegate`", name, role)
		}
	}
	if c.runs(storefrontRole) {
		neighbour("storefront.aggregator", aggregatorRole, c.Storefront.Aggregator, true)
		if len(c.Storefront.Providers) == 0 || c.Storefront.Compute.Neighbour != (Neighbour{}) {
			neighbour("storefront.compute", computeRole, c.Storefront.Compute.Neighbour, true)
		}
		for i, p := range c.Storefront.Providers {
			if p.DID == "" || p.URL == "" || p.Proof == "" {
				bad("storefront.providers: number %d needs did, url and proof", i+1)
			}
		}
		for _, p := range append(slices.Clone(c.Storefront.Providers), c.Storefront.Compute) {
			if p.Parallel < 0 {
				bad("storefront.providers: parallel = %d is no number of contents", p.Parallel)
			}
			for _, place := range p.Near {
				if kind, name, _ := strings.Cut(place, ":"); !slices.Contains([]string{"bucket", "region", "host"}, kind) || name == "" {
					bad("storefront.providers: near = %q is none of bucket:NAME, region:NAME, host:NAME", place)
				}
			}
		}
		v := c.Storefront.Validation
		switch mode := storefront.Mode(v.Mode); mode {
		case storefront.Recompute:
		case storefront.Possession:
			if len(c.Storefront.Nodes) == 0 {
				bad("storefront.nodes: list the storage nodes whose word is taken, or set storefront.validation.mode to recompute")
			}
		case storefront.Quorum:
			if len(c.Storefront.Providers) < v.Agree {
				bad("storefront.providers: there are %d, and storefront.validation.agree = %d have to agree", len(c.Storefront.Providers), v.Agree)
			}
			if !c.runs(computeRole) && c.Storefront.Compute.URL == "" {
				bad("storefront.compute: a quorum needs an arbiter, a provider that you trust")
			}
		default:
			bad("storefront.validation.mode: %q is none of recompute, pdp, quorum", v.Mode)
		}
		if v.Agree < 1 || v.Ask < v.Agree || v.Ask > storefront.MaxAsked {
			bad("storefront.validation: %d of %d providers cannot agree: ask at most %d", v.Agree, v.Ask, storefront.MaxAsked)
		}
		if v.Check < 1 || v.Distrust == 0 {
			bad("storefront.validation: check one in %d pieces at least, and distrust for some time", max(1, v.Check))
		}
		for i, node := range c.Storefront.Nodes {
			if node.DID == "" || node.URL == "" {
				bad("storefront.nodes: number %d needs did and url", i+1)
			}
		}
		if len(c.Storefront.Allow) == 0 && !c.Storefront.Open && !loopback(c.Storefront.Listen) {
			bad("storefront.allow: list who may offer content (spaces or agents), or set storefront.open to admit everybody")
		}
		for _, d := range c.Storefront.Allow {
			if _, err := wire.ParseDID(d); err != nil {
				bad("storefront.allow: %q is not a DID: %v", d, err)
			}
		}
		if (c.Storefront.Claims.DID == "") != (c.Storefront.Claims.URL == "") {
			bad("storefront.claims: a claims service elsewhere has both a did and a url")
		}
		if c.Storefront.UploadWindow == 0 {
			bad("storefront.upload_window: an upload needs some time to begin, like 24h")
		}
		takers := 0
		for i := range c.Storefront.Buckets {
			b := &c.Storefront.Buckets[i]
			if _, err := b.open(); err != nil {
				bad("storefront.buckets: %v", err)
			}
			if b.Uploads {
				takers++
			}
			if b.Copy && b.Uploads {
				bad("storefront.buckets: %s cannot be for uploads and be copied from", b.Bucket)
			}
			if b.ByKey && b.Private {
				bad("storefront.buckets: %s cannot be private and open by key", b.Bucket)
			}
		}
		errs = append(errs, c.Storefront.Ingest.check(&c.Storefront)...)
		for _, template := range c.Storefront.Sources {
			if _, err := source.URLOrigin(template, nil); err != nil {
				bad("storefront.sources: %v", err)
			}
		}
		if takers > 1 {
			bad("storefront.buckets: uploads go to one bucket, not to %d", takers)
		}
		if n := uint64(c.Storefront.MaxPiece); n == 0 || n&(n-1) != 0 {
			bad("storefront.max_piece: a padded piece size is a power of two, like 16GiB")
		}
	}
	for _, rep := range []struct {
		role string
		Reputation
	}{{storefrontRole, c.Storefront.Reputation}, {aggregatorRole, c.Aggregator.Reputation}} {
		switch {
		case !c.runs(rep.role):
		case rep.HalfLife == 0:
			bad("%s.reputation.half_life: it needs some time, like 72h", rep.role)
		case rep.Refuse != 0 && rep.Quarantine > rep.Refuse:
			bad("%s.reputation: quarantine comes before refusal, so quarantine = %d is at most refuse = %d", rep.role, rep.Quarantine, rep.Refuse)
		}
	}
	if c.runs(aggregatorRole) {
		neighbour("aggregator.dealer", dealerRole, c.Aggregator.Dealer, true)
		if err := c.ladder().Validate(); err != nil {
			bad("aggregator.sizes: %v", err)
		}
	}
	if c.runs(dealerRole) {
		neighbour("dealer.dealtracker", dealtrackerRole, c.Dealer.DealTracker, false)
		if len(c.Dealer.Sizes) == 0 {
			bad("dealer.sizes: list the deal sizes that brokers take, like [\"32GiB\"]")
		}
	}
	if c.runs(dealtrackerRole) {
		if c.DealTracker.RPC == "" && !c.simulates() {
			bad("dealtracker.rpc: name a Lotus or Forest node, or try things out with --devnet, a simulated chain")
		}
		if s := c.DealTracker.Confidence; s != "finalized" && s != "seen" {
			bad("dealtracker.confidence: %q is neither finalized nor seen", s)
		}
		switch n := c.DealTracker.Network; n {
		case "mainnet", "calibration":
		case devnetName:
			if c.Devnet.Genesis <= 0 && !c.simulates() {
				bad("devnet.genesis: say when epoch 0 of the devnet was, in Unix seconds")
			}
		default:
			bad("dealtracker.network: %q is none of mainnet, calibration, devnet", n)
		}
	}
	if c.simulates() || c.DealTracker.Network == devnetName {
		if c.Devnet.Epoch == 0 {
			bad("devnet.epoch: it needs some time, like 200ms")
		}
		if c.Devnet.Genesis < 0 {
			bad("devnet.genesis: %d is no time in Unix seconds", c.Devnet.Genesis)
		}
	}
	if slices.Contains(c.Roles, devnetName) {
		if c.Devnet.Offers == "" && !c.runs(dealerRole) {
			bad("devnet.offers: the dealer does not run in this process, so its url is needed")
		}
		if len(c.Devnet.Pieces) == 0 && !c.runs(storefrontRole) {
			bad("devnet.pieces: no storefront runs in this process, so say where pieces are, like http://127.0.0.1:8001/piece/{piece}")
		}
	}
	if err := errors.Join(errs...); err != nil {
		return usage("docs/operations.md describes every setting", "the configuration does not work yet:\n%v", err)
	}
	return nil
}

func (c *Config) ladder() aggregator.Ladder {
	var l aggregator.Ladder
	for _, s := range c.Aggregator.Sizes {
		l = append(l, uint64(s))
	}
	return l
}

// loopback reports whether an address is reachable from this machine only.
func loopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// signer reads a role's key, and makes one where the configuration leaves the place of it to us.
func (c *Config) signer(role string, random func() (capabilities.Signer, error)) (capabilities.Signer, error) {
	id := c.identity(role)
	file, ours := id.Key, false
	if file == "" {
		file, ours = filepath.Join(c.Data, keyFile(role)), true
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) && ours && c.Store != "" {
		// Another replica would make another one, and a disk may vanish: the role would become somebody else.
		return capabilities.Signer{}, usage("make one with `w3filecoin key generate`, keep a copy, and name it to every process",
			"%s.key: there is no %s, and with a store that processes share none is made at the first start", role, file)
	}
	if errors.Is(err, os.ErrNotExist) && ours {
		s, err := random()
		if err != nil {
			return s, err
		}
		text = s.PEM()
		if err := writeNew(file, text); err != nil {
			return s, fmt.Errorf("keeping the new key of the %s: %w", role, err)
		}
	} else if err != nil {
		return capabilities.Signer{}, usage("make one with `w3filecoin key generate`", "reading the key of the %s: %v", role, err)
	}
	s, err := wire.ParseSigner(string(text))
	if err != nil {
		return s, usage("it has to be PEM or the multibase form \"Mg…\"", "the key of the %s, %s: %v", role, file, err)
	}
	if id.DID != "" {
		did, err := wire.ParseDID(id.DID)
		if err != nil {
			return s, err
		}
		if s, err = s.WithDID(did); err != nil {
			return s, usage("name a did:web, or leave it out", "%s.did: %v", role, err)
		}
	}
	return s, nil
}

// keyFile is the name of a role's key in a data directory.
func keyFile(role string) string { return role + ".pem" }

// makeKey writes a new key to a file that must not exist.
func makeKey(file string) error {
	s, err := wire.GenerateSigner(rand.Reader)
	if err != nil {
		return err
	}
	return writeNew(file, s.PEM())
}

// writeNew writes a file that must not exist, readable by its owner only, and returns once it is durable.
func writeNew(file string, b []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(file))
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
