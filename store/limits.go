package store

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Limits of names. Together they fit the narrowest engine: DynamoDB's keys are UTF-8 of at most 1 KiB, and an index
// orders by listing and key in one of them.
const (
	MaxKey     = 512 // bytes of a key, Partition and Sort together
	MaxListing = 384 // bytes of a listing, Index and Sort together
	MaxQueue   = 64  // bytes of a queue's name
	MaxBlobs   = 64  // blobs of one commit
)

// MaxPageBytes is about how many bytes of values an engine puts in one page: it ends the page early rather than hold more.
const MaxPageBytes = 4 << 20

// Check reports why no engine may commit the change: ErrTooLarge (wrapped) for one over the limits, any other error for one
// that is malformed. Every engine calls it before it writes anything.
func (c Change) Check() error {
	row := c.Row
	if err := row.Key.Check(); err != nil {
		return err
	}
	if c.Delete && row.Version == 0 {
		return fmt.Errorf("deleting %s: a row is deleted at the version that was read, not at 0", row.Key)
	}
	if !c.Delete {
		if len(row.Value) > MaxValue {
			return fmt.Errorf("row %s: value of %d bytes: %w", row.Key, len(row.Value), ErrTooLarge)
		}
		if err := row.Listing.check(); err != nil {
			return fmt.Errorf("row %s: %w", row.Key, err)
		}
	}
	if len(c.Messages) > MaxMessages {
		return fmt.Errorf("row %s: %d messages: %w", row.Key, len(c.Messages), ErrTooLarge)
	}
	for _, m := range c.Messages {
		if err := m.check(); err != nil {
			return fmt.Errorf("row %s: %w", row.Key, err)
		}
	}
	if len(c.Blobs) > MaxBlobs {
		return fmt.Errorf("row %s: %d blobs: %w", row.Key, len(c.Blobs), ErrTooLarge)
	}
	for _, b := range c.Blobs {
		if !b.CID.Defined() {
			return fmt.Errorf("row %s: blob without a CID", row.Key)
		}
		if len(b.Bytes) > MaxInlineBlob {
			return fmt.Errorf("row %s: inline blob %s of %d bytes: %w", row.Key, b.CID, len(b.Bytes), ErrTooLarge)
		}
	}
	return nil
}

// Check reports why no engine may hold a row of this key.
func (k Key) Check() error {
	switch {
	case k.Partition == "":
		return errors.New("row key without a partition")
	case !utf8.ValidString(k.Partition) || !utf8.ValidString(k.Sort):
		return fmt.Errorf("row key %q is not UTF-8", k.String())
	case len(k.Partition)+len(k.Sort) > MaxKey:
		return fmt.Errorf("row key of %d bytes: %w", len(k.Partition)+len(k.Sort), ErrTooLarge)
	}
	return nil
}

// String is for people: partition and sort, separated by a slash.
func (k Key) String() string {
	if k.Sort == "" {
		return k.Partition
	}
	return k.Partition + "/" + k.Sort
}

func (l Listing) check() error {
	switch {
	case l.Index == "" && l.Sort != "":
		return errors.New("listing without an index")
	case !utf8.ValidString(l.Index) || !utf8.ValidString(l.Sort):
		return errors.New("listing is not UTF-8")
	case len(l.Index)+len(l.Sort) > MaxListing:
		return fmt.Errorf("listing of %d bytes: %w", len(l.Index)+len(l.Sort), ErrTooLarge)
	}
	return nil
}

func (m Message) check() error {
	switch {
	case m.Queue == "" || !utf8.ValidString(m.Queue):
		return fmt.Errorf("message with queue %q", m.Queue)
	case len(m.Queue) > MaxQueue:
		return fmt.Errorf("queue name of %d bytes: %w", len(m.Queue), ErrTooLarge)
	case len(m.Body) > MaxMessageBody:
		return fmt.Errorf("message to %s of %d bytes: %w", m.Queue, len(m.Body), ErrTooLarge)
	case m.Due.Year() >= 2200:
		return fmt.Errorf("message to %s due in the year %d", m.Queue, m.Due.Year()) // engines count nanoseconds in 64 bits
	}
	return nil
}

// PageLimit is the number of rows that a page asked for with this limit may hold: within 1 and [MaxPage], and MaxPage for 0.
func PageLimit(limit int) int {
	if limit <= 0 || limit > MaxPage {
		return MaxPage
	}
	return limit
}

// EncodeCursor makes the cursor of an engine that needs these strings to go on. It is never empty, and printable.
func EncodeCursor(parts ...string) string {
	b := []byte{byte(len(parts))}
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// DecodeCursor returns the strings of which [EncodeCursor] made the cursor; an error if there are not n of them.
func DecodeCursor(cursor string, n int) ([]string, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(b) == 0 || int(b[0]) != n {
		return nil, errors.New("malformed cursor")
	}
	b = b[1:]
	parts := make([]string, n)
	for i := range parts {
		size, used := binary.Uvarint(b)
		if used <= 0 || size > uint64(len(b)-used) {
			return nil, errors.New("malformed cursor")
		}
		parts[i] = string(b[used : used+int(size)])
		b = b[used+int(size):]
	}
	if len(b) != 0 {
		return nil, errors.New("malformed cursor")
	}
	return parts, nil
}
