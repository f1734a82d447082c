package chain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/dealtracker"
)

// ErrHistory means that the node lacks events of a part of the range that was asked for. Asking the same node again does not
// help until its index is filled; another node may have them.
var ErrHistory = errors.New("node lacks events of this range")

// Network says when the epochs of a network are.
type Network struct {
	Name string
	// Genesis is the time of epoch 0 in Unix seconds.
	Genesis int64
	// Epoch is the time from one epoch to the next, a whole number of milliseconds.
	Epoch time.Duration
	// Finality is the number of epochs after which the network takes a tipset for final, where the node does not say it itself.
	Finality int64
}

// Mainnet is the Filecoin main network.
func Mainnet() Network {
	return Network{Name: "mainnet", Genesis: 1598306400, Epoch: 30 * time.Second, Finality: 900}
}

// Calibration is the public test network.
func Calibration() Network {
	return Network{Name: "calibration", Genesis: 1667326380, Epoch: 30 * time.Second, Finality: 900}
}

// Defaults of [Config].
const (
	DefaultTimeout     = 2 * time.Minute // a range of a busy day takes a node tens of seconds
	DefaultMaxResponse = 64 << 20        // bytes; 10,000 events take about 8 MB
	DefaultMaxRange    = 2880            // epochs, the limit of Lotus and Forest: one day
	DefaultMaxResults  = 10000           // events, the limit of Lotus and Forest
	DefaultLookups     = 4
)

// Config says which node to read and how. URL and Network are required.
type Config struct {
	// URL is the node's address, with or without the path /rpc/v1 at its end: "https://api.node.glif.io".
	URL string
	// Token is sent as a bearer token, if it is not empty.
	Token string
	// Network gives epochs their times.
	Network Network
	// Clients are the actor addresses whose deals are wanted: ids ("f01234") or keys ("f1…", "f3…", "f4…"). Empty means all.
	Clients []string
	// HTTP is the client to use; nil means one of its own. Timeouts are set per call, by Timeout.
	HTTP *http.Client
	// Timeout bounds one call, MaxResponse the bytes of its answer.
	Timeout     time.Duration
	MaxResponse int64
	// MaxRange is the number of epochs that the node answers for at once, MaxResults the number of events.
	MaxRange   int64
	MaxResults int
	// Lookups is how many deals are looked up at the same time.
	Lookups int
	// Log receives an entry for each deal that could not be read; nil means slog.Default.
	Log *slog.Logger
	// Now is the clock, for Retry-After given as a date; nil means time.Now.
	Now func() time.Time
}

// Lotus reads deals from a Lotus or Forest node. It implements dealtracker.Source and is safe for concurrent use.
type Lotus struct {
	cfg  Config
	rpc  rpc
	name string
	log  *slog.Logger
}

var _ dealtracker.Source = (*Lotus)(nil)

// NewLotus returns a source that reads the node of cfg. It does not call the node.
func NewLotus(cfg Config) (*Lotus, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("address of chain node: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("address of chain node %q is not of the form https://host[/path]", u.Redacted())
	}
	n := cfg.Network
	switch {
	case n.Genesis <= 0:
		return nil, errors.New("chain network has no genesis time")
	case n.Epoch < time.Millisecond || n.Epoch%time.Millisecond != 0:
		return nil, fmt.Errorf("chain network has epochs of %s: not a whole number of milliseconds", n.Epoch)
	case n.Finality < 1:
		return nil, errors.New("chain network has no finality")
	case cfg.Timeout < 0 || cfg.MaxResponse < 0 || cfg.MaxRange < 0 || cfg.MaxResults < 0 || cfg.Lookups < 0:
		return nil, errors.New("a limit of the chain node is negative")
	}
	for i, c := range cfg.Clients {
		if _, err := normalise(c); err != nil {
			return nil, fmt.Errorf("client %d: %w", i+1, err)
		}
	}
	cfg.Timeout = orDefault(cfg.Timeout, DefaultTimeout)
	cfg.MaxResponse = orDefault(cfg.MaxResponse, DefaultMaxResponse)
	cfg.MaxRange = orDefault(cfg.MaxRange, DefaultMaxRange)
	cfg.MaxResults = orDefault(cfg.MaxResults, DefaultMaxResults)
	cfg.Lookups = orDefault(cfg.Lookups, DefaultLookups)
	if cfg.HTTP == nil {
		cfg.HTTP = &http.Client{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	base := strings.TrimRight(u.String(), "/")
	base = strings.TrimSuffix(strings.TrimSuffix(base, "/rpc/v1"), "/rpc/v2")
	return &Lotus{
		cfg: cfg,
		rpc: rpc{
			base: base, token: cfg.Token, http: cfg.HTTP, timeout: cfg.Timeout, limit: cfg.MaxResponse, now: cfg.Now,
		},
		name: "lotus " + u.Host,
		log:  cfg.Log.With("node", u.Host),
	}, nil
}

func orDefault[T ~int | ~int64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// Name returns "lotus" and the host of the node.
func (l *Lotus) Name() string { return l.name }

// EpochTime returns the time of an epoch in Unix seconds, rounded down where epochs are shorter than a second.
func (l *Lotus) EpochTime(epoch int64) int64 {
	n := l.cfg.Network
	step := int64(n.Epoch / time.Millisecond)
	// An epoch that a deal names may be any number; one past the end of time is at the end of time.
	if limit := (math.MaxInt64 - n.Genesis*1000) / step; epoch > limit {
		epoch = limit
	} else if epoch < -limit {
		epoch = -limit
	}
	milliseconds := n.Genesis*1000 + epoch*step
	seconds := milliseconds / 1000
	if milliseconds%1000 < 0 {
		seconds--
	}
	return seconds
}

// tipset is what is read of a tipset.
type tipset struct {
	Cids   []cidLink `json:"Cids"`
	Blocks []struct {
		Parents []cidLink `json:"Parents"`
	} `json:"Blocks"`
	Height int64 `json:"Height"`
}

// cidLink is a CID in Lotus's JSON, {"/": "baf…"}. It is checked, and kept as text to be sent back as it came.
type cidLink struct {
	Text string `json:"/"`
}

func (c cidLink) parse() (cid.Cid, error) {
	parsed, err := cid.Decode(c.Text)
	if err != nil {
		return cid.Undef, fmt.Errorf("CID %q: %w", excerpt([]byte(c.Text)), err)
	}
	return parsed, nil
}

func (t *tipset) check() error {
	switch {
	case t.Height < 0:
		return fmt.Errorf("tipset has height %d", t.Height)
	case len(t.Cids) == 0 || len(t.Cids) != len(t.Blocks):
		return fmt.Errorf("tipset at %d names %d blocks and carries %d", t.Height, len(t.Cids), len(t.Blocks))
	}
	return nil
}

func (l *Lotus) tipset(ctx context.Context, version, method string, params ...any) (*tipset, error) {
	var t tipset
	if err := l.rpc.call(ctx, version, method, &t, params...); err != nil {
		return nil, err
	}
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	return &t, nil
}

// Head returns the newest epoch whose events can be read, which is the one before the node's head, and the newest one that can no
// longer change. On a chain that has nothing but its genesis both are below zero.
func (l *Lotus) Head(ctx context.Context) (dealtracker.Head, error) {
	head, err := l.tipset(ctx, "v1", "ChainHead")
	if err != nil {
		return dealtracker.Head{}, fmt.Errorf("reading chain head: %w", err)
	}
	finalized, err := l.finalized(ctx, head.Height)
	if err != nil {
		return dealtracker.Head{}, fmt.Errorf("reading finalized head: %w", err)
	}
	return dealtracker.Head{Epoch: head.Height - 1, Finalized: min(finalized, head.Height-1)}, nil
}

// finalized returns the height of the finalized tipset, by the best means that the node has.
func (l *Lotus) finalized(ctx context.Context, head int64) (int64, error) {
	t, err := l.tipset(ctx, "v2", "ChainGetTipSet", map[string]string{"tag": "finalized"})
	if lacks(err) {
		l.log.DebugContext(ctx, "node has no finalized tipset by API v2", "error", err)
		t, err = l.tipset(ctx, "v1", "ChainGetFinalizedTipSet")
	}
	if lacks(err) {
		l.log.DebugContext(ctx, "node has no finalized tipset by API v1", "error", err)
		return head - l.cfg.Network.Finality, nil
	}
	if err != nil {
		return 0, err
	}
	return t.Height, nil
}

// lacks reports whether the node said that it cannot answer, as opposed to not having answered. Any error of its own counts:
// finality by depth is always right, only later.
func lacks(err error) bool {
	if _, ok := errors.AsType[*RPCError](err); ok {
		return true
	}
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.status >= 400 && e.status < 500 || e.status == http.StatusNotImplemented
	}
	return false
}

// normalise brings an actor address to the form that it has on the main network, where it begins with "f".
func normalise(address string) (string, error) {
	if len(address) < 3 || len(address) > 90 || address[0] != 'f' && address[0] != 't' || address[1] < '0' || address[1] > '4' {
		return "", fmt.Errorf("%q is not an actor address", excerpt([]byte(address)))
	}
	for _, b := range []byte(address[2:]) {
		if b >= '0' && b <= '9' || address[1] != '0' && (b >= 'a' && b <= 'z') {
			continue
		}
		return "", fmt.Errorf("%q is not an actor address", excerpt([]byte(address)))
	}
	if address[1] == '0' {
		if _, err := actorID(address); err != nil {
			return "", err
		}
	}
	return "f" + address[1:], nil
}

// actorID returns the number of an id address, "f01234" or "t01234".
func actorID(address string) (uint64, error) {
	if len(address) > 2 && address[1] == '0' && (address[0] == 'f' || address[0] == 't') {
		if id, err := strconv.ParseUint(address[2:], 10, 63); err == nil {
			return id, nil
		}
	}
	return 0, fmt.Errorf("%q is not an id address", excerpt([]byte(address)))
}
