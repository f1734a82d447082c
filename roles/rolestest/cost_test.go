package rolestest

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/aggregator"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/enginetest"
	"github.com/storacha/w3filecoin/store/storetest"
)

// use is one kind of call that roles make to their engines: of rows by what their partitions begin with, of messages by queue.
type use struct{ role, step, method, kind string }

// usage is how often.
type usage map[use]float64

func (u usage) sum(methods ...string) (n float64) {
	for k, v := range u {
		if slices.Contains(methods, k.method) {
			n += v
		}
	}
	return n
}

// Commits by what they ask of an engine: the messages of one are sent, and then taken out of its row; a refused one costs as if it had been made.
const (
	plainCommit   = "Commit"
	sendingCommit = "Commit, sends"
	refusedCommit = "Commit, refused"
	writeUnits    = "write units"
	atRest        = "bytes at rest"
	blobBytes     = "bytes of blobs"
)

// usageOf counts what it takes to get so many pieces into a deal, all in one aggregate, that waited for it as long as a budget says.
func usageOf(t *testing.T, pieces int, budget time.Duration) usage {
	t.Helper()
	withoutFaults(t)
	count, rows := usage{}, map[string]map[store.Key]store.Row{}
	n := New(t, Options{Seed: 1, Prompt: true, Budget: budget, Ladder: aggregator.LadderBetween(16<<20, 16<<20), Count: func(role string, u storetest.Used) {
		kind, _, _ := strings.Cut(cmp.Or(u.Partition, u.Index, u.Queue), "/")
		k := use{role, u.Step, u.Method, kind}
		if u.Method != "Commit" {
			if u.Step != "" { // not the test's own looks
				count[k]++
			}
			if u.Method == "Put" {
				count[use{role, u.Step, blobBytes, "blobs"}] += float64(u.Bytes)
			}
			return
		}
		switch {
		case u.Err != nil:
			k.method = refusedCommit
		case len(u.Change.Messages) > 0:
			k.method = sendingCommit
		}
		count[k]++
		if rows[role] == nil {
			rows[role] = map[store.Key]store.Row{}
		}
		was := rows[role][u.Change.Row.Key]
		k.method = writeUnits
		count[k] += dynamoWrites(was, u)
		switch {
		case u.Err != nil:
		case u.Change.Delete:
			delete(rows[role], u.Change.Row.Key)
		default:
			rows[role][u.Change.Row.Key] = u.Change.Row
		}
	}})
	var offers []Offered
	for range pieces {
		offers = append(offers, n.Offer("storefront", n.Payload(127<<10)))
	}
	if !n.Run(3*day, n.Concluded(offers...)) {
		t.Fatal("not concluded")
	}
	n.Run(time.Hour, func() bool { return false })
	n.MustCheck(offers)
	for role, table := range rows {
		for key, row := range table {
			kind, _, _ := strings.Cut(key.Partition, "/")
			size := dynamoSize(row, nil)
			if row.Listing.Index != "" {
				size *= 2
			}
			count[use{role, "", atRest, kind}] += float64(size)
		}
	}
	return count
}

// withoutFaults skips a test that counts on an engine whose services fail now and then: what is repeated counts again.
func withoutFaults(t *testing.T) {
	t.Helper()
	if kind := enginetest.Kind(); kind != enginetest.Memory {
		t.Skipf("calls are not counted on engine %s", kind)
	}
}

// dynamoSize is about how many bytes a row with its messages is as an item of DynamoDB: names and values of its attributes.
func dynamoSize(r store.Row, messages []store.Message) int {
	n := len(r.Partition) + len(r.Sort) + 40 + len(r.Value)
	if r.Listing.Index != "" {
		n += len(r.Listing.Index) + len(r.Listing.Sort) + len(r.Partition) + len(r.Sort)
	}
	for _, m := range messages {
		n += 180 + len(m.Queue) + 4*len(m.Body)/3
	}
	return n
}

// dynamoWrites is about how many write units a commit costs on DynamoDB, by its price list: one for each KiB of the larger of both items, once more when
// its messages are taken out, and the same for each index that the item enters, changes in, or leaves.
func dynamoWrites(was store.Row, u storetest.Used) float64 {
	units := func(bytes int) float64 { return float64((bytes + 1023) / 1024) }
	before := dynamoSize(was, nil)
	if u.Err != nil || u.Change.Delete && len(u.Change.Messages) == 0 {
		return units(before)
	}
	is := dynamoSize(u.Change.Row, u.Change.Messages)
	n := units(max(before, is))
	if len(u.Change.Messages) > 0 {
		n += units(is) + 2
	}
	if l := was.Listing; l.Index != "" && l != u.Change.Row.Listing {
		n += units(before)
	}
	if u.Change.Row.Listing.Index != "" {
		n += units(is)
	}
	return n
}

// perPiece is what a piece more takes, what is there without it left out.
func perPiece(t *testing.T, budget time.Duration) usage {
	t.Helper()
	const few, many = 64, 112
	less, more := usageOf(t, few, budget), usageOf(t, many, budget)
	each := usage{}
	for k, n := range more {
		if d := (n - less[k]) / (many - few); d > 0.01 || d < -0.01 {
			each[k] = d
		}
	}
	return each
}

// TestCostOfAPiece: what one piece more costs is a property of the program, as deterministic as what it does. docs/scale.md has this table. A change
// that costs more has to be worth it; one that costs less lowers the bounds.
func TestCostOfAPiece(t *testing.T) {
	each := perPiece(t, 20*time.Minute)
	order := func(a, b use) int {
		return cmp.Or(cmp.Compare(a.role, b.role), cmp.Compare(a.step, b.step), cmp.Compare(a.method, b.method), cmp.Compare(a.kind, b.kind))
	}
	for _, k := range slices.SortedFunc(maps.Keys(each), order) {
		t.Logf("%-12s %-18s %-16s %-16s %8.2f", k.role, k.step, k.method, k.kind, each[k])
	}
	for _, bound := range []struct {
		what    string
		methods []string
		most    float64
	}{
		{"rows read", []string{"Get"}, 36},
		{"pages read", []string{"Query", "Scan"}, 0},
		{"commits", []string{plainCommit, sendingCommit}, 27},
		{"commits that send messages", []string{sendingCommit}, 6},
		{"commits that are refused", []string{refusedCommit}, 0},
		{"messages", []string{"Ack"}, 7},
		{"blobs read or written", []string{"Open", "Put"}, 0.5},
		{"write units of DynamoDB, about", []string{writeUnits}, 78},
		{"bytes at rest in DynamoDB, about", []string{atRest}, 21_000},
		{"bytes of blobs", []string{blobBytes}, 6_000},
	} {
		got := each.sum(bound.methods...)
		t.Logf("%-34s %8.2f", bound.what, got)
		if got > bound.most+0.1 {
			t.Errorf("a piece takes %.2f %s, more than %.2f", got, bound.what, bound.most)
		}
	}
}

// TestCostOfWaiting: a piece that waits a day for its aggregate costs little more than one that waits for minutes: three questions for its receipt, and
// a little for the aggregate that is asked for meanwhile.
func TestCostOfWaiting(t *testing.T) {
	soon, late := perPiece(t, 20*time.Minute), perPiece(t, day)
	for _, bound := range []struct {
		what    string
		methods []string
		most    float64
	}{
		{"rows read", []string{"Get"}, 12.5},
		{"commits", []string{plainCommit, sendingCommit, refusedCommit}, 3.1},
		{"messages", []string{"Ack"}, 0},
		{"write units of DynamoDB, about", []string{writeUnits}, 9.5},
	} {
		got := late.sum(bound.methods...) - soon.sum(bound.methods...)
		t.Logf("%-34s %8.2f", bound.what, got)
		if got > bound.most+0.1 {
			t.Errorf("a piece that waits for a day takes %.2f more %s, more than %.2f", got, bound.what, bound.most)
		}
	}
}
