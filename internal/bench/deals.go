package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/store"
)

// deals measures the whole way, from stored content to filecoin/accept.
type deals struct {
	binary, dir string
	pieces      int
	profile     bool
	say         func(format string, args ...any)
}

// dealt is what it took.
type dealt struct {
	Pieces  int     `json:"pieces"`
	Upload  float64 `json:"upload_seconds"`
	Offer   float64 `json:"offer_seconds"` // until the last acknowledgement
	Total   float64 `json:"seconds"`       // from the first offer to the last filecoin/accept
	Rate    float64 `json:"pieces_per_second"`
	CPU     float64 `json:"cpu_ms_per_piece"` // of all roles, the devnet included
	RSS     float64 `json:"peak_rss_mib"`
	Changes float64 `json:"changes_per_piece"` // writes to the databases
	// Queues are the queues that took the most time, in handler seconds, and those of the invocations.
	Queues []timed `json:"queues"`
}

type timed struct {
	Name    string  `json:"name"`
	Count   float64 `json:"count"`
	Seconds float64 `json:"seconds"`
}

func (d *deals) run(ctx context.Context) (*dealt, error) {
	signers, err := signersOf(roleNames...)
	if err != nil {
		return nil, err
	}
	// As in `w3filecoin demo`: small deals, short waits, an epoch of 100 ms.
	var sizes []string
	for s := 4; s <= 1024; s *= 2 {
		sizes = append(sizes, fmt.Sprintf("%q", fmt.Sprintf("%dMiB", s)))
	}
	ladder := fmt.Sprintf("sizes = [%s]\n", strings.Join(sizes, ", "))
	n, err := serve(d.binary, d.dir, signers, map[string]string{
		"storefront":  "pull = \"5s\"\ncontent_retry = \"100ms\"\n",
		"aggregator":  ladder + "budget = \"2s\"\npull = \"5s\"\n",
		"dealer":      ladder + "poll = \"50ms\"\n",
		"dealtracker": "poll = \"100ms\"\n",
		"":            "[devnet]\nenabled = true\nlisten = \"127.0.0.1:0\"\nepoch = \"100ms\"\n",
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = n.close() }()
	url := n.urls["storefront"]
	agent, err := newSigner()
	if err != nil {
		return nil, err
	}

	// Contents that make pieces of 128 KiB, the average below which an aggregate has too many.
	contents, err := makeContents(ctx, d.pieces)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	at := client.Upload{Conn: client.Dial(url, nil), Agent: agent, Storefront: n.dids["storefront"], Keys: ownKeys{}, Space: agent.DID().String()}
	err = store.Each(ctx, 16, contents, func(c content) error {
		_, err := client.PutBlob(ctx, at, blob.Blob{Digest: blob.Digest(c.cid.Hash()), Size: uint64(len(c.bytes))},
			func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(c.bytes)), nil })
		return err
	})
	if err != nil {
		return nil, err
	}
	result := &dealt{Pieces: d.pieces, Upload: time.Since(began).Seconds()}
	reqs := &requests{agent: agent, audience: n.dids["storefront"], caveats: func(id uint64) (capabilities.Caveats, error) {
		return &filecoin.Offer{Content: contents[id].cid, Piece: contents[id].piece}, nil
	}}
	contentBytes := 0
	for _, c := range contents {
		contentBytes += len(c.bytes)
	}
	d.say("uploaded %d contents of %.0f KB in %.1f s", d.pieces, float64(contentBytes)/float64(d.pieces)/1000, result.Upload)
	bodies, err := reqs.sign(d.pieces)
	if err != nil {
		return nil, err
	}
	before, err := settle(ctx, n.process)
	if err != nil {
		return nil, err
	}
	n.profile(d.profile, syscall.SIGUSR1)
	began = time.Now()
	run, err := drive(ctx, url, bodies, 16, 0, true)
	if err != nil {
		return nil, err
	}
	result.Offer = run.took.Seconds()
	var accepts []cid.Cid
	for i, reply := range run.replies {
		r, err := reqs.checkReply(bodies[i], reply)
		if err != nil {
			return nil, err
		}
		accepts = append(accepts, r.Join)
	}
	if err := d.await(ctx, client.Dial(url, nil), accepts); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, n.log.text())
	}
	result.Total = time.Since(began).Seconds()
	n.profile(d.profile, syscall.SIGUSR2)
	if _, err := settle(ctx, n.process); err != nil { // while the profile is written
		return nil, err
	}
	after, err := n.usage()
	if err != nil {
		return nil, err
	}
	pieces := float64(d.pieces)
	result.Rate = pieces / result.Total
	result.CPU = ms(after.cpu-before.cpu) / pieces
	result.RSS = float64(after.peak) / (1 << 20)
	m, err := metrics(ctx, url)
	if err != nil {
		return nil, err
	}
	for name, v := range m {
		if strings.HasPrefix(name, "w3filecoin_store_changes_total") {
			result.Changes += v / pieces
		}
		for _, kind := range []string{"w3filecoin_message_seconds", "w3filecoin_invocation_seconds"} {
			if labels, ok := strings.CutPrefix(name, kind+"_sum"); ok {
				result.Queues = append(result.Queues, timed{strings.Trim(labels, "{}"), m[kind+"_count"+labels], v})
			}
		}
	}
	slices.SortFunc(result.Queues, func(a, b timed) int { return int(1e6 * (b.Seconds - a.Seconds)) })
	return result, nil
}

// await asks for the receipts of all tasks until they are there.
func (d *deals) await(ctx context.Context, conn *client.Conn, tasks []cid.Cid) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for i, task := range tasks {
		for {
			m, err := conn.Receipt(ctx, task)
			if err == nil {
				if out := m.Receipt(task).Out; out.OK == nil {
					return fmt.Errorf("an offer failed: %w", capabilities.ReadFailure(out.Error))
				}
				break
			}
			if !errors.Is(err, capabilities.ErrNoReceipt) {
				return fmt.Errorf("after %d pieces: %w", i, err)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("after %d pieces: %w", i, ctx.Err())
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return nil
}

type content struct {
	bytes []byte
	cid   cid.Cid
	piece piece.Link
}

func makeContents(ctx context.Context, n int) ([]content, error) {
	list := make([]content, n)
	indices := make([]int, n)
	for i := range indices {
		indices[i] = i
	}
	err := store.Each(ctx, 2, indices, func(i int) error {
		var seed [32]byte
		binary.BigEndian.PutUint64(seed[:], uint64(i))
		b := make([]byte, 66_000)
		_, _ = rand.NewChaCha8(seed).Read(b) // never fails
		c, err := piece.HashReader(ctx, bytes.NewReader(b))
		if err != nil {
			return err
		}
		hash, err := multihash.Encode(c.SHA256[:], multihash.SHA2_256)
		if err != nil {
			return err
		}
		list[i] = content{b, cid.NewCidV1(cid.Raw, hash), c.Piece}
		return nil
	})
	return list, err
}
