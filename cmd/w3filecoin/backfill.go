package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/compute"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/source"
)

func newBackfillCommand(a *app) *cobra.Command {
	var (
		at       agentFlags
		bucket   bucketFlags
		state    string
		basePath string
		jobs     int
		noUpload bool
		hosts    []string
	)
	cmd := &cobra.Command{
		Use:   "backfill SOURCE",
		Short: "Offer content that is stored already",
		Long: `Walk content that is stored already, compute content CID and piece of each in one pass, and offer at a storefront what it does not
know. SOURCE is a directory; a bucket, s3://BUCKET/PREFIX, with credentials from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; or a list
(CSV) of content CIDs, each with an address or a key behind a comma or alone, or of keys, which are looked up below --base. Content that the storefront cannot read by itself is stored there, unless --no-upload.

What is done is kept in a file, so a run that ended early, however it ended, goes on where it was. One bad item never stops the
rest: the report at the end names it, and the next run tries it again.`,
		Example: `  w3filecoin backfill /srv/archive --key agent.pem --state archive.state
  w3filecoin backfill s3://carpark/2024/ --region eu-west-1 --key agent.pem
  w3filecoin backfill uploads.csv --key agent.pem --no-upload --json`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if jobs < 1 {
				return usage("4 is the default", "--jobs %d is no number of contents", jobs)
			}
			ctx := cmd.Context()
			o, err := a.dial(ctx, at)
			if err != nil {
				return err
			}
			fetcher, err := source.NewHTTP(source.HTTPConfig{AllowHosts: hosts})
			if err != nil {
				return usage("name hosts like archive.internal:8080", "--allow-host: %v", err)
			}
			b := &backfill{offerer: o, jobs: jobs, upload: !noUpload, pause: 500 * time.Millisecond}
			opened, err := openBackfillSource(args[0], basePath, &bucket)
			if err != nil {
				return err
			}
			defer func() { _ = opened.close() }() // it was only read
			b.state, err = openBackfillState(state, backfillScope{backfillFormat, opened.name, o.storefront.String(), o.with})
			if err != nil {
				return err
			}
			defer b.state.f.Close()
			fetch := func(ctx context.Context, url string) (io.ReadCloser, error) {
				body, _, err := fetcher.Fetch(ctx, url)
				if errors.Is(err, compute.ErrNoContent) {
					err = &itemError{nameNotThere, err.Error()}
				}
				return body, err
			}
			return b.run(ctx, opened.walk(ctx, b.state.info, o.heldBy, fetch))
		},
	}
	at.add(cmd)
	bucket.add(cmd)
	f := cmd.Flags()
	f.StringVar(&state, "state", "w3filecoin-backfill.state", "file that keeps what is done")
	f.StringVar(&basePath, "base", "", "directory, or s3://BUCKET/PREFIX, that the keys of a list are in")
	f.IntVar(&jobs, "jobs", 4, "how many contents are worked on at a time")
	f.BoolVar(&noUpload, "no-upload", false, "store nothing at the storefront: it has the content, or will have")
	f.StringArrayVar(&hosts, "allow-host", nil, "host in a private network that a list may send to; repeatable")
	return cmd
}

// backfillSource is what a backfill walks.
type backfillSource struct {
	name string // the same for the same source
	walk func(ctx context.Context, state os.FileInfo, held func(context.Context, cid.Cid) (io.ReadCloser, error),
		fetch func(context.Context, string) (io.ReadCloser, error)) walk
	close func() error
}

func openBackfillSource(arg, basePath string, bucket *bucketFlags) (*backfillSource, error) {
	type held = func(context.Context, cid.Cid) (io.ReadCloser, error)
	type fetch = func(context.Context, string) (io.ReadCloser, error)
	inBucket := strings.HasPrefix(arg, bucketScheme)
	if inBucket && basePath != "" {
		return nil, usage("leave --base out", "--base is for the keys of a list")
	}
	if inBucket {
		folder, err := bucket.open(arg)
		if err != nil {
			return nil, err
		}
		return &backfillSource{bucket.endpoint + " " + arg, func(ctx context.Context, _ os.FileInfo, _ held, _ fetch) walk { return folder.walk(ctx) },
			func() error { return nil }}, nil
	}
	info, err := os.Stat(arg)
	if err != nil {
		return nil, usage("name a directory, a list, or s3://BUCKET/PREFIX", "opening the source: %v", err)
	}
	name, err := filepath.Abs(arg)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		if basePath != "" {
			return nil, usage("leave --base out", "--base is for the keys of a list")
		}
		root, err := os.OpenRoot(arg)
		if err != nil {
			return nil, usage("name a directory that can be read", "opening the source: %v", err)
		}
		return &backfillSource{name, func(ctx context.Context, state os.FileInfo, _ held, _ fetch) walk {
			return directory{root}.walk(ctx, state)
		}, root.Close}, nil
	}
	if !info.Mode().IsRegular() {
		return nil, usage("name a directory or a list", "%s is neither a directory nor a file", arg)
	}
	l, end := list{file: arg}, func() error { return nil }
	switch {
	case strings.HasPrefix(basePath, bucketScheme):
		name += " in " + bucket.endpoint + " " + basePath
		if l.base, err = bucket.open(basePath); err != nil {
			return nil, err
		}
	case basePath != "":
		root, err := os.OpenRoot(basePath)
		if err != nil {
			return nil, usage("name a directory that can be read", "--base: %v", err)
		}
		full, err := filepath.Abs(basePath)
		if err != nil {
			return nil, errors.Join(err, root.Close())
		}
		name += " in " + full
		l.base, end = directory{root}, root.Close
	}
	return &backfillSource{name, func(ctx context.Context, _ os.FileInfo, held held, fetch fetch) walk {
		l.held, l.fetch = held, fetch
		return l.walk(ctx)
	}, end}, nil
}

// backfill is one run over a source.
type backfill struct {
	*offerer
	jobs   int
	upload bool
	pause  time.Duration // before the storefront is asked again, doubling
	state  *backfillState
}

// Outcomes of an item.
const (
	outcomeOffered = "offered" // by this run
	outcomeKnown   = "known"   // to the storefront
	outcomeBefore  = "before"  // done by an earlier run
	outcomeSkipped = "skipped" // nothing to offer: it is empty
	outcomeFailed  = "failed"
)

// itemReport is what became of an item.
type itemReport struct {
	Item    string     `json:"item"`
	Outcome string     `json:"outcome"`
	Size    int64      `json:"size,omitempty"` // bytes
	Content string     `json:"content,omitempty"`
	Piece   string     `json:"piece,omitempty"`
	State   string     `json:"state,omitempty"` // at the storefront, of what it knows
	Task    string     `json:"task,omitempty"`
	Stored  bool       `json:"stored,omitempty"` // it was stored at the storefront
	Error   *itemError `json:"error,omitempty"`

	read int64 // bytes that were hashed
}

// backfillTotals sum a run up.
type backfillTotals struct {
	Items   int   `json:"items"`
	Offered int   `json:"offered"`
	Known   int   `json:"known"`
	Before  int   `json:"before"`
	Skipped int   `json:"skipped"`
	Failed  int   `json:"failed"`
	Bytes   int64 `json:"bytes"` // hashed by this run
	// Complete says that the whole source was walked.
	Complete bool `json:"complete"`
}

func (t *backfillTotals) add(r *itemReport) {
	t.Items++
	t.Bytes += r.read
	switch r.Outcome {
	case outcomeOffered:
		t.Offered++
	case outcomeKnown:
		t.Known++
	case outcomeBefore:
		t.Before++
	case outcomeSkipped:
		t.Skipped++
	case outcomeFailed:
		t.Failed++
	}
}

// run works on every item, and reports. It ends early when ctx does, the state cannot be written, or the storefront cannot be reached.
func (b *backfill) run(parent context.Context, items walk) error {
	ctx, stop := context.WithCancelCause(parent)
	defer stop(nil)
	bar, label, done := b.app.counting("items")
	defer done()
	out := &backfillReport{app: b.app}
	queue := make(chan finder)
	results := make(chan *itemReport)
	var workers sync.WaitGroup
	for range b.jobs {
		workers.Go(func() {
			for find := range queue {
				c := find(ctx)
				r, err := b.item(ctx, &c, bar)
				if err != nil {
					stop(err)
				} else if r != nil {
					results <- r
				}
			}
		})
	}
	var broken error // of the source
	go func() {
		defer close(results)
		for find, err := range items {
			if err != nil {
				broken = err
				break
			}
			select {
			case queue <- find:
				continue
			case <-ctx.Done():
			}
			break
		}
		close(queue)
		workers.Wait()
	}()
	var failed error
	for r := range results {
		if failed == nil {
			if failed = out.add(r); failed != nil {
				stop(failed)
			}
		}
		label(fmt.Sprintf("%d items, %d failed", out.totals.Items, out.totals.Failed))
	}
	done()
	cause := context.Cause(ctx)
	out.totals.Complete = cause == nil && broken == nil
	if err := out.end(b.state.path); err != nil {
		return err
	}
	switch {
	case parent.Err() != nil:
		return parent.Err()
	case cause != nil:
		return cause
	case broken != nil:
		return &exitError{exitFailure, broken, "what was done is kept: run it again"}
	case out.totals.Failed > 0:
		return &exitError{exitPartly, fmt.Errorf("%d of %d items failed", out.totals.Failed, out.totals.Items),
			"the report says why; run it again to try them again"}
	}
	return nil
}

// item does what there is to do for one item. The error is one that ends the run; nil and nil mean that the run has ended.
func (b *backfill) item(ctx context.Context, c *candidate, bar io.Writer) (*itemReport, error) {
	r := &itemReport{Item: c.name}
	err := b.process(ctx, c, r, bar)
	if ctx.Err() != nil {
		return nil, nil
	}
	var (
		bad     *itemError
		failure *capabilities.Failure
		fatal   *fatalError
	)
	switch {
	case err == nil:
	case errors.As(err, &fatal):
		return nil, fatal.err
	case errors.Is(err, piece.ErrEmpty):
		r.Outcome, r.Error = outcomeSkipped, &itemError{"Empty", "the smallest piece holds one byte"}
	case errors.As(err, &bad):
		r.Outcome, r.Error = outcomeFailed, bad
	case errors.As(err, &failure):
		r.Outcome, r.Error = outcomeFailed, &itemError{failure.Name, failure.Message}
	default:
		// What is wrong may be with the item, or with the storefront, which everything that follows would fail by too.
		if asked := b.getJSON(ctx, "/version", new(struct{})); asked != nil {
			return nil, &exitError{exitFailure, fmt.Errorf("the storefront cannot be reached any more: %w", asked), "what was done is kept: run it again"}
		}
		r.Outcome, r.Error = outcomeFailed, &itemError{"StorefrontFailed", err.Error()}
	}
	return r, nil
}

// fatalError ends a run.
type fatalError struct{ err error }

func (e *fatalError) Error() string { return e.err.Error() }
func (e *fatalError) Unwrap() error { return e.err }

func (b *backfill) process(ctx context.Context, c *candidate, r *itemReport, bar io.Writer) error {
	if c.wrong != nil {
		return c.wrong
	}
	h, looked, done := b.state.lookup(c)
	if done {
		r.Outcome = outcomeBefore
		return nil
	}
	if !looked {
		var err error
		h, err = b.look(ctx, c, bar)
		if err != nil {
			return err
		}
		r.read = h.size
		if err := b.state.found(c, h); err != nil {
			return &fatalError{err}
		}
	}
	r.Size, r.Content, r.Piece = h.size, h.content.String(), h.piece.String()
	task, err := b.bring(ctx, c, h, r)
	if err != nil {
		return err
	}
	if err := b.state.finish(c, h, task); err != nil {
		return &fatalError{err}
	}
	return nil
}

// look reads an item once and returns what is in it.
func (b *backfill) look(ctx context.Context, c *candidate, bar io.Writer) (hashedContent, error) {
	body, err := c.open(ctx)
	if err != nil {
		return hashedContent{}, unreadable(err)
	}
	defer body.Close()
	found, err := piece.HashReader(ctx, io.TeeReader(body, bar), piece.WithWorkers(max(1, runtime.GOMAXPROCS(0)/b.jobs)))
	switch {
	case errors.Is(err, piece.ErrEmpty):
		return hashedContent{}, err
	case errors.Is(err, piece.ErrTooLarge):
		return hashedContent{}, &itemError{capabilities.PieceTooLarge, err.Error()}
	case err != nil:
		return hashedContent{}, unreadable(err)
	}
	content, err := rawContent(found)
	if err != nil {
		return hashedContent{}, err
	}
	h := hashedContent{content, found.Piece, found.Size}
	if c.content.Defined() {
		if string(c.content.Hash()) != string(content.Hash()) {
			return h, &itemError{nameMismatch, fmt.Sprintf("it is said to be %s, its %d bytes are %s", c.content, found.Size, content)}
		}
		h.content = c.content
	}
	return h, nil
}

func unreadable(err error) error {
	if bad := (*itemError)(nil); errors.As(err, &bad) {
		return bad
	}
	return &itemError{nameUnreadable, err.Error()}
}

// bring makes sure that the storefront knows the piece, and can read the content. The task is that of the offer, if there was one to make.
func (b *backfill) bring(ctx context.Context, c *candidate, h hashedContent, r *itemReport) (task cid.Cid, err error) {
	var known *capabilities.PieceStatus
	if err := b.persist(ctx, func() (err error) { known, err = b.known(ctx, h); return err }); err != nil {
		return task, err
	}
	if known != nil {
		r.Outcome, r.State, r.Task = outcomeKnown, known.State, known.Tasks["filecoin/offer"]
		if known.State == "invalid" || known.State == "failed" {
			return task, &itemError{"OfferFailed", fmt.Sprintf("it was offered, and is %s: %s", known.State, known.Reason)}
		}
		return task, nil
	}
	if b.upload && !c.held {
		if err := b.persist(ctx, func() error { return b.place(ctx, c, h, r) }); err != nil {
			return task, err
		}
	}
	claimed := ""
	if !b.upload {
		claimed = c.url // the storefront can bring it into its custody from there
	}
	if err := b.persist(ctx, func() (err error) { task, _, err = b.offer(ctx, h.content, h.piece, claimed); return err }); err != nil {
		return task, err
	}
	r.Outcome, r.Task = outcomeOffered, task.String()
	return task, nil
}

// known returns where the pair stands at the storefront; nil if it is not known there, or has to be offered again.
func (b *backfill) known(ctx context.Context, h hashedContent) (*capabilities.PieceStatus, error) {
	var s capabilities.Status
	err := b.getJSON(ctx, "/status/"+h.piece.String(), &s)
	if errors.Is(err, capabilities.ErrNoReceipt) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, p := range s.Pieces {
		content, err := cid.Parse(p.Content)
		// The bytes count: others may have offered them by a CID with another codec.
		if err == nil && string(content.Hash()) == string(h.content.Hash()) && p.State != "expired" {
			return &p, nil
		}
	}
	return nil, nil
}

// place stores the content at the storefront, unless it can read it there already.
func (b *backfill) place(ctx context.Context, c *candidate, h hashedContent, r *itemReport) error {
	held, err := b.holds(ctx, h.content)
	if err != nil || held {
		return err
	}
	r.Stored, err = b.putBlob(ctx, h.content, h.size, func() (io.ReadCloser, error) {
		body, err := c.open(ctx)
		if err != nil {
			return nil, unreadable(err)
		}
		return body, nil
	})
	return err
}

// persist repeats what fails for a reason that may pass.
func (b *backfill) persist(ctx context.Context, do func() error) error {
	const attempts = 4
	pause := b.pause
	for n := 1; ; n++ {
		err := do()
		var (
			failure     *capabilities.Failure
			bad         *itemError
			exit        *exitError
			unavailable *capabilities.Unavailable
		)
		wait := pause
		if errors.As(err, &unavailable) {
			wait = max(wait, min(unavailable.RetryAfter, 30*time.Second))
		}
		if err == nil || n == attempts || errors.As(err, &failure) || errors.As(err, &bad) || errors.As(err, &exit) ||
			unavailable != nil && unavailable.Invalid {
			if exit != nil {
				return &fatalError{err}
			}
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause *= 2
	}
}

// shownFailures bounds how many failures the text form lists.
const shownFailures = 100

// backfillReport tells what became of each item: as JSON at once, so that a long run takes no memory; as text the failures, at the end.
type backfillReport struct {
	app    *app
	totals backfillTotals
	failed []*itemReport
}

func (o *backfillReport) add(r *itemReport) error {
	o.totals.add(r)
	if !o.app.json {
		if r.Error != nil && len(o.failed) < shownFailures {
			o.failed = append(o.failed, r)
		}
		return nil
	}
	before := ",\n    "
	if o.totals.Items == 1 {
		before = "{\n  \"items\": [\n    "
	}
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(o.app.stdout, "%s%s", before, line); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}

func (o *backfillReport) end(state string) error {
	if o.app.json {
		before := "\n  ],"
		if o.totals.Items == 0 {
			before = "{\n  \"items\": [],"
		}
		totals, err := json.Marshal(o.totals)
		if err != nil {
			return err
		}
		name, err := json.Marshal(state)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(o.app.stdout, "%s\n  \"totals\": %s,\n  \"state\": %s\n}\n", before, totals, name); err != nil {
			return fmt.Errorf("writing the report: %w", err)
		}
		return nil
	}
	out := o.app.stdout
	for _, r := range o.failed {
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\n", r.Outcome, printable(r.Item), printable(r.Error.Name), printable(r.Error.Message))
	}
	t := o.totals
	if more := t.Failed + t.Skipped - len(o.failed); more > 0 {
		fmt.Fprintf(out, "and %d more: --json lists them all\n", more)
	}
	fmt.Fprintf(out, "%d items: %d offered, %d known, %d done before, %d skipped, %d failed; %d bytes read\n",
		t.Items, t.Offered, t.Known, t.Before, t.Skipped, t.Failed, t.Bytes)
	return nil
}
