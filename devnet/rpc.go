package devnet

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

const (
	marketActor = "f05"
	codecCBOR   = 0x51
	maxCall     = 1 << 20 // bytes of a JSON-RPC request
)

// Handler serves POST /rpc/v1 and /rpc/v2 as a Lotus node does: JSON-RPC 2.0, method names with the prefix "Filecoin.", errors of a
// method with HTTP 200, of an unknown method with 500.
func (c *Chain) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /rpc/v1", func(w http.ResponseWriter, r *http.Request) { c.serve(w, r, methodsV1) })
	mux.HandleFunc("POST /rpc/v2", func(w http.ResponseWriter, r *http.Request) { c.serve(w, r, methodsV2) })
	return mux
}

// method answers one call. The lock is held.
type method func(c *Chain, params []json.RawMessage) (any, error)

var (
	methodsV1 = map[string]method{
		"Filecoin.ChainHead":                 (*Chain).chainHead,
		"Filecoin.ChainGetFinalizedTipSet":   (*Chain).chainGetFinalizedTipSet,
		"Filecoin.ChainGetTipSetAfterHeight": (*Chain).chainGetTipSetAfterHeight,
		"Filecoin.ChainGetParentReceipts":    (*Chain).chainGetParentReceipts,
		"Filecoin.GetActorEventsRaw":         (*Chain).getActorEventsRaw,
		"Filecoin.StateMarketStorageDeal":    (*Chain).stateMarketStorageDeal,
		"Filecoin.StateLookupID":             (*Chain).stateLookupID,
	}
	methodsV2 = map[string]method{
		"Filecoin.ChainGetTipSet": (*Chain).chainGetTipSet,
	}
)

type rpcError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

type rpcAnswer struct {
	JSONRPC string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Result  any             `json:"result,omitempty"`
	Error   *rpcError       `json:"error,omitempty"`
}

func (c *Chain) serve(w http.ResponseWriter, r *http.Request, methods map[string]method) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCall))
	if err != nil {
		http.Error(w, "request too large", http.StatusRequestEntityTooLarge)
		return
	}
	c.mu.Lock()
	status, answer := c.answer(body, methods)
	c.mu.Unlock()
	if f, ok := answer.(Failure); ok {
		if f.RetryAfter != 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(f.RetryAfter/time.Second)))
		}
		w.WriteHeader(f.Status)
		fmt.Fprint(w, f.Body)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // the client may be gone
}

// answer answers one request; the answer is an rpcAnswer or a Failure. The lock is held.
func (c *Chain) answer(body []byte, methods map[string]method) (status int, answer any) {
	if len(c.fails) > 0 {
		f := c.fails[0]
		c.fails = c.fails[1:]
		return 0, f
	}
	var call struct {
		ID     json.RawMessage   `json:"id"`
		Method string            `json:"method"`
		Params []json.RawMessage `json:"params"`
	}
	if err := json.Unmarshal(body, &call); err != nil {
		return http.StatusBadRequest, rpcAnswer{JSONRPC: "2.0", Error: &rpcError{-32700, "unmarshaling request: " + err.Error()}}
	}
	m, ok := methods[call.Method]
	if !ok {
		e := &rpcError{-32601, fmt.Sprintf("method '%s' not found", call.Method)}
		return http.StatusInternalServerError, rpcAnswer{JSONRPC: "2.0", ID: call.ID, Error: e}
	}
	result, err := m(c, call.Params)
	if err != nil {
		return http.StatusOK, rpcAnswer{JSONRPC: "2.0", ID: call.ID, Error: &rpcError{1, err.Error()}}
	}
	return http.StatusOK, rpcAnswer{JSONRPC: "2.0", ID: call.ID, Result: result}
}

// param decodes one positional parameter; a missing one is null.
func param(params []json.RawMessage, i int, v any) error {
	if i >= len(params) {
		return nil
	}
	if err := json.Unmarshal(params[i], v); err != nil {
		return fmt.Errorf("unmarshaling params for parameter %d: %w", i, err)
	}
	return nil
}

// seen is the head as the node sees it.
func (c *Chain) seen() int64 { return max(0, c.head()-c.lag) }

func (c *Chain) chainHead([]json.RawMessage) (any, error) { return c.tipset(c.seen()), nil }

func (c *Chain) chainGetFinalizedTipSet([]json.RawMessage) (any, error) {
	return c.tipset(max(0, c.seen()-c.cfg.Finality)), nil
}

func (c *Chain) chainGetTipSet(params []json.RawMessage) (any, error) {
	var selector struct {
		Tag string `json:"tag"`
	}
	if err := param(params, 0, &selector); err != nil {
		return nil, err
	}
	switch selector.Tag {
	case "latest":
		return c.tipset(c.seen()), nil
	case "finalized", "safe":
		return c.tipset(max(0, c.seen()-c.cfg.Finality)), nil
	}
	return nil, fmt.Errorf("validating selector: invalid tag %q", selector.Tag)
}

func (c *Chain) chainGetTipSetAfterHeight(params []json.RawMessage) (any, error) {
	var height int64
	if err := param(params, 0, &height); err != nil {
		return nil, err
	}
	if head := c.seen(); height < 0 || height > head {
		return nil, fmt.Errorf("looking for tipset with height %d greater than start point %d", height, head)
	}
	return c.tipset(height), nil
}

// link is a CID in Lotus's JSON.
type link struct {
	Text string `json:"/"`
}

// tipset returns a tipset of the canonical chain. Each has one block.
func (c *Chain) tipset(epoch int64) any {
	var parents []link
	if epoch > 0 {
		parents = []link{c.id(epoch - 1).link()}
	}
	some := tipsetID{epoch, 0}.link() // stands for roots that nobody reads
	return map[string]any{
		"Cids": []link{c.id(epoch).link()},
		"Blocks": []any{map[string]any{
			"Miner":                 "f01000",
			"Ticket":                map[string]any{"VRFProof": ""},
			"ElectionProof":         map[string]any{"WinCount": 1, "VRFProof": ""},
			"BeaconEntries":         nil,
			"WinPoStProof":          nil,
			"Parents":               parents,
			"ParentWeight":          strconv.FormatInt(epoch, 10),
			"Height":                epoch,
			"ParentStateRoot":       some,
			"ParentMessageReceipts": some,
			"Messages":              some,
			"BLSAggregate":          nil,
			"Timestamp":             c.state.time(epoch),
			"BlockSig":              nil,
			"ForkSignaling":         0,
			"ParentBaseFee":         "100",
		}},
		"Height": epoch,
	}
}

func (c *Chain) chainGetParentReceipts(params []json.RawMessage) (any, error) {
	var block link
	if err := param(params, 0, &block); err != nil {
		return nil, err
	}
	child, err := parseTipset(block.Text)
	if err != nil {
		return nil, err
	}
	if child.epoch > c.seen() {
		return nil, errors.New("blockstore: block not found")
	}
	receipts := []any{}
	if child.epoch > 0 {
		for _, e := range c.eventsOf(c.parent(child)) {
			root := messageID{e.Kind, e.Deal}.link() // the root of the events is as made up as the message
			receipts = append(receipts, map[string]any{"ExitCode": 0, "Return": nil, "GasUsed": 1, "EventsRoot": root})
		}
	}
	return receipts, nil
}

// parent returns the tipset that one was made on. A tipset that was replaced stood on one of the same version, or on one below
// the fork.
func (c *Chain) parent(t tipsetID) tipsetID {
	return tipsetID{t.epoch - 1, min(t.version, c.state.version(t.epoch-1))}
}

func (c *Chain) getActorEventsRaw(params []json.RawMessage) (any, error) {
	var filter struct {
		Addresses []string `json:"addresses"`
		Fields    map[string][]struct {
			Codec uint64 `json:"codec"`
			Value []byte `json:"value"`
		} `json:"fields"`
		FromHeight *int64 `json:"fromHeight"`
		ToHeight   *int64 `json:"toHeight"`
		TipsetKey  []link `json:"tipsetKey"`
	}
	if err := param(params, 0, &filter); err != nil {
		return nil, err
	}
	head := c.seen()
	var found []event
	if len(filter.TipsetKey) > 0 {
		if filter.FromHeight != nil || filter.ToHeight != nil {
			return nil, errors.New("cannot specify both TipSetKey and FromHeight/ToHeight")
		}
		t, err := parseTipset(filter.TipsetKey[0].Text)
		if err != nil {
			return nil, err
		}
		if t.epoch < head && t.epoch >= c.forget {
			found = c.eventsOf(t)
		}
	} else {
		from, to, err := heightRange(filter.FromHeight, filter.ToHeight, head)
		if err != nil {
			return nil, err
		}
		from, to = max(from, c.forget), min(to, head-1) // events of the head are not executed yet
		found = c.events(from, to)
		if c.cfg.ShowReverted {
			for _, e := range c.state.Reverted {
				if e.Epoch >= from && e.Epoch <= to {
					found = append(found, e)
				}
			}
		}
	}
	if len(filter.Addresses) > 0 && !slices.ContainsFunc(filter.Addresses, func(a string) bool { return a == marketActor || a == "t05" }) {
		found = nil
	}
	var answer []any // null when empty, as in Lotus
	for _, e := range found {
		entries, err := e.entries()
		if err != nil {
			return nil, err
		}
		matches := true
		for key, values := range filter.Fields {
			matches = matches && (len(values) == 0 || slices.ContainsFunc(entries, func(entry eventEntry) bool {
				for _, v := range values {
					if entry.Key == key && entry.Codec == v.Codec && bytes.Equal(entry.Value, v.Value) {
						return true
					}
				}
				return false
			}))
		}
		if !matches {
			continue
		}
		answer = append(answer, map[string]any{
			"entries":   entries,
			"emitter":   marketActor,
			"reverted":  e.Reverted,
			"height":    e.Epoch,
			"tipsetKey": []link{tipsetID{e.Epoch, e.Version}.link()},
			"msgCid":    messageID{e.Kind, e.Deal}.link(),
		})
	}
	if len(answer) > maxResults { // the newest are kept
		answer = answer[len(answer)-maxResults:]
	}
	return answer, nil
}

// heightRange applies the rules of Lotus to the range of a query. A missing height is the head.
func heightRange(from, to *int64, head int64) (int64, int64, error) {
	lo, hi := head, head
	if from != nil {
		lo = *from
	}
	if to != nil {
		hi = *to
	}
	switch {
	case lo < 0:
		return 0, 0, errors.New("range 'from' must be greater than or equal to 0")
	case lo > hi:
		return 0, 0, fmt.Errorf("invalid epoch range: 'to' height (%d) must be after 'from' height (%d)", lo, hi)
	case hi-lo > maxRange:
		return 0, 0, fmt.Errorf("invalid epoch range: range between to and 'from' heights is too large (maximum: %d)", maxRange)
	}
	return lo, hi, nil
}

// eventEntry is one entry of an event; 3 means that key and value are indexed.
type eventEntry struct {
	Flags int
	Key   string
	Codec uint64
	Value []byte
}

func (e *event) entries() ([]eventEntry, error) {
	client, err := actorID(e.Client)
	if err != nil {
		return nil, err
	}
	provider, err := actorID(e.Provider)
	if err != nil {
		return nil, err
	}
	entries := []eventEntry{{Key: "$type"}, {Key: "id"}, {Key: "client"}, {Key: "provider"}}
	for i, v := range []any{string(e.Kind), e.Deal, client, provider} {
		entries[i].Flags, entries[i].Codec = 3, codecCBOR
		if entries[i].Value, err = cbor.Marshal(v); err != nil {
			return nil, fmt.Errorf("encoding event: %w", err)
		}
	}
	return entries, nil
}

func (c *Chain) stateMarketStorageDeal(params []json.RawMessage) (any, error) {
	var (
		id  uint64
		key []link
	)
	if err := param(params, 0, &id); err != nil {
		return nil, err
	}
	if err := param(params, 1, &key); err != nil {
		return nil, err
	}
	// The state as of a tipset is the one that its own messages have not changed yet.
	as := c.seen()
	if len(key) > 0 {
		t, err := parseTipset(key[0].Text)
		if err != nil {
			return nil, err
		}
		if t.epoch > as {
			return nil, errors.New("loading tipset: blockstore: block not found")
		}
		as = t.epoch
	}
	i := slices.IndexFunc(c.state.Deals, func(d Deal) bool { return d.ID == id && d.Published < as && !d.gone(as) })
	if i < 0 {
		return nil, fmt.Errorf("deal %d not found - deal may not have completed sealing before deal proposal start epoch, "+
			"or deal may have been slashed", id)
	}
	d := c.state.Deals[i]
	start := int64(never)
	if d.Activated != never && d.Activated < as {
		start = d.Activated
	}
	return map[string]any{
		"Proposal": map[string]any{
			"PieceCID":             link{d.Piece.V1().String()},
			"PieceSize":            d.Piece.PaddedSize(),
			"VerifiedDeal":         false,
			"Client":               d.Client,
			"Provider":             d.Provider,
			"Label":                d.Piece.String(),
			"StartEpoch":           d.StartEpoch,
			"EndEpoch":             d.EndEpoch,
			"StoragePricePerEpoch": "0",
			"ProviderCollateral":   "0",
			"ClientCollateral":     "0",
		},
		"State": map[string]any{
			"SectorNumber":     d.ID,
			"SectorStartEpoch": start,
			"LastUpdatedEpoch": never,
			"SlashEpoch":       never,
		},
	}, nil
}

func (c *Chain) stateLookupID(params []json.RawMessage) (any, error) {
	var address string
	if err := param(params, 0, &address); err != nil {
		return nil, err
	}
	if _, err := actorID(address); err != nil {
		return nil, fmt.Errorf("resolution lookup failed (%s): resolve address %s: actor not found", address, address)
	}
	return address, nil
}

// actorID returns the number of an id address, "f01000".
func actorID(address string) (uint64, error) {
	if len(address) > 2 && address[:2] == "f0" {
		if id, err := strconv.ParseUint(address[2:], 10, 63); err == nil {
			return id, nil
		}
	}
	return 0, fmt.Errorf("%q is not an id address (f0…)", address)
}

// The CIDs of simulated tipsets and messages hash nothing. Where a digest would be they hold what they name, so that the node needs
// no memory to understand them.

// tipsetID names a tipset: its epoch, and how often the tipset of that epoch had been replaced before.
type tipsetID struct {
	epoch, version int64
}

// messageID names the message that causes an event.
type messageID struct {
	kind eventKind
	deal uint64
}

func (c *Chain) id(epoch int64) tipsetID { return tipsetID{epoch, c.state.version(epoch)} }

func (t tipsetID) link() link { return madeUp("devnet tipset", uint64(t.epoch), uint64(t.version)) }

func (m messageID) link() link {
	return madeUp("devnet msg", uint64(slices.Index(eventKinds, m.kind)), m.deal)
}

func madeUp(what string, a, b uint64) link {
	digest := make([]byte, 32)
	copy(digest, what)
	binary.BigEndian.PutUint64(digest[16:], a)
	binary.BigEndian.PutUint64(digest[24:], b)
	mh, err := multihash.Encode(digest, multihash.BLAKE2B_MIN+31)
	if err != nil {
		panic(fmt.Sprintf("devnet: encoding a digest of 32 bytes: %v", err)) // the code is a constant
	}
	return link{cid.NewCidV1(cid.DagCBOR, mh).String()}
}

func parseTipset(text string) (tipsetID, error) {
	decoded, err := cid.Decode(text)
	if err != nil {
		return tipsetID{}, fmt.Errorf("unmarshaling CID %q: %w", excerpt([]byte(text)), err)
	}
	mh, err := multihash.Decode(decoded.Hash())
	if err != nil || len(mh.Digest) != 32 {
		return tipsetID{}, errors.New("loading tipset: blockstore: block not found")
	}
	t := tipsetID{
		epoch:   int64(binary.BigEndian.Uint64(mh.Digest[16:]) & (1<<63 - 1)),
		version: int64(binary.BigEndian.Uint64(mh.Digest[24:]) & (1<<63 - 1)),
	}
	if t.link().Text != decoded.String() {
		return tipsetID{}, errors.New("loading tipset: blockstore: block not found")
	}
	return t, nil
}
