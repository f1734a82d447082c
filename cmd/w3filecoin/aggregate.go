package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

func newAggregateCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "aggregate",
		Short: "Build aggregates of pieces, prove what is in them, and verify them, offline",
		Args:  arguments(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newAggregateBuildCommand(a), newAggregateProveCommand(a), newAggregateVerifyCommand(a))
	return cmd
}

func newAggregateBuildCommand(a *app) *cobra.Command {
	var (
		size      string
		keepOrder bool
		index     string
	)
	cmd := &cobra.Command{
		Use:   "build FILE|PIECE...",
		Short: "Place pieces in a deal and compute the aggregate",
		Long: `Place pieces in a deal (FRC-0058) and compute the piece CID of the whole. Pieces are piece CIDs of version 2, or files that list them, "-"
for standard input: one CID per line, where "#" begins a comment; or JSON, a list of CIDs, the result of w3filecoin piece --json, or an
object whose "pieces" is such a list. Only the CIDs are needed, no content.

The largest pieces come first, so that no room is lost between them, whatever order they are listed in; --keep-order places them as they
are listed. With --json, the result names every piece with its offset, and is what prove and verify take.`,
		Example: `  w3filecoin piece --json *.car | w3filecoin aggregate build - --json > aggregate.json
  w3filecoin aggregate build pieces.txt --size 32GiB`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := a.readPieces(cmd.Context(), args)
			if err != nil {
				return err
			}
			if size != "" {
				var s Size
				if err := s.UnmarshalText([]byte(size)); err != nil {
					return usage("a power of two up to 64GiB", "--size: %v", err)
				}
				list.dealSize = uint64(s)
			}
			if !keepOrder {
				segment.SortDescending(list.pieces)
			}
			built, err := list.build()
			if err != nil {
				return err
			}
			if index != "" {
				if err := a.saveIndex(index, built); err != nil {
					return err
				}
			}
			shown := showAggregate(built)
			return a.result(shown, shown.text)
		},
	}
	f := cmd.Flags()
	f.StringVar(&size, "size", "", "size of the deal in padded bytes, like 32GiB; the smallest that holds the pieces if empty")
	f.BoolVar(&keepOrder, "keep-order", false, "place pieces in the order in which they are listed")
	f.StringVar(&index, "index", "", "file to write the index to, as it is stored at the end of the deal")
	return cmd
}

// pieceList is a list of pieces, and what is said with it.
type pieceList struct {
	pieces    []piece.Link
	aggregate piece.Link // undefined if none is named
	dealSize  uint64     // 0 if none is named
}

// build aggregates the pieces in their order, in the smallest deal that holds them unless a size is named. What is wrong with them is the
// caller's error.
func (l *pieceList) build() (*segment.Aggregate, error) {
	if l.dealSize == 0 {
		for l.dealSize = piece.MinPaddedSize; l.dealSize < piece.MaxPaddedSize; l.dealSize *= 2 {
			_, err := segment.Place(l.pieces, l.dealSize)
			if !errors.Is(err, segment.ErrDoesNotFit) && !errors.Is(err, segment.ErrTooManyPieces) {
				break
			}
		}
	}
	built, err := segment.Build(l.dealSize, l.pieces)
	switch {
	case err == nil:
		return built, nil
	case errors.Is(err, segment.ErrDuplicate):
		return nil, usage("an aggregate holds a piece once: list it once", "%v", err)
	case errors.Is(err, segment.ErrNoPieces):
		return nil, usage("list at least one piece CID", "%v", err)
	case errors.Is(err, segment.ErrDoesNotFit), errors.Is(err, segment.ErrTooManyPieces):
		return nil, usage("use a larger --size, at most 64GiB, or fewer pieces; without --keep-order none are lost to gaps", "%v", err)
	}
	return nil, usage("a power of two up to 64GiB", "%v", err)
}

// readPieces reads what the arguments name or list: pieces, or files with lists of them.
func (a *app) readPieces(ctx context.Context, args []string) (pieceList, error) {
	var all pieceList
	for _, arg := range args {
		if p, err := piece.Parse(arg); err == nil {
			all.pieces = append(all.pieces, p)
			continue
		} else if _, notFound := os.Stat(arg); notFound != nil && arg != "-" && (errors.Is(err, piece.ErrV1) || errors.Is(err, piece.ErrNotPiece)) {
			return all, usage("w3filecoin piece tells the piece CID of a file", "%v", err)
		}
		b, err := a.readAll(ctx, arg)
		if err != nil {
			return all, err
		}
		list, err := decodePieces(b)
		if err != nil {
			return all, usage("one piece CID (bafkzcib…) per line, or JSON, as w3filecoin aggregate build --json prints it", "%s: %v", arg, err)
		}
		if len(args) == 1 {
			return list, nil
		}
		all.pieces = append(all.pieces, list.pieces...)
	}
	return all, nil
}

// readAll reads a file, or standard input for "-".
func (a *app) readAll(ctx context.Context, file string) ([]byte, error) {
	in, total, err := a.openContent(ctx, file)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	bar, done := a.progress(total, filepath.Base(file))
	defer done()
	var buf bytes.Buffer
	if total > 0 {
		buf.Grow(int(total) + bytes.MinRead)
	}
	if _, err := buf.ReadFrom(io.TeeReader(in, bar)); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	return buf.Bytes(), nil
}

// decodePieces reads a list of pieces, as text or JSON.
func decodePieces(b []byte) (pieceList, error) {
	switch trimmed := bytes.TrimSpace(b); {
	case len(trimmed) == 0:
		return pieceList{}, errors.New("no pieces are listed")
	case trimmed[0] == '[':
		return pieceList{}.with(trimmed)
	case trimmed[0] == '{':
		var doc struct {
			Aggregate string          `json:"aggregate"`
			DealSize  uint64          `json:"dealSize"`
			Pieces    json.RawMessage `json:"pieces"`
		}
		if err := json.Unmarshal(trimmed, &doc); err != nil {
			return pieceList{}, err
		}
		l := pieceList{dealSize: doc.DealSize}
		if doc.Aggregate != "" {
			var err error
			if l.aggregate, err = piece.Parse(doc.Aggregate); err != nil {
				return pieceList{}, fmt.Errorf("aggregate: %w", err)
			}
			l.dealSize = l.aggregate.PaddedSize()
		}
		if doc.Pieces == nil {
			return pieceList{}, errors.New(`the object has no "pieces"`)
		}
		return l.with(doc.Pieces)
	}
	var l pieceList
	for number, line := range strings.Split(string(b), "\n") {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		p, err := piece.Parse(line)
		if err != nil {
			return pieceList{}, fmt.Errorf("line %d: %w", number+1, err)
		}
		l.pieces = append(l.pieces, p)
	}
	if len(l.pieces) == 0 {
		return pieceList{}, errors.New("no pieces are listed")
	}
	return l, nil
}

// with adds the pieces of a JSON list, whose elements are CIDs or objects that name a "piece".
func (l pieceList) with(b []byte) (pieceList, error) {
	var list []listedPiece
	if err := json.Unmarshal(b, &list); err != nil {
		return pieceList{}, err
	}
	for i, item := range list {
		p, err := piece.Parse(string(item))
		if err != nil {
			return pieceList{}, fmt.Errorf("piece %d: %w", i, err)
		}
		l.pieces = append(l.pieces, p)
	}
	if len(l.pieces) == 0 {
		return pieceList{}, errors.New("no pieces are listed")
	}
	return l, nil
}

// listedPiece is the text of a piece CID: a JSON string, or the "piece" of an object.
type listedPiece string

func (p *listedPiece) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		var o struct {
			Piece string `json:"piece"`
		}
		err := json.Unmarshal(b, &o)
		*p = listedPiece(o.Piece)
		return err
	}
	var s string
	err := json.Unmarshal(b, &s)
	*p = listedPiece(s)
	return err
}

// saveIndex writes the index of an aggregate to a file.
func (a *app) saveIndex(file string, built *segment.Aggregate) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return usage("name a file that can be written", "saving the index: %v", err)
	}
	defer func() {
		if closeErr := f.Close(); err == nil && closeErr != nil {
			err = fmt.Errorf("saving the index: %w", closeErr)
		}
	}()
	if _, err := io.Copy(f, built.IndexReader()); err != nil {
		return fmt.Errorf("saving the index: %w", err)
	}
	return nil
}

// shownAggregate is an aggregate and what is in it. Sizes and offsets are in padded bytes.
type shownAggregate struct {
	Aggregate   string        `json:"aggregate"`
	AggregateV1 string        `json:"aggregateV1"`
	DealSize    uint64        `json:"dealSize"`
	Content     uint64        `json:"content"`  // sum of the sizes of the pieces
	Capacity    uint64        `json:"capacity"` // what the deal has room for beside its index
	Fill        float64       `json:"fill"`     // content / capacity
	Index       shownIndex    `json:"index"`
	Pieces      []placedPiece `json:"pieces"`
}

type shownIndex struct {
	Offset  uint64 `json:"offset"`
	Size    uint64 `json:"size"`
	Entries int    `json:"entries"` // in use
	Room    int    `json:"room"`    // for so many entries
}

type placedPiece struct {
	Piece  string `json:"piece"`
	Offset uint64 `json:"offset"`
	Size   uint64 `json:"size"`
}

func showAggregate(built *segment.Aggregate) shownAggregate {
	size := built.DealSize()
	s := shownAggregate{
		Aggregate: built.Link().String(), AggregateV1: built.Link().V1().String(), DealSize: size, Capacity: segment.ContentCapacity(size),
		Index:  shownIndex{Offset: built.IndexStart(), Size: size - built.IndexStart(), Entries: built.Len(), Room: segment.MaxEntries(size)},
		Pieces: make([]placedPiece, 0, built.Len()),
	}
	for i, p := range built.Pieces() {
		s.Content += p.PaddedSize()
		s.Pieces = append(s.Pieces, placedPiece{p.String(), built.Offset(i), p.PaddedSize()})
	}
	s.Fill = float64(s.Content) / float64(s.Capacity)
	return s
}

func (s shownAggregate) text(w io.Writer) {
	writeRows(w, "", []row{
		{"aggregate", s.Aggregate}, {"aggregate v1", s.AggregateV1}, {"deal size", strconv.FormatUint(s.DealSize, 10)},
		{"pieces", strconv.Itoa(len(s.Pieces))}, {"content", fmt.Sprintf("%d of %d padded bytes, %.2f %%", s.Content, s.Capacity, 100*s.Fill)},
		{"index", fmt.Sprintf("%d of %d entries, at %d", s.Index.Entries, s.Index.Room, s.Index.Offset)},
	})
}
