package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/piece"
)

func newPieceCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "piece FILE...",
		Short: "Compute the content CID and the piece CID of files",
		Long: `Compute the content CID (raw, sha2-256) and the piece CID of each file, in one pass over it; "-" is standard input. The piece CID
of version 2 states the size of the content; version 1, which older software knows, is the commitment alone.`,
		Example: `  w3filecoin piece movie.mp4
  tar c photos | w3filecoin piece - --json`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, files []string) error {
			list := []shownPiece{}
			for _, file := range files {
				p, err := a.pieceOf(cmd.Context(), file)
				if err != nil {
					return err
				}
				list = append(list, p)
				if !a.json {
					p.text(a.stdout)
				}
			}
			if !a.json {
				return nil
			}
			return a.result(list, nil)
		},
	}
}

// shownPiece is what is found in one file.
type shownPiece struct {
	File       string `json:"file"`
	Content    string `json:"content"`
	Piece      string `json:"piece"`
	PieceV1    string `json:"pieceV1"`
	Size       uint64 `json:"size"`       // bytes
	PaddedSize uint64 `json:"paddedSize"` // bytes of the piece
}

func (p shownPiece) text(w io.Writer) {
	fmt.Fprintln(w, p.File)
	writeRows(w, "  ", []row{{"content", p.Content}, {"piece", p.Piece}, {"piece v1", p.PieceV1},
		{"size", strconv.FormatUint(p.Size, 10)}, {"padded size", strconv.FormatUint(p.PaddedSize, 10)}})
}

func (a *app) pieceOf(ctx context.Context, file string) (shownPiece, error) {
	in, total, err := a.openContent(ctx, file)
	if err != nil {
		return shownPiece{}, err
	}
	defer in.Close()
	bar, done := a.progress(total, filepath.Base(file))
	content, link, err := hashContent(ctx, io.TeeReader(in, bar))
	done()
	if errors.Is(err, piece.ErrEmpty) {
		return shownPiece{}, usage("the smallest piece holds one byte", "%s is empty", file)
	}
	if err != nil {
		return shownPiece{}, fmt.Errorf("hashing %s: %w", file, err)
	}
	return shownPiece{File: file, Content: content.String(), Piece: link.String(), PieceV1: link.V1().String(),
		Size: link.PayloadSize(), PaddedSize: link.PaddedSize()}, nil
}

// openContent opens a file, or standard input for "-", and returns its size; -1 if that is not known.
func (a *app) openContent(ctx context.Context, file string) (io.ReadCloser, int64, error) {
	if file == "-" {
		// Reading a terminal or a pipe cannot be interrupted; whoever waits for it can be.
		r, w := io.Pipe()
		go func() {
			_, err := io.Copy(w, a.stdin)
			w.CloseWithError(err)
		}()
		context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })
		return r, -1, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, usage("name a file that can be read", "opening the file: %v", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	switch {
	case info.IsDir():
		f.Close()
		return nil, 0, usage("pack it into one file first, a CAR for instance", "%s is a directory", file)
	case !info.Mode().IsRegular():
		return f, -1, nil
	}
	return f, info.Size(), nil
}
