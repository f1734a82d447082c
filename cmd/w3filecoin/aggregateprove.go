package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"

	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/capabilities"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// Formats of proofs.
const (
	formatDAGJSON = "dag-json"
	formatDAGCBOR = "dag-cbor"
)

func newAggregateProveCommand(a *app) *cobra.Command {
	var (
		from, out, format string
		all               bool
	)
	cmd := &cobra.Command{
		Use:   "prove PIECE... --from FILE",
		Short: "Prove that pieces are in an aggregate",
		Long: `Build the aggregate that a file lists the pieces of, as aggregate build --json prints it, and print the proof that a piece is in it:
{piece, aggregate, inclusion}, as a piece/accept receipt has it. For several pieces, or --all of them, it is a list, in the order of the
aggregate. A list in a file without the name of its aggregate is taken in the order of the list, in the smallest deal that holds it.

Exits with 4 if a piece is not in the aggregate.`,
		Example: `  w3filecoin aggregate prove bafkzcib… --from aggregate.json
  w3filecoin aggregate prove --all --from aggregate.json --format dag-cbor -o proofs.cbor`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case from == "":
				return usage("--from aggregate.json, as w3filecoin aggregate build --json prints it", "--from is missing")
			case all == (len(args) > 0):
				return usage("w3filecoin aggregate prove PIECE... or --all", "name the pieces to prove, or --all of them")
			case format != formatDAGJSON && format != formatDAGCBOR:
				return usage(formatDAGJSON+" or "+formatDAGCBOR, "--format: %q is none", format)
			}
			if _, _, terminal := terminalSize(a.stdout); terminal && format == formatDAGCBOR && out == "" {
				return usage("name a file with -o", "a terminal cannot show %s", formatDAGCBOR)
			}
			wanted := map[piece.Link]bool{}
			for _, text := range args {
				p, err := piece.Parse(text)
				if err != nil {
					return usage("it looks like bafkzcib…, copied whole", "%v", err)
				}
				wanted[p] = true
			}
			list, err := a.readPieces(cmd.Context(), []string{from})
			if err != nil {
				return err
			}
			built, err := list.rebuild()
			if err != nil {
				return err
			}
			for p := range wanted {
				if _, ok := built.EntryOf(p); !ok {
					return &exitError{exitUnknown, fmt.Errorf("%s is not in the aggregate %s", p, built.Link()), ""}
				}
			}
			proofs, n := built.Proofs(), built.Len()
			if !all {
				proofs, n = proofsOf(built, wanted), len(wanted)
			}
			write := func(w io.Writer) error { return writeProofs(w, built.Link(), proofs, n, all || n > 1, format) }
			if out == "" {
				return write(a.stdout)
			}
			if err := a.saveProofs(out, write); err != nil {
				return err
			}
			saved := savedProofs{File: out, Aggregate: built.Link().String(), Proofs: n}
			return a.result(saved, func(w io.Writer) { fmt.Fprintf(w, "saved %s: %d proofs for %s\n", out, n, saved.Aggregate) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "file that lists the pieces of the aggregate")
	f.BoolVar(&all, "all", false, "prove all pieces of the aggregate")
	f.StringVarP(&out, "output", "o", "", "file to write; one that is there is replaced")
	f.StringVar(&format, "format", formatDAGJSON, "of the proofs: dag-json or dag-cbor")
	return cmd
}

type savedProofs struct {
	File      string `json:"file"`
	Aggregate string `json:"aggregate"`
	Proofs    int    `json:"proofs"`
}

// rebuild builds the aggregate of a list, and checks that it is the one that the list names.
func (l *pieceList) rebuild() (*segment.Aggregate, error) {
	if !l.aggregate.Defined() {
		return l.build()
	}
	built, err := segment.Rebuild(l.aggregate, l.pieces)
	if err != nil {
		return nil, &exitError{exitUnproven, err, "pieces have to be listed in the order in which they were placed"}
	}
	return built, nil
}

// proofsOf yields the proofs of some pieces, in the order of the aggregate.
func proofsOf(built *segment.Aggregate, wanted map[piece.Link]bool) iter.Seq2[piece.Link, segment.InclusionProof] {
	return func(yield func(piece.Link, segment.InclusionProof) bool) {
		for p, proof := range built.Proofs() {
			if wanted[p] && !yield(p, proof) {
				return
			}
		}
	}
}

// writeProofs writes n proofs one after the other, as a list or the only one as itself.
func writeProofs(w io.Writer, aggregate piece.Link, proofs iter.Seq2[piece.Link, segment.InclusionProof], n int, list bool, format string) error {
	out := bufio.NewWriter(w)
	var b []byte
	write := func(p []byte) {
		_, _ = out.Write(p) // an error stays until Flush
	}
	text := format == formatDAGJSON
	if list && text {
		write([]byte("["))
	} else if list {
		write(cbor.AppendArray(nil, n))
	}
	first := true
	for p, proof := range proofs {
		if !first && text {
			write([]byte(",\n"))
		}
		first = false
		encoded := capabilities.Encode(&piececap.AcceptOK{Piece: p, Aggregate: aggregate, Inclusion: capabilities.Inclusion{InclusionProof: proof}})
		if text {
			var err error
			if b, err = cbor.AppendJSON(b[:0], encoded, cbor.Go); err != nil {
				return fmt.Errorf("encoding the proof of %s: %w", p, err)
			}
			encoded = b
		}
		if _, err := out.Write(encoded); err != nil {
			return fmt.Errorf("writing proofs: %w", err)
		}
	}
	if list && text {
		write([]byte("]"))
	}
	if text {
		write([]byte("\n"))
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("writing proofs: %w", err)
	}
	return nil
}

// saveProofs writes to a file, and shows how far it has come.
func (a *app) saveProofs(file string, write func(io.Writer) error) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return usage("name a file that can be written", "saving proofs: %v", err)
	}
	bar, done := a.progress(-1, "proofs")
	defer done()
	return errors.Join(write(io.MultiWriter(f, bar)), f.Close())
}
