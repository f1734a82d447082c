package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// maxKinds bounds the kinds of rows that are told apart. Roles have some twenty.
const maxKinds = 256

// kinds knows of which kinds there are rows. Some questions are asked for every invocation, whether it was revoked for instance, and nearly everywhere
// there is no row of that kind at all: then they cost no look at the database.
//
// It may name a kind of which there are no rows any more, never miss one: the writer adds the kinds of a transaction before it commits, and no other
// process writes.
type kinds struct {
	mu    sync.RWMutex
	known map[string]struct{}
	many  bool // more than maxKinds: there may be rows of any kind
}

// kindOf is the first part of a partition's name, with the slash that ends it.
func kindOf(partition string) string {
	kind, _, found := strings.Cut(partition, "/")
	if !found {
		return partition
	}
	return partition[:len(kind)+1]
}

// has reports whether there may be rows of the partition's kind.
func (k *kinds) has(partition string) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	_, known := k.known[kindOf(partition)]
	return known || k.many
}

// add says that the partition has a row, or is about to have one.
func (k *kinds) add(partition string) {
	if k.has(partition) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.many = len(k.known) == maxKinds; k.many {
		k.known = nil
		return
	}
	if k.known == nil {
		k.known = make(map[string]struct{})
	}
	k.known[strings.Clone(kindOf(partition))] = struct{}{}
}

// selectKind finds the first partition from some name on.
const selectKind = `SELECT partition FROM row WHERE partition >= ? ORDER BY partition LIMIT 1`

// read adds the kinds of all rows: a look at the index for each kind.
func (k *kinds) read(ctx context.Context, conn *sql.Conn) error {
	for from := ""; !k.many; {
		var partition string
		err := conn.QueryRowContext(ctx, selectKind, from).Scan(&partition)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the kinds of rows: %w", err)
		}
		k.add(partition)
		// The first name behind all of the kind: 0 follows the slash.
		if kind, ok := strings.CutSuffix(kindOf(partition), "/"); ok {
			from = kind + "0"
		} else {
			from = partition + "\x00"
		}
	}
	return nil
}
