package awstest

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

type attr struct {
	S *string `json:"S,omitempty"`
	N *string `json:"N,omitempty"`
	B *[]byte `json:"B,omitempty"`
}

type item map[string]attr

func (it item) number(name string) (n int64) {
	if it[name].N != nil {
		n, _ = strconv.ParseInt(*it[name].N, 10, 64)
	}
	return n
}

// table is a table with its indexes. An item is never changed, but replaced.
type table struct {
	keys    []string
	items   map[string]item
	indexes map[string]*index // by name; "" is the table itself
	lagging []write           // that indexes do not show yet, oldest first
	holding map[string]item   // those that hold messages, whatever indexes show
}

// index is items by one attribute and ordered by others.
type index struct {
	attrs []string
	by    map[string]map[string]item // by the first attribute, then key
}

// write is what happened to an item.
type write struct {
	serial        int
	at            time.Time
	key           string
	before, after item // nil: there was none, there is none
}

func newIndex(attrs []string) *index { return &index{attrs: attrs, by: map[string]map[string]item{}} }

func (x *index) apply(w write) {
	if a := w.before[x.attrs[0]]; a.there() {
		delete(x.by[a.String()], w.key)
	}
	if a := w.after[x.attrs[0]]; a.there() {
		if x.by[a.String()] == nil {
			x.by[a.String()] = map[string]item{}
		}
		x.by[a.String()][w.key] = w.after
	}
}

// replace writes an item, nil to remove it.
func (d *Double) replace(t *table, key string, it item) {
	d.writes++
	w := write{serial: d.writes, at: d.options.Now(), key: key, before: t.items[key], after: it}
	if it == nil {
		delete(t.items, key)
	} else {
		t.items[key] = it
	}
	if it[attrLook].there() {
		t.holding[key] = it
	} else {
		delete(t.holding, key)
	}
	t.indexes[""].apply(w)
	t.lagging = append(t.lagging, w)
	d.settle(t)
}

// settle lets indexes show what they have to by now.
func (d *Double) settle(t *table) {
	now, n := d.options.Now(), 0
	for _, w := range t.lagging {
		if now.Sub(w.at) < d.options.IndexLag && d.writes-w.serial < d.options.IndexLagCommits {
			break
		}
		t.show(w)
		n++
	}
	t.lagging = slices.Delete(t.lagging, 0, n)
}

func (t *table) show(w write) {
	for name, x := range t.indexes {
		if name != "" {
			x.apply(w)
		}
	}
}

// Settle lets late indexes show what is there.
func (d *Double) Settle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.tables {
		for _, w := range t.lagging {
			t.show(w)
		}
		t.lagging = nil
	}
}

// Attributes are the names of the attributes of each item of a table.
func (d *Double) Attributes(table string) (all [][]string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, it := range d.tables[table].items {
		all = append(all, slices.Sorted(maps.Keys(it)))
	}
	return all
}

// serveTable answers a request to DynamoDB; known is false for all others.
func (d *Double) serveTable(op string, in request, half bool) (out any, code string, known bool) {
	out = map[string]any{}
	if op == "BatchWriteItem" {
		left := map[string][]any{}
		n := 0
		for name, puts := range in.RequestItems {
			for _, p := range puts {
				if n++; half && n%2 == 0 {
					left[name] = append(left[name], p)
					continue
				}
				t := d.tables[name]
				d.replace(t, t.key(p.PutRequest.Item), p.PutRequest.Item)
			}
		}
		return map[string]any{"UnprocessedItems": left}, "", true
	}
	t := d.tables[in.TableName]
	switch op {
	case "CreateTable":
		if t == nil {
			d.createTable(in)
		}
		return out, "", true
	case "DescribeTable", "GetItem", "UpdateItem", "DeleteItem", "Query", "Scan":
		if t == nil {
			return nil, "ResourceNotFoundException", true
		}
	default:
		return nil, "", false
	}
	switch op {
	case "DescribeTable":
		out = map[string]any{"Table": map[string]any{"TableStatus": "ACTIVE"}}
	case "GetItem":
		if it, ok := t.items[t.key(in.Key)]; ok {
			out = map[string]any{"Item": it}
		}
	case "UpdateItem", "DeleteItem":
		out, code = d.write(t, op, in)
	case "Query", "Scan":
		out = d.query(t, in)
	}
	return out, code, true
}

func (d *Double) createTable(in request) {
	t := &table{indexes: map[string]*index{}, items: map[string]item{}, holding: map[string]item{}}
	for _, k := range in.KeySchema {
		t.keys = append(t.keys, k.AttributeName)
	}
	t.indexes[""] = newIndex(t.keys)
	for _, i := range in.GlobalSecondaryIndexes {
		var attrs []string
		for _, k := range i.KeySchema {
			attrs = append(attrs, k.AttributeName)
		}
		t.indexes[i.IndexName] = newIndex(append(attrs, t.keys...))
	}
	d.tables[in.TableName] = t
}

func (t *table) key(it item) string { return place(it, t.keys) }

// place is an item's in an order of attributes.
func place(it item, attrs []string) string {
	var s strings.Builder
	for _, a := range attrs {
		s.WriteString(it[a].String())
		s.WriteByte(0)
	}
	return s.String()
}

func (d *Double) query(t *table, in request) any {
	d.settle(t)
	x := t.indexes[in.IndexName]
	items := t.items
	if in.KeyConditionExpression != "" {
		first := comparison.FindStringSubmatch(strings.Split(in.KeyConditionExpression, " AND ")[0])
		items = x.by[in.ExpressionAttributeValues[first[3]].String()]
	}
	type placed struct {
		at string
		it item
	}
	var found []placed
	start := place(in.ExclusiveStartKey, x.attrs)
	for _, it := range items {
		if !in.holds(in.KeyConditionExpression, it) {
			continue
		}
		if at := place(it, x.attrs); in.ExclusiveStartKey == nil || at > start {
			found = append(found, placed{at, it})
		}
	}
	slices.SortFunc(found, func(a, b placed) int { return strings.Compare(a.at, b.at) })
	out := map[string]any{}
	if in.Limit > 0 && len(found) >= in.Limit {
		found = found[:in.Limit]
		last := item{}
		for _, k := range x.attrs {
			last[k] = found[in.Limit-1].it[k]
		}
		out["LastEvaluatedKey"] = last
	}
	page := make([]item, len(found))
	for i, f := range found {
		page[i] = f.it
	}
	out["Items"] = page
	return out
}

func (a attr) String() string {
	switch {
	case a.S != nil:
		return *a.S
	case a.N != nil:
		return fmt.Sprintf("%020s", *a.N) // so that texts are ordered as the numbers are
	case a.B != nil:
		return string(*a.B)
	}
	return ""
}

func (a attr) there() bool { return a != attr{} }

var (
	comparison = regexp.MustCompile(`^(#\d+) (=|>=|<=) (:\d+)$`)
	predicate  = regexp.MustCompile(`^(attribute_exists|attribute_not_exists|begins_with)\((#\d+)(?:, (:\d+))?\)$`)
	clauses    = regexp.MustCompile(`(ADD|REMOVE|SET) `)
)

// holds evaluates a condition: some of several that all hold.
func (in request) holds(condition string, it item) bool {
	if condition == "" {
		return true
	}
	for _, or := range strings.Split(condition, " OR ") {
		all := true
		for _, and := range strings.Split(or, " AND ") {
			if m := comparison.FindStringSubmatch(and); m != nil {
				a, b := it[in.ExpressionAttributeNames[m[1]]], in.ExpressionAttributeValues[m[3]].String()
				all = all && a.there() && (m[2] == "=" && a.String() == b || m[2] == ">=" && a.String() >= b || m[2] == "<=" && a.String() <= b)
				continue
			}
			m := predicate.FindStringSubmatch(and)
			if m == nil {
				panic("condition " + and)
			}
			a := it[in.ExpressionAttributeNames[m[2]]]
			switch m[1] {
			case "attribute_exists":
				all = all && a.there()
			case "attribute_not_exists":
				all = all && !a.there()
			default:
				all = all && strings.HasPrefix(a.String(), in.ExpressionAttributeValues[m[3]].String())
			}
		}
		if all {
			return true
		}
	}
	return false
}

func (d *Double) write(t *table, op string, in request) (any, string) {
	key := t.key(in.Key)
	it, exists := t.items[key]
	if !in.holds(in.ConditionExpression, it) {
		return nil, "ConditionalCheckFailedException"
	}
	if op == "DeleteItem" {
		if exists {
			d.replace(t, key, nil)
		}
		return map[string]any{}, ""
	}
	if it = maps.Clone(it); !exists {
		it = maps.Clone(in.Key)
	}
	places := clauses.FindAllStringSubmatchIndex(in.UpdateExpression, -1)
	for i, p := range places {
		end := len(in.UpdateExpression)
		if i+1 < len(places) {
			end = places[i+1][0]
		}
		for _, part := range strings.Split(strings.TrimSpace(in.UpdateExpression[p[1]:end]), ", ") {
			fields := strings.Fields(strings.ReplaceAll(part, " = ", " "))
			name := in.ExpressionAttributeNames[fields[0]]
			switch in.UpdateExpression[p[2]:p[3]] {
			case "SET":
				it[name] = in.ExpressionAttributeValues[fields[1]]
			case "REMOVE":
				delete(it, name)
			case "ADD":
				n := 0
				if it[name].N != nil {
					n, _ = strconv.Atoi(*it[name].N)
				}
				more, _ := strconv.Atoi(*in.ExpressionAttributeValues[fields[1]].N)
				sum := strconv.Itoa(n + more)
				it[name] = attr{N: &sum}
			}
		}
	}
	d.replace(t, key, it)
	if in.ReturnValues == "ALL_NEW" {
		return map[string]any{"Attributes": it}, ""
	}
	return map[string]any{}, ""
}
