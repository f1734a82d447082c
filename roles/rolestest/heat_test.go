package rolestest

import (
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/aggregator"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/aws"
	"github.com/storacha/w3filecoin/store/storetest"
)

// heat is how many write units fell on each partition of DynamoDB, by kind of partition, and how many pieces that was for.
type heat struct {
	units  map[string]map[string]float64
	reads  map[string]map[string]float64
	pieces float64
}

func (h *heat) add(to map[string]map[string]float64, kind, partition string, units float64) {
	if to[kind] == nil {
		to[kind] = map[string]float64{}
	}
	to[kind][partition] += units
}

// share is what the hottest partition of a kind takes for each piece.
func (h *heat) share(of map[string]map[string]float64, kind string) float64 {
	most := 0.0
	for _, n := range of[kind] {
		most = max(most, n)
	}
	return most / h.pieces
}

// heatOf runs pieces of one size that come evenly, so many a second, through a network until they are in a deal. No role waits for another longer than that
// takes, so what a partition gets in a second follows from its share.
func heatOf(t *testing.T, pieces int, rate float64) *heat {
	t.Helper()
	withoutFaults(t)
	h := &heat{units: map[string]map[string]float64{}, reads: map[string]map[string]float64{}, pieces: float64(pieces)}
	rows := map[string]map[store.Key]store.Row{}
	kindOf := func(partition string) string {
		kind, _, _ := strings.Cut(partition, "/")
		return kind
	}
	n := New(t, Options{Seed: 2, Prompt: true, Budget: 20 * time.Minute, Ladder: aggregator.LadderBetween(64<<20, 64<<20), Count: func(role string, u storetest.Used) {
		switch {
		case u.Step == "":
		case u.Method == "Get" || u.Method == "Query":
			h.add(h.reads, role+" rows "+kindOf(u.Partition), u.Partition, float64(1+u.Bytes/4096))
		}
		if u.Method != "Commit" {
			return
		}
		if rows[role] == nil {
			rows[role] = map[store.Key]store.Row{}
		}
		c := u.Change
		was, is := rows[role][c.Row.Key], c.Row
		if u.Err == nil {
			rows[role][c.Row.Key] = is
			if c.Delete {
				is = store.Row{Key: is.Key}
				delete(rows[role], is.Key)
			}
		} else {
			is = was
		}
		// What the table gets is the whole less what its indexes get.
		total := dynamoWrites(was, u)
		units := func(bytes int) float64 { return float64((bytes + 1023) / 1024) }
		if was.Listing.Index != "" && was.Listing != is.Listing {
			n := units(dynamoSize(was, nil))
			h.add(h.units, role+" listing "+kindOf(was.Listing.Index), was.Listing.Index, n)
			total -= n
		}
		if is.Listing.Index != "" && u.Err == nil {
			n := units(dynamoSize(is, c.Messages))
			h.add(h.units, role+" listing "+kindOf(is.Listing.Index), is.Listing.Index, n)
			total -= n
		}
		if len(c.Messages) > 0 && u.Err == nil {
			hash := fnv.New32a()
			_, _ = hash.Write([]byte(c.Row.Partition + "\x00" + c.Row.Sort)) // never fails
			h.add(h.units, role+" outbox", string(rune('a'+hash.Sum32()%aws.DefaultShards)), 2)
			total -= 2
		}
		h.add(h.units, role+" rows "+kindOf(c.Row.Partition), c.Row.Partition, total)
	}})
	began := n.Now()
	var offers []Offered
	for i := range pieces {
		at := began.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		n.Run(at.Sub(n.Now()), func() bool { return false })
		offers = append(offers, n.Offer("storefront", n.Payload(127<<10)))
	}
	if !n.Run(3*day, n.Concluded(offers...)) {
		t.Fatal("not concluded")
	}
	n.MustCheck(offers)
	return h
}

// TestHeat: how much of the writing falls on single partitions of DynamoDB, which take 1,000 write and 3,000 read units a second each. docs/scale.md says
// what follows for a million, ten and a hundred million pieces a day, with peaks of three times that.
func TestHeat(t *testing.T) {
	const million = 1e6 / 86_400 // pieces a second
	h := heatOf(t, 300, 10*million)
	for _, bound := range []struct {
		kind   string
		writes float64 // of the hottest partition, for each piece
	}{
		{"storefront outbox", 0.5}, // 8 over 32 shards, unevenly
		{"aggregator outbox", 0.13},
		{"compute outbox", 0.13},
		{"storefront listing offered", 0.5}, // 4 over 16 parts
		{"aggregator listing lane", 2.1},    // in and out: pieces of one size in one lane
		{"storefront rows member", 1.1},     // of one aggregate
	} {
		if got := h.share(h.units, bound.kind); got > bound.writes {
			t.Errorf("the hottest partition of %s takes %.3f write units for each piece, more than %v", bound.kind, got, bound.writes)
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(h.units)) {
		share, sum := h.share(h.units, kind), 0.0
		for _, n := range h.units[kind] {
			sum += n
		}
		t.Logf("%-30s %6d partitions, %6.2f write units a piece, hottest %6.3f: at 1, 10, 100 million a day %5.0f %6.0f %7.0f a second, peaks %7.0f", kind,
			len(h.units[kind]), sum/h.pieces, share, share*million, share*10*million, share*100*million, share*300*million)
		// A partition that all pieces share is one of those above, or is written for aggregates.
		known := strings.Contains(kind, "outbox") || strings.HasSuffix(kind, "offered") || strings.HasSuffix(kind, "lane") || strings.HasSuffix(kind, "member")
		if !known && share > 0.1 {
			t.Errorf("the hottest partition of %s takes %.3f write units for each piece: it is shared by all", kind, share)
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(h.reads)) {
		if share := h.share(h.reads, kind); share > 0.1 {
			t.Logf("%-30s hottest %6.3f read units a piece: at 1, 10, 100 million a day %5.0f %6.0f %7.0f a second", kind, share, share*million, share*10*million, share*100*million)
		}
	}
}
