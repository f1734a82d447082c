package aws

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/storacha/w3filecoin/store"
)

// fault wraps what a service answered.
func fault(doing string, err error) error { return fmt.Errorf("aws: %s: %w", doing, err) }

// Get implements [store.Rows].
func (e *Engine) Get(ctx context.Context, key store.Key) (store.Row, error) {
	end, err := e.begin(ctx)
	if err != nil {
		return store.Row{}, err
	}
	defer end()
	it, err := e.getItem(ctx, key)
	if err != nil {
		return store.Row{}, err
	}
	if numberOf(it, attrVersion) == 0 {
		return store.Row{}, store.ErrNotFound
	}
	return rowOf(it)
}

// getItem returns the row's item as it is now, nil if there is none. With attributes, only these.
func (e *Engine) getItem(ctx context.Context, key store.Key, attributes ...string) (item, error) {
	if key.Check() != nil {
		return nil, nil // no such row can be
	}
	in := &dynamodb.GetItemInput{
		TableName: &e.rows, Key: rowKey(key), ConsistentRead: awssdk.Bool(true), ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
	}
	if len(attributes) > 0 {
		u := newUpdate()
		var list []string
		for _, a := range attributes {
			list = append(list, u.name(a))
		}
		in.ProjectionExpression, in.ExpressionAttributeNames = awssdk.String(strings.Join(list, ", ")), u.names
	}
	out, err := e.db.GetItem(ctx, in)
	if err != nil {
		return nil, fault("reading row "+key.String(), err)
	}
	return out.Item, nil
}

// readPage reads items by next, which gets the key to go on from and how many to read at most, until there are as many rows as asked for or they
// are large enough together.
func readPage(limit int, start item, cursor func(store.Row) string,
	next func(start item, limit int32) (items []item, after item, err error)) (p store.Page, err error) {
	limit = store.PageLimit(limit)
	size := 0
	for {
		items, after, err := next(start, int32(limit-len(p.Rows)))
		if err != nil {
			return store.Page{}, err
		}
		for i, it := range items {
			row, err := rowOf(it)
			if err != nil {
				return store.Page{}, err
			}
			if row.Version == 0 {
				continue
			}
			if n := len(p.Rows); n > 0 && size+len(row.Value) > store.MaxPageBytes {
				p.Next = cursor(p.Rows[n-1])
				return p, nil
			}
			size += len(row.Value)
			p.Rows = append(p.Rows, row)
			if len(p.Rows) == limit && (after != nil || i < len(items)-1) {
				p.Next = cursor(row)
				return p, nil
			}
		}
		if len(after) == 0 {
			return p, nil
		}
		start = after
	}
}

// Query implements [store.Rows].
func (e *Engine) Query(ctx context.Context, partition, prefix, cursor string, limit int) (store.Page, error) {
	end, err := e.begin(ctx)
	if err != nil {
		return store.Page{}, err
	}
	defer end()
	var start item
	if cursor != "" {
		after, err := store.DecodeCursor(cursor, 1)
		if err != nil {
			return store.Page{}, err
		}
		switch {
		case strings.HasPrefix(after[0], prefix):
			start = rowKey(store.Key{Partition: partition, Sort: after[0]})
		case after[0] > prefix: // beyond all that begin so
			return store.Page{}, nil
		}
	}
	if k := (store.Key{Partition: partition, Sort: prefix}); k.Check() != nil {
		return store.Page{}, nil // no such row can be
	}
	u := newUpdate()
	condition := u.equals(attrPartition, text(partition)) + " AND begins_with(" + u.name(attrSort) + ", " + u.value(text("/"+prefix)) + ")"
	return readPage(limit, start,
		func(last store.Row) string { return store.EncodeCursor(last.Sort) },
		func(start item, limit int32) ([]item, item, error) {
			out, err := e.db.Query(ctx, &dynamodb.QueryInput{
				TableName: &e.rows, ConsistentRead: awssdk.Bool(true), Limit: &limit, ExclusiveStartKey: start,
				KeyConditionExpression: &condition, ExpressionAttributeNames: u.names, ExpressionAttributeValues: u.values,
				ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
			})
			if err != nil {
				return nil, nil, fault("querying partition "+partition, err)
			}
			return out.Items, out.LastEvaluatedKey, nil
		})
}

// Scan implements [store.Rows].
func (e *Engine) Scan(ctx context.Context, index, from, cursor string, limit int) (store.Page, error) {
	end, err := e.begin(ctx)
	if err != nil {
		return store.Page{}, err
	}
	defer end()
	var start item
	if cursor != "" {
		after, err := store.DecodeCursor(cursor, 3)
		if err != nil {
			return store.Page{}, err
		}
		key := store.Key{Partition: after[1], Sort: after[2]}
		start = rowKey(key)
		start[attrList], start[attrListSort] = text(index), text(listSort(after[0], key))
	}
	if index == "" || !utf8.ValidString(index) || len(index) > store.MaxListing {
		return store.Page{}, nil // no row can be listed so
	}
	u := newUpdate()
	condition := u.equals(attrList, text(index))
	if from != "" && cursor == "" {
		// Every place begins with its sort and a zero: what begins with less than all of from stands before it.
		condition += " AND " + u.name(attrListSort) + " >= " + u.value(text(escape(from)))
	}
	return readPage(limit, start,
		func(r store.Row) string { return store.EncodeCursor(r.Listing.Sort, r.Partition, r.Sort) },
		func(start item, limit int32) ([]item, item, error) {
			out, err := e.db.Query(ctx, &dynamodb.QueryInput{
				TableName: &e.rows, IndexName: awssdk.String(listingIndex), Limit: &limit, ExclusiveStartKey: start,
				KeyConditionExpression: &condition, ExpressionAttributeNames: u.names, ExpressionAttributeValues: u.values,
				ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
			})
			if err != nil {
				return nil, nil, fault("scanning index "+index, err)
			}
			return out.Items, out.LastEvaluatedKey, nil
		})
}

// Walk implements [store.Rows], in the table's own order.
func (e *Engine) Walk(ctx context.Context, cursor string, limit int) (store.Page, error) {
	end, err := e.begin(ctx)
	if err != nil {
		return store.Page{}, err
	}
	defer end()
	var start item
	if cursor != "" {
		after, err := store.DecodeCursor(cursor, 2)
		if err != nil {
			return store.Page{}, err
		}
		start = rowKey(store.Key{Partition: after[0], Sort: after[1]})
	}
	return readPage(limit, start,
		func(r store.Row) string { return store.EncodeCursor(r.Partition, r.Sort) },
		func(start item, limit int32) ([]item, item, error) {
			out, err := e.db.Scan(ctx, &dynamodb.ScanInput{
				TableName: &e.rows, ConsistentRead: awssdk.Bool(true), Limit: &limit, ExclusiveStartKey: start,
				ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
			})
			if err != nil {
				return nil, nil, fault("walking the rows", err)
			}
			return out.Items, out.LastEvaluatedKey, nil
		})
}

// Commit implements [store.Rows]. A deletion whose answer was lost may be reported as a conflict, as nothing is left that could tell: the caller
// finds that there is no row.
func (e *Engine) Commit(ctx context.Context, c store.Change) (uint64, error) {
	if err := c.Check(); err != nil {
		return 0, err
	}
	end, err := e.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	now := e.options.Now()
	var out []envelope
	for _, m := range c.Messages {
		// A message that could never be sent must not be promised.
		if _, err := e.queue(ctx, m.Queue); err != nil {
			return 0, err
		}
		v, err := e.newEnvelope(m, now)
		if err != nil {
			return 0, err
		}
		out = append(out, v)
	}
	if len(c.Blobs) > 0 {
		if err := e.putBlobsOf(ctx, c); err != nil {
			return 0, err
		}
	}
	if c.Delete && len(out) == 0 {
		if gone, err := e.deleteItem(ctx, c.Row); err != nil || gone {
			return 0, err
		}
	}
	it, err := e.write(ctx, c, out)
	if err != nil {
		return 0, err
	}
	if len(out) > 0 {
		e.sendNow(ctx, it, out)
	} else if c.Delete {
		e.sendNow(ctx, it, nil) // what it held goes at its time; without any the item goes now
	}
	if c.Delete {
		return 0, nil
	}
	return c.Row.Version + 1, nil
}

// deleteItem removes the item of a row that has no messages to send. gone is false if it may have some.
func (e *Engine) deleteItem(ctx context.Context, row store.Row) (gone bool, err error) {
	u := newUpdate()
	condition := u.isAt(row.Version) + " AND " + u.absent(attrLook)
	_, err = e.db.DeleteItem(ctx, &dynamodb.DeleteItemInput{
		TableName: &e.rows, Key: rowKey(row.Key), ConditionExpression: &condition,
		ExpressionAttributeNames: u.names, ExpressionAttributeValues: u.values, ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
	})
	var refused *types.ConditionalCheckFailedException
	switch {
	case err == nil:
		return true, nil
	case !errors.As(err, &refused):
		return false, fault("deleting row "+row.Key.String(), err)
	}
	it, err := e.getItem(ctx, row.Key)
	if err != nil {
		return false, err
	}
	if uint64(numberOf(it, attrVersion)) != row.Version {
		return false, store.ErrConflict
	}
	return false, nil
}

// write makes the one update of a commit and returns the item as it then is. A deleted row becomes an item of version 0.
func (e *Engine) write(ctx context.Context, c store.Change, out []envelope) (item, error) {
	row, version := c.Row, c.Row.Version+1
	if c.Delete {
		row, version = store.Row{Key: row.Key}, 0
	}
	token := make([]byte, 9)
	if _, err := io.ReadFull(e.options.Rand, token); err != nil {
		return nil, fmt.Errorf("aws: token of a commit: %w", err)
	}

	u := newUpdate()
	u.set(attrVersion, number(version))
	u.set(attrToken, binary(token))
	u.setOr(len(row.Value) > 0, attrValue, binary(slices.Clone(row.Value)))
	listed := row.Listing.Index != ""
	u.setOr(listed, attrList, text(row.Listing.Index))
	u.setOr(listed, attrListSort, text(listSort(row.Listing.Sort, row.Key)))
	if len(out) > 0 {
		u.add(attrOutSeq, 1)
		u.set(attrShard, number(shardOf(row.Key, e.where.shards())))
		// A message of an earlier commit may be due before ours, which only the answer will tell: a first look for all of them.
		u.set(attrLook, number(millis(e.options.Now().Add(sendGrace))))
		for _, m := range out {
			encoded, err := m.encode()
			if err != nil {
				return nil, err
			}
			u.set(messagePrefix+m.ID, text(encoded))
		}
	}
	condition := u.isAt(c.Row.Version)
	in := &dynamodb.UpdateItemInput{
		TableName: &e.rows, Key: rowKey(row.Key), UpdateExpression: u.expression(), ConditionExpression: &condition,
		ExpressionAttributeNames: u.names, ExpressionAttributeValues: u.values,
		ReturnConsumedCapacity:              types.ReturnConsumedCapacityTotal,
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	}
	if len(out) > 0 || c.Delete {
		in.ReturnValues = types.ReturnValueAllNew
	}
	done, err := e.db.UpdateItem(ctx, in)
	var refused *types.ConditionalCheckFailedException
	switch {
	case err == nil:
		return done.Attributes, nil
	case !errors.As(err, &refused):
		return nil, fault("committing row "+row.Key.String(), err)
	}
	// Refused, perhaps by our own first attempt, whose answer was lost.
	it := refused.Item
	if it == nil {
		if it, err = e.getItem(ctx, row.Key); err != nil {
			return nil, err
		}
	}
	if !bytes.Equal(bytesOf(it, attrToken), token) {
		return nil, store.ErrConflict
	}
	return it, nil
}
