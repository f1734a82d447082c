package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path/filepath"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/transfer"
)

// keeper is a storefront's own place of content, which tells what it holds: a directory, or a bucket.
type keeper interface {
	source.Place
	source.Voucher
	Contents(context.Context) iter.Seq2[cid.Cid, error]
}

// uploads is where a storefront with its state here keeps content, nil if there is no such directory.
func (p place) uploads(ctx context.Context) (keeper, error) {
	if p.data == "" {
		return openUploads(ctx, p.name, true)
	}
	dir, err := source.OpenReadOnlyDir(filepath.Join(p.data, uploadsName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return dir, err
}

// takeUploads is uploads for content to be put into; a directory is created.
func (p place) takeUploads(ctx context.Context) (keeper, error) {
	if p.data == "" {
		return openUploads(ctx, p.name, true)
	}
	return source.OpenDir(filepath.Join(p.data, uploadsName))
}

// uploadsAtATime is how many contents are carried beside each other. Each takes up to two buffers of 8 MiB.
const uploadsAtATime = 8

// carryUploads carries the content of a storefront, whether or not it runs, and returns the sum of what both sides have: its hash is made of the contents' hashes and
// lengths. What the target has already is not read again. Content that it did not have is hashed on its way, and what it says of it afterwards counts.
func carryUploads(ctx context.Context, source, target place, read io.Writer) (sum transfer.Sum, err error) {
	from, err := source.uploads(ctx)
	if err != nil {
		return sum, err
	}
	var both transfer.Digest
	if from == nil {
		return both.Sum(), nil
	}
	to, err := target.takeUploads(ctx)
	if err != nil {
		return sum, err
	}
	var page []cid.Cid
	carry := func() error {
		err := store.Each(ctx, uploadsAtATime, page, func(content cid.Cid) error {
			length, err := carryUpload(ctx, from, to, content, read)
			if err != nil {
				return fmt.Errorf("content %s: %w", content, err)
			}
			both.Add(length, content.Hash(), fmt.Append(nil, length))
			return nil
		})
		page = page[:0]
		return err
	}
	for content, err := range from.Contents(ctx) {
		if err != nil {
			return sum, err
		}
		if page = append(page, content); len(page) == store.MaxPage {
			if err := carry(); err != nil {
				return sum, err
			}
		}
	}
	err = carry()
	return both.Sum(), err
}

// carryUpload makes sure that the target vouches for one content, and returns its length.
func carryUpload(ctx context.Context, from, to keeper, content cid.Cid, read io.Writer) (int64, error) {
	length, err := from.Stat(ctx, content)
	if err != nil {
		return 0, err
	}
	there, err := to.Verified(ctx, content)
	if errors.Is(err, source.ErrNoContent) {
		body, _, err1 := from.Open(ctx, content)
		if err1 != nil {
			return 0, err1
		}
		defer body.Close()
		if _, err := to.Put(ctx, content, io.TeeReader(body, read), length); err != nil {
			return 0, err
		}
		there, err = to.Verified(ctx, content)
	}
	if err != nil {
		return 0, err
	}
	if there != length {
		return 0, fmt.Errorf("it has %d bytes on one side and %d on the other", length, there)
	}
	return length, nil
}
