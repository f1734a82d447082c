package aws_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"

	"github.com/storacha/w3filecoin/store/aws"
	"github.com/storacha/w3filecoin/store/storetest"
)

// double answers what the engine asks of DynamoDB, SQS and S3, over HTTP, from memory, on a clock that moves only when told to. It knows no more of
// the services than that; what they really do is tested by `make test-aws`. Its use is that it can fail.
type double struct {
	clock  *storetest.FakeClock
	server *httptest.Server

	mu      sync.Mutex
	tables  map[string]*doubleTable
	queues  map[string]*doubleQueue
	objects map[string][]byte
	parts   map[string]map[int][]byte
	serial  int

	requests int
	ops      map[string]int
	fault    func(request int, op string) fault
	late     bool // indexes show what was there at the last settle
}

// fault is what happens to a request.
type fault int

const (
	fine     fault = iota
	throttle       // refused: too many
	broken         // HTTP 500, nothing done
	lost           // done, and HTTP 500
	cut            // done, and the connection closed without an answer
	partial        // of a batch, only every other entry is done
	short          // the answer breaks off in the middle
)

func (f fault) String() string {
	return [...]string{"fine", "throttle", "500 before", "500 after", "cut off after", "partial", "short answer"}[f]
}

type doubleAttr struct {
	S *string `json:"S,omitempty"`
	N *string `json:"N,omitempty"`
	B *[]byte `json:"B,omitempty"`
}

type doubleItem map[string]doubleAttr

type doubleTable struct {
	keys    []string
	indexes map[string][]string
	items   map[string]doubleItem
	seen    map[string]doubleItem // by indexes that are late
}

type doubleQueue struct {
	messages []*doubleMessage
}

type doubleMessage struct {
	id, body, handle string
	visible          time.Time
	received         int
}

func newDouble(t testing.TB) *double {
	d := &double{clock: storetest.NewClock(), tables: map[string]*doubleTable{}, queues: map[string]*doubleQueue{},
		objects: map[string][]byte{}, parts: map[string]map[int][]byte{}, ops: map[string]int{}}
	d.server = httptest.NewServer(d)
	t.Cleanup(d.server.Close)
	return d
}

func (d *double) location() aws.Location {
	return aws.Location{Prefix: "test", Region: "us-east-1", DynamoDB: d.server.URL, SQS: d.server.URL, S3: d.server.URL, PathStyle: true}
}

// options are those of an engine on the double; attempts is how often the SDK makes a request.
func (d *double) options(t testing.TB, role string, attempts int) aws.Options {
	o := options(t, role)
	o.Now = d.clock.Now
	o.After = func(pause time.Duration) <-chan time.Time {
		d.clock.Advance(pause)
		c := make(chan time.Time, 1)
		c <- d.clock.Now()
		return c
	}
	o.Configure = func(cfg *awssdk.Config) {
		cfg.Credentials = awssdk.CredentialsProviderFunc(func(context.Context) (awssdk.Credentials, error) {
			return awssdk.Credentials{AccessKeyID: "test", SecretAccessKey: "test"}, nil
		})
		cfg.Retryer = func() awssdk.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) {
				o.MaxAttempts = attempts
				o.Backoff = retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return 0, nil })
			})
		}
	}
	return o
}

// settle lets late indexes show what is there.
func (d *double) settle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.tables {
		t.seen = maps.Clone(t.items)
	}
}

// failing sets what happens to requests from now on, and counts them from 1 again.
func (d *double) failing(f func(request int, op string) fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault, d.requests = f, 0
}

func (d *double) count(op string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ops[op]
}

func (d *double) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	op := r.Method
	if target := r.Header.Get("X-Amz-Target"); target != "" {
		_, op, _ = strings.Cut(target, ".")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests++
	d.ops[op]++
	f := fine
	if d.fault != nil {
		f = d.fault(d.requests, op)
	}
	s3 := r.Header.Get("X-Amz-Target") == ""
	refuse := func(status int, code string) {
		answer := fmt.Sprintf(`{"__type":%q,"message":"no"}`, code)
		if s3 {
			answer = fmt.Sprintf("<Error><Code>%s</Code><Message>no</Message></Error>", code)
		}
		respond(w, status, []byte(answer))
	}
	switch f {
	case throttle:
		if s3 {
			refuse(503, "SlowDown")
		} else {
			refuse(400, "ThrottlingException")
		}
		return
	case broken:
		refuse(500, "InternalServerError")
		return
	}
	out := httptest.NewRecorder()
	if s3 {
		d.serveObject(out, r, body)
	} else {
		d.serveJSON(out, op, body, f == partial)
	}
	switch f {
	case lost:
		refuse(500, "InternalServerError")
	case cut:
		panic(http.ErrAbortHandler)
	case short:
		maps.Copy(w.Header(), out.Header())
		w.Header().Set("Content-Length", strconv.Itoa(out.Body.Len()))
		w.WriteHeader(out.Code)
		w.Write(out.Body.Bytes()[:out.Body.Len()/2])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	default:
		maps.Copy(w.Header(), out.Header())
		respond(w, out.Code, out.Body.Bytes())
	}
}

// respond answers with a checksum, as DynamoDB does.
func respond(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE(body)), 10))
	w.WriteHeader(status)
	w.Write(body)
}

// doubleRequest has the fields of all operations.
type doubleRequest struct {
	TableName                 string
	IndexName                 string
	Key, ExclusiveStartKey    doubleItem
	UpdateExpression          string
	ConditionExpression       string
	KeyConditionExpression    string
	ExpressionAttributeNames  map[string]string
	ExpressionAttributeValues doubleItem
	ReturnValues              string
	Limit                     int
	RequestItems              map[string][]struct{ PutRequest struct{ Item doubleItem } }
	KeySchema                 []struct{ AttributeName string }
	GlobalSecondaryIndexes    []struct {
		IndexName string
		KeySchema []struct{ AttributeName string }
	}

	QueueName, QueueURL string
	Attributes          map[string]string
	Entries             []struct {
		ID            string `json:"Id"`
		MessageBody   string
		ReceiptHandle string
		DelaySeconds  int
	}
	ReceiptHandle       string
	MaxNumberOfMessages int
	VisibilityTimeout   int
}

func (d *double) serveJSON(w *httptest.ResponseRecorder, op string, body []byte, half bool) {
	var in doubleRequest
	if err := json.Unmarshal(body, &in); err != nil {
		panic(err)
	}
	var out any = map[string]any{}
	code := ""
	switch op {
	case "CreateTable":
		t := &doubleTable{indexes: map[string][]string{}, items: map[string]doubleItem{}, seen: map[string]doubleItem{}}
		for _, k := range in.KeySchema {
			t.keys = append(t.keys, k.AttributeName)
		}
		for _, i := range in.GlobalSecondaryIndexes {
			for _, k := range i.KeySchema {
				t.indexes[i.IndexName] = append(t.indexes[i.IndexName], k.AttributeName)
			}
		}
		if d.tables[in.TableName] == nil {
			d.tables[in.TableName] = t
		}
	case "DescribeTable":
		out = map[string]any{"Table": map[string]any{"TableStatus": "ACTIVE"}}
	case "GetItem":
		if it, ok := d.tables[in.TableName].items[d.key(in.TableName, in.Key)]; ok {
			out = map[string]any{"Item": it}
		}
	case "UpdateItem", "DeleteItem":
		out, code = d.write(op, in)
	case "BatchWriteItem":
		left := map[string][]any{}
		n := 0
		for table, puts := range in.RequestItems {
			for _, p := range puts {
				if n++; half && n%2 == 0 {
					left[table] = append(left[table], p)
					continue
				}
				d.tables[table].items[d.key(table, p.PutRequest.Item)] = p.PutRequest.Item
			}
		}
		out = map[string]any{"UnprocessedItems": left}
	case "Query", "Scan":
		out = d.query(in)
	default:
		out, code = d.serveQueue(op, in, half)
	}
	if code != "" {
		w.WriteHeader(400)
		fmt.Fprintf(w, `{"__type":%q,"message":"no"}`, code)
		return
	}
	if err := json.NewEncoder(w).Encode(out); err != nil {
		panic(err)
	}
}

func (a doubleAttr) String() string {
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

func (a doubleAttr) there() bool { return a != doubleAttr{} }

func (d *double) key(table string, it doubleItem) string {
	var parts []string
	for _, k := range d.tables[table].keys {
		parts = append(parts, it[k].String())
	}
	return strings.Join(parts, "\xff")
}

var (
	comparison = regexp.MustCompile(`^(#\d+) (=|>=|<=) (:\d+)$`)
	predicate  = regexp.MustCompile(`^(attribute_exists|attribute_not_exists|begins_with)\((#\d+)(?:, (:\d+))?\)$`)
	clauses    = regexp.MustCompile(`(ADD|REMOVE|SET) `)
)

// holds evaluates a condition: some of several that all hold.
func (in doubleRequest) holds(condition string, it doubleItem) bool {
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

func (d *double) write(op string, in doubleRequest) (any, string) {
	t := d.tables[in.TableName]
	key := d.key(in.TableName, in.Key)
	it, exists := t.items[key]
	if !in.holds(in.ConditionExpression, it) {
		return nil, "ConditionalCheckFailedException"
	}
	if op == "DeleteItem" {
		delete(t.items, key)
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
				it[name] = doubleAttr{N: &sum}
			}
		}
	}
	t.items[key] = it
	if in.ReturnValues == "ALL_NEW" {
		return map[string]any{"Attributes": it}, ""
	}
	return map[string]any{}, ""
}

func (d *double) query(in doubleRequest) any {
	t := d.tables[in.TableName]
	items, order := t.items, t.keys
	if in.IndexName != "" {
		order = append(slices.Clone(t.indexes[in.IndexName]), t.keys...)
		if d.late {
			items = t.seen
		}
	}
	place := func(it doubleItem) string {
		var parts []string
		for _, k := range order {
			parts = append(parts, it[k].String())
		}
		return strings.Join(parts, "\xff")
	}
	var found []doubleItem
	for _, it := range items {
		if in.IndexName != "" && !it[order[0]].there() {
			continue
		}
		if in.holds(in.KeyConditionExpression, it) && (in.ExclusiveStartKey == nil || place(it) > place(in.ExclusiveStartKey)) {
			found = append(found, it)
		}
	}
	slices.SortFunc(found, func(a, b doubleItem) int { return strings.Compare(place(a), place(b)) })
	out := map[string]any{}
	if in.Limit > 0 && len(found) >= in.Limit {
		found = found[:in.Limit]
		last := doubleItem{}
		for _, k := range order {
			last[k] = found[in.Limit-1][k]
		}
		out["LastEvaluatedKey"] = last
	}
	out["Items"] = found
	return out
}

func (d *double) serveQueue(op string, in doubleRequest, half bool) (any, string) {
	const noQueue = "com.amazonaws.sqs#QueueDoesNotExist"
	name := in.QueueName
	if name == "" {
		name = in.QueueURL[strings.LastIndex(in.QueueURL, "/")+1:]
	}
	q := d.queues[name]
	if q == nil && op != "CreateQueue" {
		return nil, noQueue
	}
	now := d.clock.Now()
	byHandle := func(handle string) (int, string) {
		i := slices.IndexFunc(q.messages, func(m *doubleMessage) bool { return m.handle == handle })
		if i < 0 {
			return i, "ReceiptHandleIsInvalid"
		}
		return i, ""
	}
	switch op {
	case "CreateQueue", "GetQueueUrl":
		if q == nil {
			d.queues[name] = &doubleQueue{}
		}
		return map[string]any{"QueueUrl": d.server.URL + "/1/" + name}, ""
	case "SetQueueAttributes":
		return map[string]any{}, ""
	case "GetQueueAttributes":
		visible := 0
		for _, m := range q.messages {
			if !m.visible.After(now) {
				visible++
			}
		}
		return map[string]any{"Attributes": map[string]string{"QueueArn": "arn:" + name,
			"ApproximateNumberOfMessages": strconv.Itoa(visible), "ApproximateNumberOfMessagesDelayed": "0",
			"ApproximateNumberOfMessagesNotVisible": strconv.Itoa(len(q.messages) - visible)}}, ""
	case "SendMessageBatch":
		var sent, failed []map[string]any
		for i, m := range in.Entries {
			if half && i%2 == 1 {
				failed = append(failed, map[string]any{"Id": m.ID, "Code": "InternalError", "SenderFault": false})
				continue
			}
			d.serial++
			q.messages = append(q.messages, &doubleMessage{id: strconv.Itoa(d.serial), body: m.MessageBody,
				visible: now.Add(time.Duration(m.DelaySeconds) * time.Second)})
			sent = append(sent, map[string]any{"Id": m.ID, "MessageId": strconv.Itoa(d.serial), "MD5OfMessageBody": md5Of(m.MessageBody)})
		}
		return map[string]any{"Successful": sent, "Failed": failed}, ""
	case "ReceiveMessage":
		var got []map[string]any
		for _, m := range q.messages {
			if len(got) == in.MaxNumberOfMessages || m.visible.After(now) {
				continue
			}
			d.serial++
			m.received++
			m.handle, m.visible = fmt.Sprint("handle-", d.serial), now.Add(time.Duration(in.VisibilityTimeout)*time.Second)
			got = append(got, map[string]any{"MessageId": m.id, "ReceiptHandle": m.handle, "Body": m.body, "MD5OfBody": md5Of(m.body),
				"Attributes": map[string]string{"ApproximateReceiveCount": strconv.Itoa(m.received)}})
		}
		return map[string]any{"Messages": got}, ""
	case "DeleteMessage":
		i, code := byHandle(in.ReceiptHandle)
		if code == "" {
			q.messages = slices.Delete(q.messages, i, i+1)
		}
		return map[string]any{}, "" // as the service does for stale handles
	case "DeleteMessageBatch":
		var gone, failed []map[string]any
		for i, e := range in.Entries {
			if half && i%2 == 1 {
				failed = append(failed, map[string]any{"Id": e.ID, "Code": "InternalError", "SenderFault": false})
				continue
			}
			if i, code := byHandle(e.ReceiptHandle); code == "" {
				q.messages = slices.Delete(q.messages, i, i+1)
			}
			gone = append(gone, map[string]any{"Id": e.ID})
		}
		return map[string]any{"Successful": gone, "Failed": failed}, ""
	case "ChangeMessageVisibility":
		i, code := byHandle(in.ReceiptHandle)
		if code == "" {
			q.messages[i].visible = now.Add(time.Duration(in.VisibilityTimeout) * time.Second)
		}
		return map[string]any{}, code
	}
	return nil, "UnknownOperationException"
}

func md5Of(s string) string {
	sum := md5.Sum([]byte(s))
	return hex.EncodeToString(sum[:])
}

func (d *double) serveObject(w *httptest.ResponseRecorder, r *http.Request, body []byte) {
	q := r.URL.Query()
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if key == "" && q.Get("list-type") == "" {
		return // the bucket is there
	}
	b, there := d.objects[key]
	missing := func() {
		w.WriteHeader(404)
		fmt.Fprint(w, "<Error><Code>NoSuchKey</Code></Error>")
	}
	switch upload := q.Get("uploadId"); {
	case r.Method == "POST" && q.Has("uploads"):
		d.serial++
		id := fmt.Sprint("upload-", d.serial)
		d.parts[id] = map[int][]byte{}
		fmt.Fprintf(w, "<InitiateMultipartUploadResult><Bucket>%s</Bucket><Key>%s</Key><UploadId>%s</UploadId></InitiateMultipartUploadResult>", bucket, key, id)
	case r.Method == "PUT" && upload != "":
		n, _ := strconv.Atoi(q.Get("partNumber"))
		d.parts[upload][n] = body
		w.Header().Set("ETag", fmt.Sprintf("%q", q.Get("partNumber")))
	case r.Method == "POST" && upload != "":
		if d.parts[upload] == nil && there {
			return // completed before
		}
		var whole []byte
		for _, n := range slices.Sorted(maps.Keys(d.parts[upload])) {
			whole = append(whole, d.parts[upload][n]...)
		}
		d.objects[key] = whole
		delete(d.parts, upload)
		fmt.Fprint(w, "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")
	case r.Method == "DELETE" && upload != "":
		delete(d.parts, upload)
		w.WriteHeader(204)
	case r.Method == "PUT":
		if there && r.Header.Get("If-None-Match") == "*" {
			w.WriteHeader(412)
			fmt.Fprint(w, "<Error><Code>PreconditionFailed</Code></Error>")
			return
		}
		d.objects[key] = body
	case r.Method == "DELETE":
		delete(d.objects, key)
		w.WriteHeader(204)
	case q.Get("list-type") == "2":
		type content struct{ Key string }
		out := struct {
			XMLName     xml.Name `xml:"ListBucketResult"`
			IsTruncated bool
			Contents    []content
		}{}
		limit, _ := strconv.Atoi(q.Get("max-keys"))
		for _, k := range slices.Sorted(maps.Keys(d.objects)) {
			if strings.HasPrefix(k, q.Get("prefix")) && k > q.Get("start-after") {
				if out.IsTruncated = len(out.Contents) == limit; out.IsTruncated {
					break
				}
				out.Contents = append(out.Contents, content{k})
			}
		}
		if err := xml.NewEncoder(w).Encode(out); err != nil {
			panic(err)
		}
	case !there:
		missing()
	case r.Method == "HEAD":
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	default:
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}
