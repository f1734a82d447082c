package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strconv"

	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/ipld/go-ipld-prime/codec/dagjson"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/capabilities"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
	"github.com/storacha/w3filecoin/wire/cbor"
)

func newAggregateVerifyCommand(a *app) *cobra.Command {
	var named, index, proofs string
	cmd := &cobra.Command{
		Use:   "verify FILE...",
		Short: "Verify aggregates and inclusion proofs",
		Long: `Verify files, each by what it holds: proofs, as aggregate prove writes them, or the pieces of a whole aggregate, as aggregate build --json
prints them. A proof has to lead from its piece to the aggregate that it names; pieces have to make, in their order, the aggregate that is
named with them. A file that names none needs --aggregate.

With --index and --proofs the rest of one aggregate is verified with its pieces: that the index is the one that its deal ends with, byte by
byte, and that every piece has its proof.

Exits with 3 if something does not hold.`,
		Example: `  w3filecoin aggregate verify proof.json --aggregate bafkzcib…
  w3filecoin aggregate verify aggregate.json --index index.bin --proofs proofs.cbor`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, files []string) error {
			var want piece.Link
			if named != "" {
				var err error
				if want, err = piece.Parse(named); err != nil {
					return usage("it looks like bafkzcib…, copied whole", "--aggregate: %v", err)
				}
			}
			if len(files) > 1 && (index != "" || proofs != "") {
				return usage("verify one aggregate at a time", "--index and --proofs are of one aggregate, %d files are named", len(files))
			}
			list := []shownInclusion{}
			for _, file := range files {
				s, err := a.verifyAggregateFile(cmd.Context(), file, want, index, proofs)
				if err != nil {
					return err
				}
				list = append(list, s)
			}
			err := a.result(list, func(w io.Writer) {
				for _, s := range list {
					s.text(w)
				}
			})
			if err != nil {
				return err
			}
			return inclusionVerdict(list)
		},
	}
	f := cmd.Flags()
	f.StringVar(&named, "aggregate", "", "the aggregate that every file has to be about")
	f.StringVar(&index, "index", "", "file of the aggregate's index, as aggregate build --index writes it")
	f.StringVar(&proofs, "proofs", "", "file of the proofs of all its pieces")
	return cmd
}

// shownInclusion is what one file proves.
type shownInclusion struct {
	File   string `json:"file"`
	Kind   string `json:"kind"` // "aggregate" or "proofs"
	Proven bool   `json:"proven"`
	// Reason says why it is not.
	Reason    string `json:"reason,omitempty"`
	Aggregate string `json:"aggregate,omitempty"`
	// Pieces are in the aggregate: all of its pieces, or those with a proof in the file.
	Pieces int    `json:"pieces,omitempty"`
	Piece  string `json:"piece,omitempty"` // if it is one
	// Index and Proofs are the files that were verified with it.
	Index  string `json:"index,omitempty"`
	Proofs string `json:"proofs,omitempty"`

	err error
}

// verifyAggregateFile verifies one file. The error is that it cannot be read; that it proves nothing is a result.
func (a *app) verifyAggregateFile(ctx context.Context, file string, want piece.Link, index, proofs string) (shownInclusion, error) {
	b, err := a.readAll(ctx, file)
	if err != nil {
		return shownInclusion{}, err
	}
	if holdsProofs(b) {
		if index != "" || proofs != "" {
			return shownInclusion{}, usage("name the file with the pieces of the aggregate first",
				"--index and --proofs are verified with the pieces, %s holds proofs", file)
		}
		return verifyProofs(file, b, want), nil
	}
	s := shownInclusion{File: file, Kind: "aggregate"}
	list, err := decodePieces(b)
	if err != nil {
		return s.fail(err), nil
	}
	if !list.aggregate.Defined() {
		if !want.Defined() {
			return s, usage("say which it has to be: --aggregate bafkzcib…", "%s names no aggregate", file)
		}
		list.aggregate = want
	}
	if want.Defined() && want != list.aggregate {
		return s.fail(fmt.Errorf("it is about the aggregate %s, not %s", list.aggregate, want)), nil
	}
	var indexReader io.Reader
	if index != "" {
		f, err := os.Open(index)
		if err != nil {
			return s, usage("name a file that can be read", "opening the index: %v", err)
		}
		defer f.Close()
		indexReader = f
	}
	var decoded *inclusionFile
	var given iter.Seq2[piece.Link, segment.InclusionProof]
	if proofs != "" {
		b, err := a.readAll(ctx, proofs)
		if err != nil {
			return s, err
		}
		decoded = &inclusionFile{b: b, aggregate: list.aggregate}
		given = decoded.all()
	}
	_, err = segment.VerifyAggregate(list.aggregate, list.pieces, indexReader, given)
	if decoded != nil && decoded.err != nil {
		err = fmt.Errorf("%s: %w", proofs, decoded.err)
	}
	if err != nil {
		return s.fail(err), nil
	}
	s.Proven, s.Aggregate, s.Pieces = true, list.aggregate.String(), len(list.pieces)
	s.Index, s.Proofs = index, proofs
	return s, nil
}

func (s shownInclusion) fail(err error) shownInclusion {
	s.err, s.Reason = err, err.Error()
	return s
}

// verifyProofs verifies the proofs of a file, which are all of one aggregate.
func verifyProofs(file string, b []byte, want piece.Link) shownInclusion {
	s := shownInclusion{File: file, Kind: "proofs"}
	proofs := &inclusionFile{b: b, aggregate: want}
	next, stop := iter.Pull2(proofs.all())
	defer stop()
	first, proof, ok := next() // says which aggregate it is, if it is not said
	err := proofs.err
	if ok {
		err = segment.VerifyAll(proofs.aggregate, func(yield func(piece.Link, segment.InclusionProof) bool) {
			for p := first; ok; p, proof, ok = next() {
				if !yield(p, proof) {
					return
				}
				s.Pieces++
			}
		})
		err = errors.Join(err, proofs.err)
	}
	if err == nil && s.Pieces == 0 {
		err = errors.New("it holds no proof")
	}
	if err != nil {
		s.Pieces = 0
		return s.fail(err)
	}
	s.Proven, s.Aggregate = true, proofs.aggregate.String()
	if s.Pieces == 1 {
		s.Piece = first.String()
	}
	return s
}

// holdsProofs tells proofs from lists of pieces. Proofs are DAG-CBOR maps or lists, or JSON with an "inclusion" in its first object.
func holdsProofs(b []byte) bool {
	if len(b) > 0 && b[0]>>5 >= 4 {
		return true
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if trimmed := bytes.TrimSpace(b); len(trimmed) > 0 && trimmed[0] == '[' {
		if _, err := d.Token(); err != nil {
			return false
		}
	}
	var first struct {
		Inclusion json.RawMessage `json:"inclusion"`
	}
	return d.Decode(&first) == nil && first.Inclusion != nil
}

// inclusionFile is the content of a file of proofs.
type inclusionFile struct {
	b         []byte
	aggregate piece.Link // that all proofs have to name; if undefined, that of the first proof
	err       error      // why there are no more of them
}

// all yields the proofs of a file. If it ends early, err says why.
func (f *inclusionFile) all() iter.Seq2[piece.Link, segment.InclusionProof] {
	return func(yield func(piece.Link, segment.InclusionProof) bool) {
		i := 0
		each := func(encoded []byte) bool {
			var ok piececap.AcceptOK
			if err := capabilities.Decode(encoded, &ok); err != nil {
				f.err = fmt.Errorf("proof %d: %w", i, err)
				return false
			}
			if !f.aggregate.Defined() {
				f.aggregate = ok.Aggregate
			}
			if ok.Aggregate != f.aggregate {
				f.err = fmt.Errorf("proof %d is for the aggregate %s, not %s", i, ok.Aggregate, f.aggregate)
				return false
			}
			i++
			return yield(ok.Piece, ok.Inclusion.InclusionProof)
		}
		var err error
		if len(f.b) > 0 && f.b[0]>>5 >= 4 {
			err = eachCBOR(f.b, each)
		} else {
			err = eachJSON(f.b, each)
		}
		if err != nil {
			f.err = err
		}
	}
}

// eachCBOR passes on the value, or the elements of the list, that b is.
func eachCBOR(b []byte, yield func([]byte) bool) error {
	r := cbor.NewReader(b)
	n := 1
	if r.Peek() == cbor.Array {
		n = r.Array()
	}
	for range n {
		if raw := r.Raw(); r.Err() != nil || !yield(raw) {
			return r.Err()
		}
	}
	return r.Done()
}

// eachJSON passes on the same of DAG-JSON, as DAG-CBOR.
func eachJSON(b []byte, yield func([]byte) bool) error {
	d := json.NewDecoder(bytes.NewReader(b))
	list := bytes.HasPrefix(bytes.TrimSpace(b), []byte("["))
	if list {
		if _, err := d.Token(); err != nil {
			return err
		}
	}
	for i := 0; d.More() && (list || i == 0); i++ {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return fmt.Errorf("proof %d: %w", i, err)
		}
		node := basicnode.Prototype.Any.NewBuilder()
		if err := dagjson.Decode(node, bytes.NewReader(raw)); err != nil {
			return fmt.Errorf("proof %d: %w", i, err)
		}
		var encoded bytes.Buffer
		if err := dagcbor.Encode(node.Build(), &encoded); err != nil {
			return fmt.Errorf("proof %d: %w", i, err)
		}
		if !yield(encoded.Bytes()) {
			return nil
		}
	}
	if list {
		if _, err := d.Token(); err != nil {
			return fmt.Errorf("the list of proofs does not end: %w", err)
		}
	}
	if d.More() {
		return errors.New("something follows the proofs")
	}
	return nil
}

// inclusionVerdict is the exit code for all files.
func inclusionVerdict(list []shownInclusion) error {
	var first error
	unproven := 0
	for _, s := range list {
		if !s.Proven {
			unproven++
			if first == nil {
				first = fmt.Errorf("%s: %w", s.File, s.err)
			}
		}
	}
	if unproven > 1 {
		first = fmt.Errorf("%d of %d files do not hold, the first: %w", unproven, len(list), first)
	}
	if first != nil {
		return &exitError{exitUnproven, first, ""}
	}
	return nil
}

func (s shownInclusion) text(w io.Writer) {
	fmt.Fprintln(w, s.File)
	if !s.Proven {
		writeRows(w, "  ", []row{{"NOT PROVEN", s.Reason}})
		return
	}
	claim := "the aggregate is of these pieces, in this order"
	if s.Kind == "proofs" {
		claim = "every piece is in the aggregate and in its index"
	}
	if s.Index != "" {
		claim += "; " + s.Index + " is its index"
	}
	if s.Proofs != "" {
		claim += "; " + s.Proofs + " proves each of them"
	}
	writeRows(w, "  ", []row{{"aggregate", s.Aggregate}, {"piece", s.Piece}, {"pieces", strconv.Itoa(s.Pieces)}, {"proven", claim}})
}
