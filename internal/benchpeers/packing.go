package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

const (
	packingSeeds = 25
	// waiting is how much content waits when an aggregate is closed, in deals.
	waiting = 1.5
)

// mix is a made-up distribution of payload sizes in bytes, after what storage services describe: not a record of any.
type mix struct {
	Name string
	size func(rng *rand.Rand) float64
}

var mixes = []mix{
	{"shards of 127 MiB, and what remains of each upload", func(rng *rand.Rand) float64 {
		if rng.Float64() < 0.7 {
			return 133_169_152 // the shard size of the JavaScript upload client
		}
		return math.Exp(rng.Float64() * math.Log(133_169_152))
	}},
	{"uploads: log-normal, median 4 MiB", logNormal(4<<20, 2)},
	{"small files: log-normal, median 200 KiB", logNormal(200<<10, 1.5)},
	{"heavy tail: Pareto 1.1 from 1 MiB, up to 8 GiB", func(rng *rand.Rand) float64 {
		return min((1<<20)/math.Pow(1-rng.Float64(), 1/1.1), 8<<30)
	}},
	{"archives: log-uniform, 256 MiB to 8 GiB", func(rng *rand.Rand) float64 {
		return (256 << 20) * math.Exp2(5*rng.Float64())
	}},
	{"half the bytes in pieces of 4 GiB, half in small files", func(rng *rand.Rand) float64 {
		if rng.Float64() < 1.0/8192 {
			return 4 << 30 / 128 * 127
		}
		return logNormal(256<<10, 1)(rng)
	}},
}

func logNormal(median, sigma float64) func(*rand.Rand) float64 {
	return func(rng *rand.Rand) float64 { return min(max(median*math.Exp(sigma*rng.NormFloat64()), 1), 8<<30) }
}

// packed is how full the aggregates of one mix are, as the share of the room for content: the median of all seeds, and the least.
type packed struct {
	Mix         string     `json:"mix"`
	Pieces      int        `json:"pieces"` // that wait, median
	Ours        [2]float64 `json:"ours"`
	Ascending   [2]float64 `json:"ascending"`
	Arrival     [2]float64 `json:"arrival"`
	OursFullest int        `json:"oursFullest"` // seeds for which ours is fuller than both others
}

func packing(ctx context.Context, w io.Writer) (any, error) {
	fmt.Fprintf(w, `
### Packing of 32 GiB deals

How much of the room for content is filled when content of %.1f deals waits, by the padded sizes of pieces: median (least) of %d seeds. Each
way takes every waiting piece that still fits, one after the other. Ours takes the oldest first and places in descending order of size;
ascending takes and places the smallest first, as the published JavaScript aggregator does; arrival takes and places the oldest first.

| sizes | pieces that wait | ours | ascending | arrival |
|---|---|---|---|---|
`, waiting, packingSeeds)
	var all []packed
	for _, m := range mixes {
		var ours, ascending, arrival, counts []float64
		p := packed{Mix: m.Name}
		for seed := range uint64(packingSeeds) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			pool, err := m.pool(seed)
			if err != nil {
				return nil, err
			}
			counts = append(counts, float64(len(pool)))
			o, err := packOurs(pool)
			if err != nil {
				return nil, err
			}
			inOrder := packInOrder(pool)
			slices.SortStableFunc(pool, func(a, b piece.Link) int { return int(a.Height()) - int(b.Height()) })
			bySize := packInOrder(pool)
			if o > inOrder && o > bySize {
				p.OursFullest++
			}
			ours, arrival, ascending = append(ours, o), append(arrival, inOrder), append(ascending, bySize)
		}
		p.Pieces = int(median(counts))
		p.Ours, p.Ascending, p.Arrival = summary(ours), summary(ascending), summary(arrival)
		all = append(all, p)
		cell := func(s [2]float64) string { return fmt.Sprintf("%.2f %% (%.2f %%)", 100*s[0], 100*s[1]) }
		fmt.Fprintf(w, "| %s | %d | %s | %s | %s |\n", m.Name, p.Pieces, cell(p.Ours), cell(p.Ascending), cell(p.Arrival))
	}
	return all, nil
}

func summary(values []float64) [2]float64 { return [2]float64{median(values), slices.Min(values)} }

// pool returns made-up pieces in the order in which they came.
func (m mix) pool(seed uint64) ([]piece.Link, error) {
	rng := rand.New(rand.NewPCG(seed, 1))
	var pool []piece.Link
	for content := 0.0; content < waiting*aggregateDeal; {
		var root piece.Node
		for i := range root {
			root[i] = byte(rng.Uint32())
		}
		root[31] &= 0x3f
		p, err := piece.FromRoot(root, uint64(max(m.size(rng), 1)))
		if err != nil {
			return nil, err
		}
		pool = append(pool, p)
		content += float64(p.PaddedSize())
	}
	return pool, nil
}

func packOurs(pool []piece.Link) (float64, error) {
	b, err := segment.NewBuilder(aggregateDeal)
	if err != nil {
		return 0, err
	}
	for _, p := range pool {
		switch err := b.Add(p); {
		case errors.Is(err, segment.ErrDoesNotFit), errors.Is(err, segment.ErrTooManyPieces), err == nil:
		default:
			return 0, err
		}
	}
	// The claim is about aggregates that exist.
	built, err := b.Build()
	if err != nil {
		return 0, err
	}
	var content uint64
	for _, p := range built.Pieces() {
		content += p.PaddedSize()
	}
	return float64(content) / float64(segment.ContentCapacity(aggregateDeal)), nil
}

// packInOrder places pieces as they come, each at the first multiple of its size, and passes over those that do not fit.
func packInOrder(pool []piece.Link) float64 {
	capacity, limit := segment.ContentCapacity(aggregateDeal), segment.MaxEntries(aggregateDeal)
	var end, content uint64
	n := 0
	for _, p := range pool {
		size := p.PaddedSize()
		at := (end + size - 1) / size * size
		if at+size > capacity || n == limit {
			continue
		}
		end = at + size
		content += size
		n++
	}
	return float64(content) / float64(capacity)
}
