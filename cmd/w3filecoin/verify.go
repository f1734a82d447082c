package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/roles/client"
)

func newVerifyCommand(a *app) *cobra.Command {
	var keys []string
	cmd := &cobra.Command{
		Use:   "verify FILE...",
		Short: "Check saved chains of receipts, offline",
		Long: `Check chains of receipts as w3filecoin offer --save, demo and receipt --chain -o save them, without asking anybody: every signature, that
each receipt was issued by the role that its task was for, that each task was linked by the receipt before it and is about the same
piece, that the inclusion proof leads from the piece to the aggregate, and that the deal is the one that the dealer reported.

Services that sign as a did:web need their key named with --key, from a source that you trust: nothing is looked up.

Exits with 3 if a chain does not hold or has not ended, 5 if all hold and one proves that its offer failed.`,
		Example: `  w3filecoin verify chain.car --key did:web:storefront.example=did:key:z6Mk…`,
		Args:    arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, files []string) error {
			known, err := parseKeys(keys)
			if err != nil {
				return err
			}
			var list []shownProof
			for _, file := range files {
				p, err := verifyFile(cmd.Context(), file, known)
				if err != nil {
					return err
				}
				list = append(list, p)
			}
			err = a.result(list, func(w io.Writer) {
				for i, p := range list {
					if i > 0 {
						fmt.Fprintln(w)
					}
					p.text(w)
				}
			})
			if err != nil {
				return err
			}
			return proofVerdict(list)
		},
	}
	addKeyFlag(cmd, &keys)
	return cmd
}

// shownProof is what one file proves.
type shownProof struct {
	File   string `json:"file"`
	Proven bool   `json:"proven"`
	// Reason says why it is not.
	Reason     string `json:"reason,omitempty"`
	Offer      string `json:"offer,omitempty"`
	Agent      string `json:"agent,omitempty"`
	Storefront string `json:"storefront,omitempty"`
	Compute    string `json:"compute,omitempty"`
	// Vouched: compute is a storage node, which keeps the content. Also are those who computed the same.
	Vouched    bool     `json:"vouched,omitempty"`
	Also       []string `json:"also,omitempty"`
	Aggregator string   `json:"aggregator,omitempty"`
	Dealer     string   `json:"dealer,omitempty"`
	Content    string   `json:"content,omitempty"`
	Piece      string   `json:"piece,omitempty"`
	Aggregate  string   `json:"aggregate,omitempty"`
	Deal       uint64   `json:"deal,omitempty"`
	// Failure is how the offer ended, if not in a deal.
	Failure *shownFailure `json:"failure,omitempty"`

	err    error
	proven *client.Proven
}

type shownFailure struct {
	Name     string `json:"name"`
	Message  string `json:"message"`
	Computed string `json:"computed,omitempty"` // the piece that the content's bytes give
}

// verifyFile reads and checks one chain. The error is that the file cannot be read; that it proves nothing is a result.
func verifyFile(ctx context.Context, file string, keys capabilities.Keys) (shownProof, error) {
	s := shownProof{File: file}
	b, err := os.ReadFile(file)
	if err != nil {
		return s, usage("name the file of a chain", "reading the chain: %v", err)
	}
	chain, err := client.DecodeChain(b)
	var p *client.Proven
	if err == nil {
		s.Offer = chain.Offer.String()
		p, err = chain.Verify(ctx, keys)
	}
	if cerr := ctx.Err(); cerr != nil {
		return s, cerr
	}
	if err != nil {
		s.err, s.Reason = err, err.Error()
		return s, nil
	}
	s.Proven, s.proven = true, p
	s.Agent, s.Storefront, s.Content, s.Piece = p.Agent.String(), p.Storefront.String(), p.Content.String(), p.Piece.String()
	if f := p.Failure; f != nil {
		s.Failure = &shownFailure{Name: f.Name, Message: f.Message}
		var m capabilities.Mismatch
		if f.ReadDetails(&m) == nil {
			s.Failure.Computed = m.Computed.String()
		}
		return s, nil
	}
	s.Vouched = p.Vouched
	for _, also := range p.Also {
		s.Also = append(s.Also, also.String())
	}
	s.Compute, s.Aggregator, s.Dealer = p.Compute.String(), p.Aggregator.String(), p.Dealer.String()
	s.Aggregate, s.Deal = p.Aggregate.String(), p.Deal.DealID
	return s, nil
}

// proofVerdict is the exit code for all files: unproven goes before failed.
func proofVerdict(list []shownProof) error {
	unproven, failed := 0, 0
	var first, failure error
	for _, p := range list {
		switch {
		case !p.Proven:
			unproven++
			if first == nil {
				first = fmt.Errorf("%s: %w", p.File, p.err)
			}
		case p.Failure != nil:
			failed++
			if failure == nil {
				failure = fmt.Errorf("%s: the offer ended in %s", p.File, p.Failure.Name)
			}
		}
	}
	switch {
	case unproven > 0:
		hint := ""
		if errors.Is(first, roles.ErrNoKey) {
			hint = keyHint
		}
		if unproven > 1 {
			first = fmt.Errorf("%d of %d chains are not proven, the first: %w", unproven, len(list), first)
		}
		return &exitError{exitUnproven, first, hint}
	case failed > 0:
		return &exitError{exitRefused, failure, ""}
	}
	return nil
}

func (s shownProof) text(w io.Writer) {
	fmt.Fprintln(w, s.File)
	if !s.Proven {
		writeRows(w, "  ", []row{{"NOT PROVEN", s.Reason}})
		return
	}
	p := s.proven
	rows := []row{{"offer", s.Offer}, {"content", s.Content}, {"piece", s.Piece + paddedBytes(p.Piece)},
		{"agent", s.Agent + " offered it"}, {"storefront", s.Storefront + " took it on"}}
	if f := s.Failure; f != nil {
		rows = append(rows, row{"FAILED", f.Name + ": " + f.Message})
		writeRows(w, "  ", rows)
		fmt.Fprintln(w, "  proven: the storefront signed that the offer ended so")
		return
	}
	computed := row{"compute", s.Compute + " computed the piece from the content"}
	if s.Vouched {
		computed = row{"storage node", s.Compute + " keeps the content and vouches for the piece"}
	}
	rows = append(rows, computed)
	for _, also := range s.Also {
		rows = append(rows, row{"compute", also + " computed the same"})
	}
	writeRows(w, "  ", append(rows,
		row{"aggregator", s.Aggregator + " put the piece into the aggregate"},
		row{"aggregate", s.Aggregate + paddedBytes(p.Aggregate)},
		row{"inclusion", "the piece is in the aggregate, by proof"},
		row{"dealer", s.Dealer + " reported the deal"},
		row{"deal", fmt.Sprint(s.Deal)}))
	fmt.Fprintf(w, `  proven: every signature, issuer and link from the offer to the deal, and the inclusion
  not proven here: that these DIDs are the services you mean, and that deal %d is on chain, for which there is the dealer's word;
  a chain node can tell: its deal has to have the piece CID %s
`, s.Deal, p.Aggregate.V1())
}

func paddedBytes(l piece.Link) string { return fmt.Sprintf(" (%d padded bytes)", l.PaddedSize()) }
