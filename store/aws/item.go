package aws

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/storacha/w3filecoin/store"
)

// Attributes of a row's item. Their names are short because they are stored, and paid for, with every item.
const (
	attrPartition = "p" // S, the table's partition key: Key.Partition
	attrSort      = "s" // S, its sort key: "/" and Key.Sort, because it must not be empty
	attrVersion   = "n" // N: Row.Version; 0: deleted, and kept only for its messages
	attrValue     = "v" // B: Row.Value; absent if empty
	attrList      = "l" // S, partition key of the index "listing": Listing.Index; absent in rows listed nowhere
	attrListSort  = "o" // S, its sort key: Listing.Sort and the key, see listSort
	attrToken     = "k" // B: of the last update that changed the version
	attrOutSeq    = "e" // N: how many updates have added messages
	attrShard     = "q" // N, partition key of the index "outbox"; absent in items without messages
	attrLook      = "t" // N, its sort key: when to look at the item's messages, in milliseconds since 1970, not later than any of them needs
	messagePrefix = "m:"
)

// Names of the indexes of the table of rows.
const (
	listingIndex = "listing"
	outboxIndex  = "outbox"
)

// attrBlob and attrBytes are the attributes of a blob's item, the first its key.
const (
	attrBlob  = "c" // B: the CID
	attrBytes = "b" // B
	attrSize  = "z" // N: how many bytes
)

type item = map[string]types.AttributeValue

func text(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

func binary(b []byte) types.AttributeValue { return &types.AttributeValueMemberB{Value: b} }

func number[N int | int64 | uint64](n N) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: fmt.Sprint(n)}
}

func textOf(it item, name string) string {
	if s, ok := it[name].(*types.AttributeValueMemberS); ok {
		return s.Value
	}
	return ""
}

func bytesOf(it item, name string) []byte {
	if b, ok := it[name].(*types.AttributeValueMemberB); ok {
		return b.Value
	}
	return nil
}

// numberOf is 0 for what is not there.
func numberOf(it item, name string) int64 {
	if n, ok := it[name].(*types.AttributeValueMemberN); ok {
		v, err := strconv.ParseInt(n.Value, 10, 64)
		if err == nil {
			return v
		}
	}
	return 0
}

func rowKey(k store.Key) item {
	return item{attrPartition: text(k.Partition), attrSort: text("/" + k.Sort)}
}

func keyOf(it item) store.Key {
	return store.Key{Partition: textOf(it, attrPartition), Sort: strings.TrimPrefix(textOf(it, attrSort), "/")}
}

// rowOf reads an item of the table or of the index of listings.
func rowOf(it item) (store.Row, error) {
	row := store.Row{Key: keyOf(it), Version: uint64(numberOf(it, attrVersion)), Value: bytesOf(it, attrValue)}
	if index := textOf(it, attrList); index != "" {
		sort, err := sortOf(textOf(it, attrListSort))
		if err != nil {
			return store.Row{}, fmt.Errorf("row %s: %w", row.Key, err)
		}
		row.Listing = store.Listing{Index: index, Sort: sort}
	}
	return row, nil
}

// maxSortKey is DynamoDB's limit in bytes. Only names of hundreds of control characters come near it.
const maxSortKey = 1024

// listSort orders an index by listing, then by key, in one string: the three parts, escaped so that they contain no zero and keep
// their order, each ended by one. What is over DynamoDB's limit is cut off, which can only confuse the order of rows whose names agree that far.
func listSort(sort string, k store.Key) string {
	s := escape(sort) + "\x00" + escape(k.Partition) + "\x00" + escape(k.Sort)
	if len(s) <= maxSortKey {
		return s
	}
	n := maxSortKey
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

var (
	escaper   = strings.NewReplacer("\x00", "\x01\x02", "\x01", "\x01\x03")
	unescaper = strings.NewReplacer("\x01\x02", "\x00", "\x01\x03", "\x01")
)

func escape(s string) string { return escaper.Replace(s) }

func sortOf(listSort string) (string, error) {
	sort, _, ok := strings.Cut(listSort, "\x00")
	if !ok {
		return "", errors.New("malformed place in an index")
	}
	return unescaper.Replace(sort), nil
}

// pending are the messages that an item still holds, in order of ID. Attributes that are none of ours are an error.
func pending(it item) ([]envelope, error) {
	var out []envelope
	for _, name := range slices.Sorted(maps.Keys(it)) {
		id, ok := strings.CutPrefix(name, messagePrefix)
		if !ok {
			continue
		}
		m, err := decodeEnvelope(textOf(it, name))
		if err != nil || m.ID != id {
			return nil, fmt.Errorf("row %s: message %s cannot be read: %w", keyOf(it), id, errors.Join(err, store.ErrCorrupt))
		}
		out = append(out, m)
	}
	return out, nil
}

// update gathers the parts of an expression. Names and values are placeholders throughout: many short names are reserved words.
type update struct {
	sets, removes, adds []string
	names               map[string]string
	values              item
}

func newUpdate() *update {
	return &update{names: map[string]string{}, values: item{}}
}

// name and value return placeholders.
func (u *update) name(attr string) string {
	for p, known := range u.names {
		if known == attr {
			return p
		}
	}
	p := "#" + strconv.Itoa(len(u.names))
	u.names[p] = attr
	return p
}

func (u *update) value(v types.AttributeValue) string {
	p := ":" + strconv.Itoa(len(u.values))
	u.values[p] = v
	return p
}

func (u *update) set(attr string, v types.AttributeValue) {
	u.sets = append(u.sets, u.name(attr)+" = "+u.value(v))
}

func (u *update) add(attr string, n int64) {
	u.adds = append(u.adds, u.name(attr)+" "+u.value(number(n)))
}

func (u *update) remove(attr string) { u.removes = append(u.removes, u.name(attr)) }

// setOr sets the attribute if there is a value for it, and removes it otherwise.
func (u *update) setOr(there bool, attr string, v types.AttributeValue) {
	if there {
		u.set(attr, v)
	} else {
		u.remove(attr)
	}
}

func (u *update) expression() *string {
	var parts []string
	for verb, list := range map[string][]string{"SET": u.sets, "REMOVE": u.removes, "ADD": u.adds} {
		if len(list) > 0 {
			parts = append(parts, verb+" "+strings.Join(list, ", "))
		}
	}
	slices.Sort(parts)
	return awssdk.String(strings.Join(parts, " "))
}

// equals is the condition that an attribute has a value.
func (u *update) equals(attr string, v types.AttributeValue) string {
	return u.name(attr) + " = " + u.value(v)
}

func (u *update) absent(attr string) string { return "attribute_not_exists(" + u.name(attr) + ")" }

func (u *update) exists(attr string) string { return "attribute_exists(" + u.name(attr) + ")" }

// isAt is the condition that a row is at a version; 0: that there is none.
func (u *update) isAt(version uint64) string {
	at := u.equals(attrVersion, number(version))
	if version == 0 {
		return u.absent(attrPartition) + " OR " + at
	}
	return at
}

func millis(t time.Time) int64 { return t.UnixMilli() }
