package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/wire"
)

func newDemoCommand(a *app) *cobra.Command {
	var (
		save    string
		keep    string
		level   string
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "demo [FILE...]",
		Short: "Run the whole pipeline on this machine, with a simulated chain and storage provider",
		Long: `Start all roles, a SIMULATED chain and a SIMULATED storage provider on ports of this machine; store and offer the files (or one that is
made up), follow each to its deal, and verify the chain of signed receipts. Everything is the real thing but Filecoin itself: no data
leaves this machine.

Aggregates close after two seconds and may be as small as 4 MiB. Where the files are too small for that, pieces called "filler" are offered
beside them.`,
		RunE: func(cmd *cobra.Command, files []string) error {
			l, err := parseLevel(level)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			d := &demo{app: a, save: save}
			err = d.run(ctx, files, keep, func(cfg Config) (*node, error) { return build(cfg, a.logger(l)) })
			if errors.Is(err, context.DeadlineExceeded) {
				return &exitError{exitUnfinished, fmt.Errorf("the demo did not end within %s", timeout), "allow more with --timeout"}
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&save, "save", ".", "directory for the chains of receipts")
	f.StringVar(&keep, "data", "", "keep the state in this directory; a temporary one if empty")
	f.StringVar(&level, "log", "error", "log level: debug, info, warn, error")
	f.DurationVar(&timeout, "timeout", 15*time.Minute, "give up after this long")
	return cmd
}

// demo is one run of the demonstration.
type demo struct {
	app     *app
	save    string
	began   time.Time
	offerer *offerer
	// aggregator is where fillers are asked for.
	aggregator *offerer
	fillers    int
	filled     time.Time
}

// demoConfig is a pipeline in a hurry, on ports of the machine's choice.
func demoConfig(data string) Config {
	c := defaultConfig()
	c.Data = data
	for _, role := range allRoles {
		c.identity(role).Listen = "127.0.0.1:0"
	}
	c.Devnet.Enabled, c.Devnet.Listen = true, "127.0.0.1:0"
	c.Devnet.Epoch = Duration(100 * time.Millisecond)
	c.Aggregator.Sizes, c.Dealer.Sizes = nil, nil
	for size := uint64(4 << 20); size <= 32<<30; size *= 2 {
		c.Aggregator.Sizes = append(c.Aggregator.Sizes, Size(size))
		c.Dealer.Sizes = append(c.Dealer.Sizes, Size(size))
	}
	c.Aggregator.Budget = Duration(2 * time.Second)
	c.Aggregator.Pull = Duration(5 * time.Second)
	c.Storefront.Pull = Duration(5 * time.Second)
	c.Storefront.ContentRetry = Duration(100 * time.Millisecond)
	c.Dealer.Poll = Duration(50 * time.Millisecond)
	c.DealTracker.Poll = Duration(100 * time.Millisecond)
	c.DealTracker.Confidence = "finalized"
	return c
}

func (d *demo) run(ctx context.Context, files []string, data string, build func(Config) (*node, error)) (err error) {
	d.began = time.Now()
	if data == "" {
		if data, err = os.MkdirTemp("", "w3filecoin-demo-"); err != nil {
			return err
		}
		defer os.RemoveAll(data)
	}
	n, err := build(demoConfig(data))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- n.run(running) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()
	if !d.app.json {
		d.app.announce(n)
	}

	agent, err := wire.GenerateSigner(rand.Reader)
	if err != nil {
		return err
	}
	if d.offerer, err = dialStorefront(ctx, n.cfg.url(storefrontRole), agent); err != nil {
		return err
	}
	d.offerer.app = d.app
	if d.aggregator, err = dialStorefront(ctx, n.cfg.url(aggregatorRole), agent); err != nil {
		return err
	}
	if len(files) == 0 {
		made, err := makeFile(data)
		if err != nil {
			return err
		}
		files = []string{made}
	}
	var offers []offered
	for _, f := range files {
		of, err := d.offerer.offerFile(ctx, f)
		if err != nil {
			return err
		}
		d.say("%s (%d bytes) is piece %s, offered", filepath.Base(f), of.Size, trimmed(of.Piece.String()))
		offers = append(offers, of)
	}
	results, err := d.followAll(ctx, offers)
	if err != nil {
		return err
	}
	return d.report(results)
}

// demoResult is what a demo proves of one file.
type demoResult struct {
	offered
	proven *client.Proven
	chain  string
}

func (d *demo) followAll(ctx context.Context, offers []offered) ([]demoResult, error) {
	var results []demoResult
	for _, of := range offers {
		last := ""
		chain, err := d.offerer.follow(ctx, of, func(s capabilities.Status) error {
			for _, p := range s.Pieces {
				if line := describe(p); line != last && p.Content == of.Content.String() {
					d.say("%s: %s", filepath.Base(of.File), line)
					last = line
				}
				if p.State == "offered" {
					return d.fill(ctx, of)
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("following %s: %w", of.File, err)
		}
		// What is verified is the file, as anybody would read it.
		name := filepath.Join(d.save, "w3filecoin-"+of.Task.String()[len(of.Task.String())-12:]+".car")
		if err := os.WriteFile(name, chain.Encode(), 0o644); err != nil {
			return nil, fmt.Errorf("saving the chain: %w", err)
		}
		saved, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if chain, err = client.DecodeChain(saved); err != nil {
			return nil, err
		}
		proven, err := chain.Verify(ctx, d.offerer.keys)
		if err != nil {
			return nil, fmt.Errorf("verifying the chain of %s: %w", of.File, err)
		}
		results = append(results, demoResult{of, proven, name})
	}
	return results, nil
}

func describe(p capabilities.PieceStatus) string {
	line := p.State
	if p.Reason != "" {
		line += ", " + p.Reason
	}
	if p.Aggregate != "" {
		line += ", aggregate " + trimmed(p.Aggregate)
	}
	if p.Deal != 0 {
		line += fmt.Sprintf(", deal %d", p.Deal)
	}
	return line
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.app.stderr, "%6.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// fill offers made-up pieces if the file's piece is overdue and waits for more volume.
func (d *demo) fill(ctx context.Context, of offered) error {
	if time.Since(d.filled) < 3*time.Second {
		return nil // what was offered is on its way
	}
	var s capabilities.Status
	if err := d.aggregator.getJSON(ctx, "/status/"+of.Piece.String(), &s); err != nil {
		if errors.Is(err, capabilities.ErrNoReceipt) {
			return nil
		}
		return err
	}
	for _, p := range s.Pieces {
		var missing uint64
		if n, _ := fmt.Sscanf(p.Reason, "volume: %d padded bytes", &missing); n != 1 {
			continue
		}
		for missing > 0 && d.fillers < maxFillers {
			const payload = 1 << 20 / 128 * 127 // fills a piece of 1 MiB
			b := make([]byte, payload)
			if _, err := rand.Read(b); err != nil {
				return err
			}
			content, link, err := hashContent(ctx, bytes.NewReader(b))
			if err != nil {
				return err
			}
			if err := d.offerer.store(ctx, content, "filler", bytes.NewReader(b), payload); err != nil {
				return err
			}
			if _, _, err := d.offerer.offer(ctx, content, link, ""); err != nil {
				return err
			}
			d.fillers++
			d.filled = time.Now()
			d.say("filler: piece %s, because the smallest aggregate needs more", trimmed(link.String()))
			missing -= min(missing, link.PaddedSize())
		}
	}
	return nil
}

// maxFillers bounds what a demo makes up.
const maxFillers = 64

// makeFile makes up a file of 5 MB.
func makeFile(dir string) (string, error) {
	f, err := os.CreateTemp(dir, "demo-*.bin")
	if err != nil {
		return "", err
	}
	_, err = io.CopyN(f, rand.Reader, 5_000_000)
	return f.Name(), errors.Join(err, f.Close())
}

func (d *demo) report(results []demoResult) error {
	type shown struct {
		File       string `json:"file"`
		Content    string `json:"content"`
		Piece      string `json:"piece"`
		Offer      string `json:"offer"`
		Chain      string `json:"chain"`
		Agent      string `json:"agent"`
		Storefront string `json:"storefront"`
		Compute    string `json:"compute,omitempty"`
		Aggregator string `json:"aggregator,omitempty"`
		Dealer     string `json:"dealer,omitempty"`
		Aggregate  string `json:"aggregate,omitempty"`
		DealSize   uint64 `json:"dealSize,omitempty"`
		Deal       uint64 `json:"deal,omitempty"`
		Failure    string `json:"failure,omitempty"`
		Simulated  bool   `json:"simulated"`
	}
	var list []shown
	var failed error
	for _, r := range results {
		p := r.proven
		s := shown{File: r.File, Content: r.Content.String(), Piece: r.Piece.String(), Offer: r.Task.String(), Chain: r.chain,
			Agent: p.Agent.String(), Storefront: p.Storefront.String(), Simulated: true}
		if p.Failure != nil {
			s.Failure = p.Failure.Error()
			failed = fmt.Errorf("%s: %w", r.File, p.Failure)
		} else {
			s.Compute, s.Aggregator, s.Dealer = p.Compute.String(), p.Aggregator.String(), p.Dealer.String()
			s.Aggregate, s.DealSize, s.Deal = p.Aggregate.String(), p.Aggregate.PaddedSize(), p.Deal.DealID
		}
		list = append(list, s)
	}
	err := d.app.result(list, func(w io.Writer) {
		for _, s := range list {
			fmt.Fprintf(w, "\n%s\n", filepath.Base(s.File))
			rows := [][2]string{
				{"content", s.Content}, {"piece", s.Piece}, {"offered by", s.Agent}, {"taken by", s.Storefront}, {"computed by", s.Compute},
				{"aggregated by", s.Aggregator}, {"dealt by", s.Dealer}, {"aggregate", s.Aggregate}, {"failure", s.Failure},
			}
			for _, row := range rows {
				if row[1] != "" {
					fmt.Fprintf(w, "  %-14s %s\n", row[0], row[1])
				}
			}
			if s.Deal != 0 {
				fmt.Fprintf(w, "  %-14s %d (simulated), %d padded bytes\n", "deal", s.Deal, s.DealSize)
				fmt.Fprintf(w, "  %-14s every signature, link and inclusion proof from the offer to the deal\n", "verified")
			}
			fmt.Fprintf(w, "  %-14s %s\n", "receipts", s.Chain)
			fmt.Fprintf(w, "  %-14s w3filecoin verify %s\n", "check again", quote(s.Chain))
		}
	})
	return errors.Join(err, failed)
}

func quote(s string) string {
	if strings.ContainsAny(s, " '\"$") {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}
