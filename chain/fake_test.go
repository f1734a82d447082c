package chain

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/piece"
)

// fakeEvent is an event that the fake node has, on its chain and, unless hidden, in its index.
type fakeEvent struct {
	kind             string
	deal             uint64
	client, provider uint64
	epoch            int64
	reverted         bool   // abandoned: listed, but not on the chain
	raw              string // instead of all that
	hidden           bool   // the index lacks it
}

// fakeNode is a node that may misbehave in every way that a test wants. It writes its answers by hand, in the documented shapes.
type fakeNode struct {
	t testing.TB

	mu         sync.Mutex
	head       int64
	null       map[int64]bool // epochs without a tipset
	events     []fakeEvent
	deals      map[uint64]string // answer of StateMarketStorageDeal
	dealErrors map[uint64]string // its error instead
	past       map[uint64]int64  // deals found only as of the tipset of this epoch
	addresses  map[string]string
	maxResults int
	absent     map[string]bool // methods, by "v2/ChainGetTipSet", that the node does not have
	finalized  int64
	// intercept, if it returns true, has answered the call.
	intercept func(method string, w http.ResponseWriter) bool
	calls     map[string]int
	tokens    map[string]bool
}

func newFakeNode(t testing.TB) *fakeNode {
	return &fakeNode{
		t: t, head: 5000, finalized: 4900, null: map[int64]bool{}, deals: map[uint64]string{}, dealErrors: map[uint64]string{},
		past: map[uint64]int64{}, addresses: map[string]string{}, maxResults: DefaultMaxResults, absent: map[string]bool{},
		calls: map[string]int{}, tokens: map[string]bool{},
	}
}

// open returns a source that reads the node, and what it logs.
func (n *fakeNode) open(change func(*Config)) (*Lotus, *lockedBuffer) {
	n.t.Helper()
	server := httptest.NewServer(n)
	n.t.Cleanup(server.Close)
	logged := &lockedBuffer{}
	cfg := Config{URL: server.URL, Network: Mainnet(), Timeout: 10 * time.Second, Log: slog.New(slog.NewTextHandler(logged, nil))}
	if change != nil {
		change(&cfg)
	}
	l, err := NewLotus(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	return l, logged
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func fakeCID(format string, args ...any) string {
	mh, err := multihash.Sum(fmt.Appendf(nil, format, args...), multihash.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.DagCBOR, mh).String()
}

func fakePiece(n uint64) piece.Link {
	root := piece.Node{1, byte(n), byte(n >> 8)}
	l, err := piece.FromRootAndHeight(root, 30, 0)
	if err != nil {
		panic(err)
	}
	return l
}

// addDeal gives the node a deal in its state.
func (n *fakeNode) addDeal(id, client, provider uint64) {
	n.deals[id] = fmt.Sprintf(`{"Proposal":{"PieceCID":{"/":%q},"PieceSize":34359738368,"VerifiedDeal":true,"Client":"f0%d",`+
		`"Provider":"f0%d","Label":"","StartEpoch":9000,"EndEpoch":600000,"StoragePricePerEpoch":"0","ProviderCollateral":"1",`+
		`"ClientCollateral":"0"},"State":{"SectorNumber":0,"SectorStartEpoch":-1,"LastUpdatedEpoch":-1,"SlashEpoch":-1}}`,
		fakePiece(id).V1(), client, provider)
}

func (n *fakeNode) add(kind string, deal uint64, epoch int64) {
	n.events = append(n.events, fakeEvent{kind: kind, deal: deal, client: 100, provider: 200, epoch: epoch})
}

func (n *fakeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		n.t.Errorf("reading request: %v", err)
		return
	}
	var call struct {
		JSONRPC string            `json:"jsonrpc"`
		ID      json.RawMessage   `json:"id"`
		Method  string            `json:"method"`
		Params  []json.RawMessage `json:"params"`
	}
	if err := json.Unmarshal(body, &call); err != nil || call.JSONRPC != "2.0" || r.Method != http.MethodPost || call.Params == nil {
		n.t.Errorf("%s %s %s is no JSON-RPC call: %v", r.Method, r.URL, body, err)
		return
	}
	method := strings.TrimPrefix(call.Method, "Filecoin.")
	version := strings.TrimPrefix(r.URL.Path, "/rpc/")
	n.calls[method]++
	n.tokens[r.Header.Get("Authorization")] = true
	if n.intercept != nil && n.intercept(method, w) {
		return
	}
	if n.absent[version+"/"+method] {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"method '%s' not found"}}`, call.ID, call.Method)
		return
	}
	result, failure := n.answer(version+"/"+method, call.Params)
	if failure != "" {
		message, _ := json.Marshal(failure)
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":1,"message":%s}}`, call.ID, message)
		return
	}
	fmt.Fprintf(w, `{"jsonrpc":"2.0","result":%s,"id":%s}`, result, call.ID)
}

// answer returns the JSON of a result, or the text of an error.
func (n *fakeNode) answer(method string, params []json.RawMessage) (result, failure string) {
	arg := func(i int, v any) {
		if i >= len(params) {
			n.t.Errorf("%s: parameter %d is missing", method, i)
		} else if err := json.Unmarshal(params[i], v); err != nil {
			n.t.Errorf("%s: parameter %d is %s: %v", method, i, params[i], err)
		}
	}
	switch method {
	case "v1/ChainHead":
		return n.tipset(n.head), ""
	case "v1/ChainGetFinalizedTipSet":
		return n.tipset(n.finalized), ""
	case "v2/ChainGetTipSet":
		if string(params[0]) != `{"tag":"finalized"}` {
			n.t.Errorf("ChainGetTipSet(%s)", params[0])
		}
		return n.tipset(n.finalized), ""
	case "v1/ChainGetTipSetAfterHeight":
		var height int64
		arg(0, &height)
		for ; height <= n.head; height++ {
			if !n.null[height] {
				return n.tipset(height), ""
			}
		}
		return "", "looking for tipset with height greater than start point"
	case "v1/ChainGetParentReceipts":
		var block struct {
			CID string `json:"/"`
		}
		arg(0, &block)
		for epoch := range n.head + 1 {
			if fakeCID("block %d", epoch) == block.CID {
				return n.receipts(n.before(epoch)), ""
			}
		}
		return "", "blockstore: block not found"
	case "v1/GetActorEventsRaw":
		return n.listEvents(params)
	case "v1/StateMarketStorageDeal":
		var id uint64
		var key []cidLink
		arg(0, &id)
		arg(1, &key)
		if text, ok := n.dealErrors[id]; ok {
			return "", text
		}
		epoch, past := n.past[id]
		if deal, ok := n.deals[id]; ok && (!past || len(key) > 0 && key[0].Text == fakeCID("block %d", epoch)) {
			return deal, ""
		}
		return "", fmt.Sprintf("deal %d not found - deal may not have completed sealing before deal proposal start epoch, "+
			"or deal may have been slashed", id)
	case "v1/StateLookupID":
		var address string
		arg(0, &address)
		if id, ok := n.addresses[address]; ok {
			return `"` + id + `"`, ""
		}
		return "", "resolution lookup failed (" + address + "): resolve address " + address + ": actor not found"
	}
	n.t.Errorf("unexpected call of %s", method)
	return "", "unexpected"
}

// before returns the last epoch before one that has a tipset.
func (n *fakeNode) before(epoch int64) int64 {
	for epoch--; n.null[epoch]; epoch-- {
	}
	return epoch
}

func (n *fakeNode) tipset(epoch int64) string {
	for n.null[epoch] {
		epoch--
	}
	parents := "null"
	if epoch > 0 {
		parents = fmt.Sprintf(`[{"/":%q}]`, fakeCID("block %d", n.before(epoch)))
	}
	return fmt.Sprintf(`{"Cids":[{"/":%q}],"Blocks":[{"Miner":"f01","Parents":%s,"Height":%d}],"Height":%d}`,
		fakeCID("block %d", epoch), parents, epoch, epoch)
}

func (n *fakeNode) receipts(epoch int64) string {
	receipts := []string{`{"ExitCode":0,"Return":null,"GasUsed":5,"EventsRoot":null}`}
	for _, e := range n.events {
		if e.epoch == epoch && !e.reverted {
			receipts = append(receipts, fmt.Sprintf(`{"ExitCode":0,"Return":"gAA=","GasUsed":9,"EventsRoot":{"/":%q}}`, fakeCID("events")))
		}
	}
	return "[" + strings.Join(receipts, ",") + "]"
}

// encodeUint encodes a number in CBOR with four bytes, encodeText a short text.
func encodeUint(v uint64) string {
	if v < 24 {
		return base64.StdEncoding.EncodeToString([]byte{byte(v)})
	}
	if v < 256 {
		return base64.StdEncoding.EncodeToString([]byte{0x18, byte(v)})
	}
	if v < 65536 {
		return base64.StdEncoding.EncodeToString([]byte{0x19, byte(v >> 8), byte(v)})
	}
	return base64.StdEncoding.EncodeToString([]byte{0x1a, byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func encodeText(s string) string {
	return base64.StdEncoding.EncodeToString(append([]byte{0x60 | byte(len(s))}, s...))
}

func (e *fakeEvent) json() string {
	if e.raw != "" {
		return e.raw
	}
	entry := func(key, value string) string {
		return fmt.Sprintf(`{"Flags":3,"Key":%q,"Codec":81,"Value":%q}`, key, value)
	}
	block := "block"
	if e.reverted {
		block = "abandoned"
	}
	return fmt.Sprintf(`{"entries":[%s,%s,%s,%s],"emitter":"f05","reverted":%t,"height":%d,"tipsetKey":[{"/":%q}],"msgCid":{"/":%q}}`,
		entry("$type", encodeText(e.kind)), entry("id", encodeUint(e.deal)), entry("client", encodeUint(e.client)),
		entry("provider", encodeUint(e.provider)), e.reverted, e.epoch, fakeCID(block+" %d", e.epoch), fakeCID("message %s %d", e.kind, e.deal))
}

// id is what the source calls an event.
func (e *fakeEvent) id() string {
	return fmt.Sprintf("%s/%s/%d", fakeCID("message %s %d", e.kind, e.deal), e.kind, e.deal)
}

func (n *fakeNode) listEvents(params []json.RawMessage) (result, failure string) {
	var f eventFilter
	decoder := json.NewDecoder(bytes.NewReader(params[0]))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&f); err != nil {
		n.t.Errorf("GetActorEventsRaw(%s): %v", params[0], err)
	}
	if (f.FromHeight == nil) != (f.ToHeight == nil) || (f.FromHeight == nil) == (f.TipsetKey == nil) {
		n.t.Errorf("GetActorEventsRaw(%s) has no proper range", params[0])
		return "", "bad range"
	}
	if f.FromHeight != nil && *f.ToHeight-*f.FromHeight > 2880 {
		return "", "invalid epoch range: range between to and 'from' heights is too large (maximum: 2880)"
	}
	var found []string
	for _, e := range n.events {
		if e.hidden || e.epoch >= n.head {
			continue
		}
		if f.TipsetKey != nil && (e.reverted || fakeCID("block %d", e.epoch) != f.TipsetKey[0].Text) {
			continue
		}
		if f.FromHeight != nil && (e.epoch < *f.FromHeight || e.epoch > *f.ToHeight) {
			continue
		}
		asked := func(key, value string) bool {
			values, ok := f.Fields[key]
			return !ok || slices.ContainsFunc(values, func(b eventBlock) bool {
				return b.Codec == 81 && base64.StdEncoding.EncodeToString(b.Value) == value
			})
		}
		if e.raw == "" && !(asked("$type", encodeText(e.kind)) && asked("client", encodeUint(e.client))) {
			continue
		}
		found = append(found, e.json())
	}
	if len(found) > n.maxResults {
		found = found[len(found)-n.maxResults:] // the oldest are dropped in silence
	}
	if len(found) == 0 {
		return "null", ""
	}
	return "[" + strings.Join(found, ",") + "]", ""
}
