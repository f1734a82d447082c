package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/assert"
	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/wire"
)

func newOfferCommand(a *app) *cobra.Command {
	var (
		at      agentFlags
		nonce   string
		save    string
		follow  bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "offer FILE...",
		Short: "Store files at a storefront and offer them",
		Long: `Store each file at the storefront, compute its piece, and invoke filecoin/offer. Prints one line per file: content, piece and the task
of the offer, by which its receipts are found. With --follow it waits for the deals, and with --save it keeps the chains of receipts.

What was offered before is not offered twice: its receipts are found again. With --nonce it has a chain of receipts of its own, which is for pieces whose
chain has ended without a deal.`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, files []string) error {
			o, err := a.dial(cmd.Context(), at)
			if err != nil {
				return err
			}
			o.nonce = nonce
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			var offers []offered
			for _, f := range files {
				of, err := o.offerFile(ctx, f)
				if err != nil {
					return err
				}
				offers = append(offers, of)
				if !a.json {
					fmt.Fprintf(a.stdout, "%s\t%s\t%s\t%s\n", of.File, of.Content, of.Piece, of.Task)
				}
			}
			if a.json {
				if err := a.result(offers, nil); err != nil {
					return err
				}
			}
			if !follow && save == "" {
				return nil
			}
			return o.await(ctx, offers, save)
		},
	}
	at.add(cmd)
	f := cmd.Flags()
	f.StringVar(&nonce, "nonce", "", "any text: offer it as something new, whatever was offered before")
	f.BoolVar(&follow, "follow", false, "wait until every offer has ended")
	f.StringVar(&save, "save", "", "wait, and write each chain of receipts to this directory")
	f.DurationVar(&timeout, "timeout", 0, "give up waiting after this long")
	return cmd
}

// agentFlags say who offers where.
type agentFlags struct {
	url, key, with string
	proofs         []string
}

func (at *agentFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&at.url, "url", "http://127.0.0.1:8001", "the storefront")
	f.StringVar(&at.key, "key", "", "file of your agent's key, as 'w3filecoin key generate' makes it")
	f.StringVar(&at.with, "with", "", "the space to offer on; your agent's own DID if empty")
	f.StringArrayVar(&at.proofs, "proof", nil, "file of a delegation of the space to your agent")
}

// dial asks the storefront who it is, with the agent's key and proofs at hand.
func (a *app) dial(ctx context.Context, at agentFlags) (*offerer, error) {
	agent, err := readSigner(at.key)
	if err != nil {
		return nil, err
	}
	o, err := dialStorefront(ctx, at.url, agent)
	if err != nil {
		return nil, err
	}
	o.app = a
	if at.with != "" {
		o.with = at.with
	}
	for _, f := range at.proofs {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, usage("name the file of a delegation to your agent", "reading the proof: %v", err)
		}
		d, err := capabilities.Extract(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		o.proofs = append(o.proofs, d)
	}
	return o, nil
}

func readSigner(file string) (capabilities.Signer, error) {
	if file == "" {
		return capabilities.Signer{}, usage("make one with `w3filecoin key generate -o agent.pem`", "--key is missing: the file of your agent's key")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return capabilities.Signer{}, usage("make one with `w3filecoin key generate`", "reading the key: %v", err)
	}
	s, err := wire.ParseSigner(strings.TrimSpace(string(text)))
	if err != nil {
		return s, usage("it has to be PEM or the multibase form \"Mg…\"", "%s: %v", file, err)
	}
	return s, nil
}

// offerer stores and offers files at one storefront.
type offerer struct {
	app        *app
	url        string
	agent      capabilities.Signer
	storefront capabilities.DID
	with       string
	proofs     []capabilities.Delegation
	nonce      string // of offers; empty for none
	conn       *client.Conn
	keys       capabilities.Keys
	http       *http.Client
}

// offered is a file that a storefront has acknowledged.
type offered struct {
	File    string     `json:"file"`
	Size    int64      `json:"size"`
	Content cid.Cid    `json:"content"`
	Piece   piece.Link `json:"piece"`
	Task    cid.Cid    `json:"task"`
	// accept is the task filecoin/accept, which ends the offer.
	accept cid.Cid
}

// MarshalJSON writes CIDs as text.
func (o offered) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"file": o.File, "size": o.Size, "content": o.Content.String(), "piece": o.Piece.String(), "task": o.Task.String()})
}

// dialStorefront asks a storefront who it is.
func dialStorefront(ctx context.Context, url string, agent capabilities.Signer) (*offerer, error) {
	url = strings.TrimSuffix(url, "/")
	o := &offerer{url: url, agent: agent, with: agent.DID().String(), conn: client.Dial(url, nil), http: &http.Client{}}
	var v roles.Version
	if err := o.getJSON(ctx, "/version", &v); err != nil {
		return nil, &exitError{exitFailure, fmt.Errorf("asking the storefront who it is: %w", err), "is it running at " + url + "? --url names another"}
	}
	did, err := wire.ParseDID(v.DID)
	if err != nil {
		return nil, fmt.Errorf("%s says it is %q: %w", url, v.DID, err)
	}
	o.storefront = did
	static := map[capabilities.DID]capabilities.DID{}
	if key, err := wire.ParseDID(v.PublicKey); err == nil && did.Method() != "key" {
		static[did] = key
	}
	o.keys = roles.NewKeys(roles.KeysConfig{Static: static, Now: time.Now})
	return o, nil
}

func (o *offerer) getJSON(ctx context.Context, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.url+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := o.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return capabilities.ErrNoReceipt
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", o.url+path, resp.Status)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 8<<20)).Decode(v)
}

// offerFile hashes, stores and offers one file.
func (o *offerer) offerFile(ctx context.Context, file string) (offered, error) {
	f, err := os.Open(file)
	if err != nil {
		return offered{}, usage("name a file that can be read", "opening the file: %v", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return offered{}, err
	}
	if !info.Mode().IsRegular() {
		return offered{}, usage("pack a directory into one file first, a CAR for instance", "%s is not a regular file", file)
	}
	of := offered{File: file, Size: info.Size()}
	bar, done := o.app.progress(info.Size(), "hashing "+info.Name())
	of.Content, of.Piece, err = hashContent(ctx, io.TeeReader(f, bar))
	done()
	if err != nil {
		return of, fmt.Errorf("hashing %s: %w", file, err)
	}
	err = o.store(ctx, of.Content, info.Name(), f, info.Size())
	if err != nil {
		return of, fmt.Errorf("storing %s: %w", file, err)
	}
	of.Task, of.accept, err = o.offer(ctx, of.Content, of.Piece, "")
	if err != nil {
		return of, fmt.Errorf("offering %s: %w", file, err)
	}
	return of, nil
}

// hashContent returns the raw CID and the piece of what r yields, in one pass.
func hashContent(ctx context.Context, r io.Reader) (cid.Cid, piece.Link, error) {
	c, err := piece.HashReader(ctx, r)
	if err != nil {
		return cid.Undef, c.Piece, err
	}
	content, err := rawContent(c)
	return content, c.Piece, err
}

// rawContent is the CID of content with the raw codec.
func rawContent(c piece.Content) (cid.Cid, error) {
	hash, err := multihash.Encode(c.SHA256[:], multihash.SHA2_256)
	if err != nil {
		return cid.Undef, err
	}
	return cid.NewCidV1(cid.Raw, hash), nil
}

// store puts content into the storefront's custody.
func (o *offerer) store(ctx context.Context, content cid.Cid, name string, r io.ReadSeeker, size int64) error {
	done := func() {}
	defer func() { done() }()
	_, err := o.putBlob(ctx, content, size, func() (io.ReadCloser, error) {
		if _, err := r.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		var bar io.Writer
		bar, done = o.app.progress(size, "storing "+name)
		return io.NopCloser(io.TeeReader(r, bar)), nil
	})
	return err
}

// putBlob stores content at the storefront, and reports whether the bytes had to be sent. open opens them for that.
func (o *offerer) putBlob(ctx context.Context, content cid.Cid, size int64, open func() (io.ReadCloser, error)) (sent bool, err error) {
	site, err := client.PutBlob(ctx, client.Upload{
		Conn: o.conn, Agent: o.agent, Storefront: o.storefront, Keys: o.keys, Space: o.with, HTTP: o.http,
		Terms: capabilities.Terms{Proofs: o.proofs, Expiration: time.Now().Add(time.Hour)},
	}, blob.Blob{Digest: blob.Digest(content.Hash()), Size: uint64(size)}, open)
	if failure := (*capabilities.Failure)(nil); errors.As(err, &failure) && failure.Name == capabilities.HandlerNotFound {
		return false, usage("its operator sets storefront.uploads, or places the file where it looks for content", "the storefront takes no uploads")
	}
	return site.Sent, err
}

// offer offers a pair. at, if it is not empty, is where the content is: that goes with the offer as a claim of the agent's.
func (o *offerer) offer(ctx context.Context, content cid.Cid, p piece.Link, at string) (task, accept cid.Cid, err error) {
	var attached []capabilities.Block
	if at != "" {
		claim, err := capabilities.Invoke(o.agent, o.storefront, o.agent.DID().String(),
			&assert.Location{Content: assert.Content{Link: content}, Location: []string{at}}, capabilities.Terms{})
		if err != nil {
			return cid.Undef, cid.Undef, err
		}
		attached = append(attached, claim.Block())
	}
	offer, r, err := client.Offer(ctx, o.conn, o.agent, o.storefront, o.with, filecoin.Offer{Content: content, Piece: p},
		capabilities.Terms{Proofs: o.proofs, Nonce: o.nonce}, o.keys, attached...)
	if err != nil {
		return cid.Undef, cid.Undef, err
	}
	return offer.Link(), r.Join, nil
}

// await follows offers until all have ended, verifies their chains and, if dir is set, saves them there.
func (o *offerer) await(ctx context.Context, offers []offered, dir string) error {
	if dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("creating the directory for the chains: %w", err)
		}
	}
	var failed error
	for _, of := range offers {
		chain, err := o.follow(ctx, of, nil)
		if errors.Is(err, context.DeadlineExceeded) {
			return &exitError{exitUnfinished, fmt.Errorf("%s has not ended yet", of.File), "w3filecoin status " + of.Piece.String() + " shows where it stands"}
		}
		if err != nil {
			return err
		}
		proven, err := chain.Verify(ctx, o.keys)
		if err != nil {
			return err
		}
		if proven.Failure != nil {
			failed = fmt.Errorf("%s: %w", of.File, proven.Failure)
		}
		fmt.Fprintf(o.app.stderr, "%s: %s\n", of.File, outcome(proven))
		if dir != "" {
			name := dir + "/" + of.Task.String() + ".car"
			if err := os.WriteFile(name, chain.Encode(), 0o644); err != nil {
				return fmt.Errorf("saving the chain: %w", err)
			}
			fmt.Fprintf(o.app.stderr, "saved %s\n", name)
		}
	}
	return failed
}

func outcome(p *client.Proven) string {
	if p.Failure != nil {
		return p.Failure.Error()
	}
	return fmt.Sprintf("in deal %d, aggregate %s", p.Deal.DealID, p.Aggregate)
}

// pollEvery is how often a client asks again.
const pollEvery = 200 * time.Millisecond

// follow fetches the chain of an offer until it has ended. Each time round it calls seen with the status, if it has one.
func (o *offerer) follow(ctx context.Context, of offered, seen func(capabilities.Status) error) (*client.Chain, error) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		var status capabilities.Status
		err := o.getJSON(ctx, "/status/"+of.Piece.String(), &status)
		if err != nil && !errors.Is(err, capabilities.ErrNoReceipt) {
			return nil, err
		}
		if seen != nil {
			if err := seen(status); err != nil {
				return nil, err
			}
		}
		if p, ok := pieceOf(status, of.accept); ok && p.State == "expired" {
			return nil, &exitError{exitRefused, fmt.Errorf("%s has expired: %s", of.File, p.Reason), "w3filecoin status " + of.Piece.String() + " shows where it stands"}
		} else if ok && p.ended() {
			chain, err := client.Follow(ctx, o.conn, of.Task)
			if err != nil {
				return nil, err
			}
			if chain.Concluded() {
				return chain, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// pieceStatus is where the piece of one content stands.
type pieceStatus struct{ capabilities.PieceStatus }

// pieceOf finds the piece that a task filecoin/accept is to conclude: a content may have been offered with several nonces.
func pieceOf(s capabilities.Status, accept cid.Cid) (pieceStatus, bool) {
	for _, p := range s.Pieces {
		if p.Tasks[filecoin.AcceptAbility] == accept.String() {
			return pieceStatus{p}, true
		}
	}
	return pieceStatus{}, false
}

// ended reports whether the offer has a terminal receipt.
func (p pieceStatus) ended() bool {
	return p.State == "dealt" || p.State == "invalid" || p.State == "failed"
}
