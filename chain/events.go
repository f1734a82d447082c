package chain

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sync/errgroup"

	"github.com/storacha/w3filecoin/dealtracker"
	"github.com/storacha/w3filecoin/piece"
)

const (
	// marketActor is the storage market.
	marketActor = "f05"

	// codecCBOR is the multicodec of the values in the events of built-in actors.
	codecCBOR = 0x51

	// majorUint and majorText are the types of CBOR that those values have.
	majorUint byte = 0
	majorText byte = 3

	// witnesses is how many tipsets with events are looked for, from the edge of a range on, to compare with the index. Nearly
	// every tipset of a public network has some; a quiet private chain may have none for long.
	witnesses = 10

	// unusedDeal is an id that no deal has: asking for it shows whether the market's state can be read at all.
	unusedDeal = 1 << 40
)

// kinds in the order in which they happen to a deal.
var kinds = []dealtracker.EventKind{dealtracker.Published, dealtracker.Activated, dealtracker.Terminated, dealtracker.Completed}

// actorEvent is one event in the answer of GetActorEventsRaw.
type actorEvent struct {
	Entries []struct {
		Key   string `json:"Key"`
		Codec uint64 `json:"Codec"`
		Value []byte `json:"Value"`
	} `json:"entries"`
	Emitter   string          `json:"emitter"`
	Reverted  bool            `json:"reverted"`
	Height    int64           `json:"height"`
	TipsetKey json.RawMessage `json:"tipsetKey"`
	MsgCid    cidLink         `json:"msgCid"`
}

// eventBlock is a value that a filter asks for: an encoded value and its codec.
type eventBlock struct {
	Codec uint64 `json:"codec"`
	Value []byte `json:"value"`
}

// eventFilter is the argument of GetActorEventsRaw. Values of one field are alternatives, fields are joined by and.
type eventFilter struct {
	Addresses  []string                `json:"addresses,omitempty"`
	Fields     map[string][]eventBlock `json:"fields,omitempty"`
	FromHeight *int64                  `json:"fromHeight,omitempty"`
	ToHeight   *int64                  `json:"toHeight,omitempty"`
	TipsetKey  []cidLink               `json:"tipsetKey,omitempty"`
}

// marketEvent is a decoded event of the market actor.
type marketEvent struct {
	id       string
	kind     dealtracker.EventKind
	deal     uint64
	client   string // id address, empty if the event does not say
	provider string
	epoch    int64
	reverted bool
	tipset   []cidLink
}

// marketDeal is what is read of the answer of StateMarketStorageDeal.
type marketDeal struct {
	Proposal struct {
		PieceCID     cidLink `json:"PieceCID"`
		PieceSize    uint64  `json:"PieceSize"`
		VerifiedDeal bool    `json:"VerifiedDeal"`
		Client       string  `json:"Client"`
		Provider     string  `json:"Provider"`
		StartEpoch   int64   `json:"StartEpoch"`
		EndEpoch     int64   `json:"EndEpoch"`
	} `json:"Proposal"`
}

// Events returns what happened to deals in the epochs from..to, both included, in order of epoch.
//
// The id of an event is the CID of its message, its kind and its deal, "bafy…/deal-published/123": one message does one thing to a
// deal once, and unlike a position in an answer these do not depend on what was asked.
//
// A deal that has vanished from the market's state, because it was terminated or completed or never activated, is looked up as of
// the tipset of its event. Where the node does not have that state any more, events that end a deal or take something back are
// returned with the deal's id, client and provider only (Piece is then undefined), since the end of a deal must not be lost; the
// others are skipped with an entry in the log.
//
// Errors are [*BusyError] when the node asks for patience, [ErrHistory] when it lacks a part of the range, and others, all of
// which mean that the range has to be read again.
func (l *Lotus) Events(ctx context.Context, from, to int64) ([]dealtracker.Event, error) {
	from = max(from, 0)
	if from > to {
		return nil, nil
	}
	found, err := l.marketEvents(ctx, from, to)
	if err != nil {
		return nil, fmt.Errorf("reading deal events of epochs %d to %d: %w", from, to, err)
	}
	events, err := l.withProposals(ctx, found)
	if err != nil {
		return nil, fmt.Errorf("reading deals of epochs %d to %d: %w", from, to, err)
	}
	return events, nil
}

// marketEvents reads the events of a range, checked for completeness, in order, each once.
func (l *Lotus) marketEvents(ctx context.Context, from, to int64) ([]marketEvent, error) {
	head, err := l.tipset(ctx, "v1", "ChainHead")
	if err != nil {
		return nil, err
	}
	if to >= head.Height {
		return nil, fmt.Errorf("node is at epoch %d: events up to %d are not made yet", head.Height, to)
	}
	filter, err := l.filter(ctx)
	if err != nil {
		return nil, err
	}
	if len(l.cfg.Clients) > 0 && len(filter.Fields["client"]) == 0 {
		return nil, nil // none of them has ever been on chain
	}
	var found []marketEvent
	for start := from; ; {
		end := to
		if to-start >= l.cfg.MaxRange {
			end = start + l.cfg.MaxRange - 1
		}
		if err := l.checkStart(ctx, start, head.Height); err != nil {
			return nil, err
		}
		part, err := l.readRange(ctx, filter, start, end)
		if err != nil {
			return nil, err
		}
		found = append(found, part...)
		if end == to {
			break
		}
		start = end + 1
	}
	if err := l.checkEnd(ctx, to, head.Height); err != nil {
		return nil, err
	}
	return inOrder(found), nil
}

// filter returns the filter for the deals of the configured clients, without a range.
func (l *Lotus) filter(ctx context.Context) (eventFilter, error) {
	f := eventFilter{Addresses: []string{marketActor}, Fields: map[string][]eventBlock{}}
	for _, kind := range kinds {
		block, err := encodeBlock(string(kind))
		if err != nil {
			return f, err
		}
		f.Fields["$type"] = append(f.Fields["$type"], block)
	}
	for _, client := range l.cfg.Clients {
		id, err := actorID(client)
		if err != nil {
			id, err = l.lookupID(ctx, client)
		}
		if rpcErr, ok := errors.AsType[*RPCError](err); ok && strings.Contains(rpcErr.Message, "not found") {
			l.log.InfoContext(ctx, "client is not on chain yet", "client", client)
			continue
		}
		if err != nil {
			return f, err
		}
		block, err := encodeBlock(id)
		if err != nil {
			return f, err
		}
		f.Fields["client"] = append(f.Fields["client"], block)
	}
	return f, nil
}

func encodeBlock(value any) (eventBlock, error) {
	encoded, err := cbor.Marshal(value)
	if err != nil {
		return eventBlock{}, fmt.Errorf("encoding filter value: %w", err)
	}
	return eventBlock{Codec: codecCBOR, Value: encoded}, nil
}

func (l *Lotus) lookupID(ctx context.Context, address string) (uint64, error) {
	var id string
	if err := l.rpc.call(ctx, "v1", "StateLookupID", &id, address, nil); err != nil {
		return 0, err
	}
	return actorID(id)
}

// rawEvents calls GetActorEventsRaw. No events is null or [].
func (l *Lotus) rawEvents(ctx context.Context, filter eventFilter) ([]json.RawMessage, error) {
	var raw []json.RawMessage
	err := l.rpc.call(ctx, "v1", "GetActorEventsRaw", &raw, filter)
	return raw, err
}

// readRange reads a range that is within the node's limit on epochs. When the answer may have been cut off at the limit on
// results it reads the range in halves; Lotus then leaves out the oldest events, without a word.
func (l *Lotus) readRange(ctx context.Context, filter eventFilter, from, to int64) ([]marketEvent, error) {
	filter.FromHeight, filter.ToHeight = &from, &to
	raw, err := l.rawEvents(ctx, filter)
	if err != nil {
		return nil, err
	}
	if len(raw) >= l.cfg.MaxResults {
		if from == to {
			return nil, fmt.Errorf("epoch %d has at least %d events, the most that the node returns", from, len(raw))
		}
		middle := from + (to-from)/2
		first, err := l.readRange(ctx, filter, from, middle)
		if err != nil {
			return nil, err
		}
		second, err := l.readRange(ctx, filter, middle+1, to)
		return append(first, second...), err
	}
	events := make([]marketEvent, 0, len(raw))
	for _, r := range raw {
		e, err := decodeEvent(r)
		if err != nil {
			l.log.WarnContext(ctx, "skipping event that cannot be read", "from", from, "to", to, "event", excerpt(r), "error", err)
			continue
		}
		// A node that does not know the fields of the range returns what it likes: some epoch that it takes for the default.
		if e.epoch < from || e.epoch > to {
			return nil, fmt.Errorf("node answered for epochs %d to %d with an event of epoch %d", from, to, e.epoch)
		}
		events = append(events, e)
	}
	return events, nil
}

// decodeEvent decodes one event of the market actor.
func decodeEvent(raw []byte) (marketEvent, error) {
	var a actorEvent
	if err := json.Unmarshal(raw, &a); err != nil {
		return marketEvent{}, fmt.Errorf("decoding event: %w", err)
	}
	if emitter, err := normalise(a.Emitter); err != nil || emitter != marketActor {
		return marketEvent{}, fmt.Errorf("event of actor %q, not of the market", excerpt([]byte(a.Emitter)))
	}
	message, err := a.MsgCid.parse()
	if err != nil {
		return marketEvent{}, fmt.Errorf("message of event: %w", err)
	}
	e := marketEvent{epoch: a.Height, reverted: a.Reverted}
	var client, provider uint64
	seen := map[string]bool{}
	for _, entry := range a.Entries {
		var into any
		major := majorUint
		switch entry.Key {
		case "$type":
			into, major = (*string)(&e.kind), majorText
		case "id":
			into = &e.deal
		case "client":
			into = &client
		case "provider":
			into = &provider
		default:
			continue // a later version of the actor may say more
		}
		if entry.Codec != codecCBOR || seen[entry.Key] {
			return marketEvent{}, fmt.Errorf("entry %q is repeated or has codec %d", entry.Key, entry.Codec)
		}
		seen[entry.Key] = true
		// The decoder takes null for zero and a tag for what it wraps; the actor writes neither.
		if len(entry.Value) == 0 || entry.Value[0]>>5 != major {
			return marketEvent{}, fmt.Errorf("entry %q has the wrong type", entry.Key)
		}
		if err := cbor.Unmarshal(entry.Value, into); err != nil {
			return marketEvent{}, fmt.Errorf("decoding entry %q: %w", entry.Key, err)
		}
	}
	switch {
	case !slices.Contains(kinds, e.kind):
		return marketEvent{}, fmt.Errorf("event of type %q", excerpt([]byte(e.kind)))
	case !seen["id"] || e.deal > math.MaxInt64:
		return marketEvent{}, errors.New("event names no deal")
	case e.epoch < 0:
		return marketEvent{}, fmt.Errorf("event of epoch %d", e.epoch)
	}
	if seen["client"] {
		e.client = "f0" + strconv.FormatUint(client, 10)
	}
	if seen["provider"] {
		e.provider = "f0" + strconv.FormatUint(provider, 10)
	}
	// The tipset only serves to look up a deal that has vanished. Old nodes write its key as a single CID.
	if json.Unmarshal(a.TipsetKey, &e.tipset) != nil {
		e.tipset = nil
	}
	e.id = message.String() + "/" + string(e.kind) + "/" + strconv.FormatUint(e.deal, 10)
	return e, nil
}

// inOrder sorts events by epoch, in an epoch by what happens first, and keeps each once. Of an event that is listed as reverted
// and as standing, the standing one is kept, for its message was included again.
func inOrder(events []marketEvent) []marketEvent {
	byID := make(map[string]int, len(events))
	kept := events[:0:0]
	for _, e := range events {
		i, ok := byID[e.id]
		switch {
		case !ok:
			byID[e.id] = len(kept)
			kept = append(kept, e)
		case kept[i].reverted && !e.reverted, kept[i].reverted == e.reverted && e.epoch > kept[i].epoch:
			kept[i] = e
		}
	}
	slices.SortFunc(kept, func(a, b marketEvent) int {
		return cmp.Or(
			cmp.Compare(a.epoch, b.epoch),
			cmp.Compare(slices.Index(kinds, a.kind), slices.Index(kinds, b.kind)),
			cmp.Compare(a.deal, b.deal),
			cmp.Compare(a.id, b.id))
	})
	return kept
}

// checkStart compares the index with the chain from the first tipset of a range on, until a tipset with events has been found.
func (l *Lotus) checkStart(ctx context.Context, from, head int64) error {
	t, err := l.tipset(ctx, "v1", "ChainGetTipSetAfterHeight", from, nil)
	if err != nil {
		return err
	}
	for range witnesses {
		if t.Height >= head {
			return nil // the chain has nothing to compare with
		}
		next, err := l.tipset(ctx, "v1", "ChainGetTipSetAfterHeight", t.Height+1, nil)
		if err != nil {
			return err
		}
		if !slices.Equal(next.Blocks[0].Parents, t.Cids) {
			return fmt.Errorf("chain was reorganised at epoch %d while it was read", t.Height)
		}
		if found, err := l.compare(ctx, next); found || err != nil {
			return err
		}
		t = next
	}
	return nil
}

// checkEnd compares the index with the chain at the last tipset of a range, which an index that lags behind does not have.
func (l *Lotus) checkEnd(ctx context.Context, to, head int64) error {
	if to+1 > head {
		return nil
	}
	next, err := l.tipset(ctx, "v1", "ChainGetTipSetAfterHeight", to+1, nil)
	if err != nil {
		return err
	}
	_, err = l.compare(ctx, next)
	return err
}

// compare compares the index with the receipts of the tipset before next, which next holds. It reports whether there were events
// to compare with.
func (l *Lotus) compare(ctx context.Context, next *tipset) (found bool, err error) {
	key := next.Blocks[0].Parents
	if len(key) == 0 {
		return false, nil // next is the genesis
	}
	indexed, err := l.rawEvents(ctx, eventFilter{TipsetKey: key})
	if err != nil || len(indexed) > 0 {
		return true, err
	}
	var receipts []struct {
		EventsRoot *cidLink `json:"EventsRoot"`
	}
	if err := l.rpc.call(ctx, "v1", "ChainGetParentReceipts", &receipts, next.Cids[0]); err != nil {
		return false, err
	}
	for _, r := range receipts {
		if r.EventsRoot != nil {
			return true, fmt.Errorf("tipset %s before epoch %d has events that the node's index has not: %w",
				key[0].Text, next.Height, ErrHistory)
		}
	}
	return false, nil
}

// withProposals looks up the deals of the events, each once, and puts them together.
func (l *Lotus) withProposals(ctx context.Context, found []marketEvent) ([]dealtracker.Event, error) {
	byDeal := map[uint64][]marketEvent{}
	for _, e := range found {
		byDeal[e.deal] = append(byDeal[e.deal], e)
	}
	type lookedUp struct {
		deal     uint64
		proposal *dealtracker.Proposal
	}
	results := make(chan lookedUp, len(byDeal))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(l.cfg.Lookups)
	for deal, events := range byDeal {
		group.Go(func() error {
			p, err := l.proposal(groupCtx, deal, events)
			results <- lookedUp{deal, p}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	close(results)
	proposals := make(map[uint64]*dealtracker.Proposal, len(byDeal))
	for r := range results {
		proposals[r.deal] = r.proposal
	}
	events := make([]dealtracker.Event, 0, len(found))
	for _, e := range found {
		p := proposals[e.deal]
		if p == nil {
			ends := e.kind == dealtracker.Terminated || e.kind == dealtracker.Completed
			if !ends && !e.reverted {
				l.log.WarnContext(ctx, "skipping deal that cannot be read", "deal", e.deal, "event", e.id, "epoch", e.epoch)
				continue
			}
			p = &dealtracker.Proposal{ID: e.deal, Client: e.client, Provider: e.provider}
		}
		events = append(events, dealtracker.Event{ID: e.id, Kind: e.kind, Epoch: e.epoch, Reverted: e.reverted, Deal: *p})
	}
	return events, nil
}

// proposal looks up a deal, or returns nil if the node has it no more or returns something that is no deal. The events are those
// that were found of the deal: they name tipsets as of which it still existed.
func (l *Lotus) proposal(ctx context.Context, deal uint64, events []marketEvent) (*dealtracker.Proposal, error) {
	asOf := [][]cidLink{nil} // nil is the head
	for _, e := range events {
		// The state as of a tipset is the one before its own messages, so it has a deal that they end, not one that they publish.
		if e.kind != dealtracker.Published && !e.reverted && len(e.tipset) > 0 {
			asOf = append(asOf, e.tipset)
		}
	}
	for i, key := range asOf {
		var answer json.RawMessage
		err := l.rpc.call(ctx, "v1", "StateMarketStorageDeal", &answer, deal, key)
		if err == nil {
			p, err := decodeDeal(deal, answer)
			if err != nil {
				l.log.WarnContext(ctx, "node returns no proper deal", "deal", deal, "answer", excerpt(answer), "error", err)
				return nil, nil
			}
			return p, nil
		}
		rpcErr, ok := errors.AsType[*RPCError](err)
		if !ok {
			return nil, err
		}
		if i == 0 && !isDealNotFound(rpcErr, deal) {
			// Either the node cannot read the market's state, which ends the call, or it cannot read this deal.
			if err := l.checkState(ctx); err != nil {
				return nil, err
			}
			l.log.WarnContext(ctx, "node cannot read deal", "deal", deal, "error", err)
			return nil, nil
		}
	}
	return nil, nil
}

func isDealNotFound(err *RPCError, deal uint64) bool {
	return strings.Contains(err.Message, "deal "+strconv.FormatUint(deal, 10)+" not found")
}

// checkState returns an error unless the node can read the market's state at its head.
func (l *Lotus) checkState(ctx context.Context) error {
	var answer json.RawMessage
	err := l.rpc.call(ctx, "v1", "StateMarketStorageDeal", &answer, unusedDeal, nil)
	if rpcErr, ok := errors.AsType[*RPCError](err); ok && isDealNotFound(rpcErr, unusedDeal) {
		return nil
	}
	if err == nil {
		return fmt.Errorf("StateMarketStorageDeal: node knows of deal %d, which cannot exist", unusedDeal)
	}
	return err
}

// decodeDeal decodes the answer of StateMarketStorageDeal.
func decodeDeal(id uint64, answer []byte) (*dealtracker.Proposal, error) {
	var d marketDeal
	if err := json.Unmarshal(answer, &d); err != nil {
		return nil, fmt.Errorf("decoding deal: %w", err)
	}
	v1, err := d.Proposal.PieceCID.parse()
	if err != nil {
		return nil, fmt.Errorf("piece of deal: %w", err)
	}
	link, err := piece.FromV1(v1, d.Proposal.PieceSize)
	if err != nil {
		return nil, fmt.Errorf("piece of deal: %w", err)
	}
	provider, err := normalise(d.Proposal.Provider)
	if err != nil {
		return nil, fmt.Errorf("provider of deal: %w", err)
	}
	client, err := normalise(d.Proposal.Client)
	if err != nil {
		return nil, fmt.Errorf("client of deal: %w", err)
	}
	if d.Proposal.StartEpoch < 0 || d.Proposal.EndEpoch < d.Proposal.StartEpoch {
		return nil, fmt.Errorf("deal from epoch %d to %d", d.Proposal.StartEpoch, d.Proposal.EndEpoch)
	}
	return &dealtracker.Proposal{
		ID: id, Piece: link, Provider: provider, Client: client,
		StartEpoch: d.Proposal.StartEpoch, EndEpoch: d.Proposal.EndEpoch, Verified: d.Proposal.VerifiedDeal,
	}, nil
}
