package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/smithy-go"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/aws"
	"github.com/storacha/w3filecoin/store/aws/awstest"
)

// fault is what networks and services make of a request at times, all within what the services promise.
type fault string

const (
	throttled    fault = "throttled"
	failedBefore fault = "HTTP 500, nothing done"
	failedAfter  fault = "HTTP 500, but done"
	cutOff       fault = "connection cut, but done"
	partly       fault = "a batch done in part"
	twice        fault = "messages sent twice"
	late         fault = "a message delayed"
	oldPage      fault = "an old page of an index"
	shortPage    fault = "an index without its latest rows"
)

// faultRates are how many of a thousand requests each fault meets, of those that it can.
var faultRates = []struct {
	fault fault
	rate  int
	meets func(service, op string) bool
}{
	{throttled, 8, func(string, string) bool { return true }},
	{failedBefore, 4, func(string, string) bool { return true }},
	{failedAfter, 4, lossless},
	{cutOff, 4, lossless},
	// Messages that were received by a request without an answer come again when their lease has ended: a minute each time.
	{failedAfter, 1, func(_, op string) bool { return op == "ReceiveMessage" }},
	{cutOff, 1, func(_, op string) bool { return op == "ReceiveMessage" }},
	{partly, 20, func(_, op string) bool {
		return op == "SendMessageBatch" || op == "DeleteMessageBatch" || op == "BatchWriteItem"
	}},
	{twice, 20, func(_, op string) bool { return op == "SendMessageBatch" }},
	{late, 20, func(_, op string) bool { return op == "SendMessageBatch" }},
	{oldPage, 50, func(_, op string) bool { return op == indexQuery }},
	{shortPage, 50, func(_, op string) bool { return op == indexQuery }},
}

func lossless(_, op string) bool { return op != "ReceiveMessage" }

// indexQuery is a Query of an index, which is eventually consistent.
const indexQuery = "Query of an index"

// faults stands between processes and the services of their store. Each process has an address of its own there.
type faults struct {
	t      testing.TB
	where  aws.Location
	calm   bool // no faults: only looking
	client *http.Transport
	queues *sqs.Client

	mu       sync.Mutex
	r        *rand.Rand
	injected map[fault]int
	requests map[string]int               // by operation
	pages    map[string]page              // of indexes, by request
	held     map[string]map[string]string // URLs of queues by handles of messages that a process has received and not ended, by process
	handled  int                          // messages that were worked on and acknowledged, without those of timers that come again and again
	wanted   int                          // handled at which reached is closed
	reached  chan struct{}
}

// timers are the queues to which messages come again and again, whether there is work or not.
var timers = []string{"storefront-sweep", "storefront-pull-aggregate", "aggregator-lane", "aggregator-pull-aggregate", "dealer-poll", "dealtracker-poll"}

type page struct {
	at   time.Time
	body []byte
}

func newFaults(t testing.TB, where aws.Location, r *rand.Rand) *faults {
	f := &faults{t: t, where: where, r: r, client: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}, injected: map[fault]int{},
		requests: map[string]int{}, pages: map[string]page{}, held: map[string]map[string]string{}}
	t.Cleanup(f.client.CloseIdleConnections)
	clients, err := awstest.Dial(t.Context(), where)
	if err != nil {
		t.Fatal(err)
	}
	f.queues = clients.SQS
	return f
}

// location is where a process finds the services: all three at an address that is its own.
func (f *faults) location(process string) aws.Location {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f.serve(process, w, r) }))
	f.t.Cleanup(server.Close)
	where := f.where
	where.DynamoDB, where.SQS, where.S3 = server.URL, server.URL, server.URL
	return where
}

// after returns a channel that is closed when so many more messages have been worked on.
func (f *faults) after(n int) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wanted, f.reached = f.handled+n, make(chan struct{})
	return f.reached
}

func (f *faults) acknowledged(n int) {
	if f.handled += n; f.reached != nil && f.handled >= f.wanted {
		close(f.reached)
		f.reached = nil
	}
}

// draw decides what happens to a request.
func (f *faults) draw(service, op string) fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests[service+" "+op]++
	if f.calm {
		return ""
	}
	n := f.r.IntN(1000)
	for _, rate := range faultRates {
		if !rate.meets(service, op) {
			continue
		}
		if n < rate.rate {
			return rate.fault
		}
		n -= rate.rate
	}
	return ""
}

func (f *faults) injects(what fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.injected[what]++
}

// chance is a number below n, not below 0.
func (f *faults) chance(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.r.IntN(n)
}

func (f *faults) serve(process string, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // it is gone: killed, perhaps
	}
	service, op := "s3", r.Method
	if target, name, ok := strings.Cut(r.Header.Get("X-Amz-Target"), "."); ok {
		if service, op = "dynamodb", name; target == "AmazonSQS" {
			service = "sqs"
		}
	}
	if op == "Query" && bytes.Contains(body, []byte(`"IndexName"`)) {
		op = indexQuery
	}
	what := f.draw(service, op)
	switch what {
	case throttled, failedBefore:
		f.injects(what)
		refuse(w, service, what)
		return
	case oldPage:
		f.mu.Lock()
		old, known := f.pages[string(body)]
		f.mu.Unlock()
		if known && time.Since(old.at) < 10*time.Second {
			f.injects(what)
			answerJSON(w, http.StatusOK, old.body)
			return
		}
	case partly, late:
		var rest []byte
		if body, rest, err = f.change(what, op, body); err != nil {
			f.t.Errorf("%s of %s: %v", op, process, err)
		}
		f.injects(what)
		if body == nil {
			answerJSON(w, http.StatusOK, rest) // nothing is done
			return
		}
		f.forward(process, w, r, service, op, body, func(answer []byte) []byte { return merged(f.t, answer, rest) })
		return
	case failedAfter, cutOff:
		f.injects(what)
		f.forward(process, nil, r, service, op, body, nil)
		if what == cutOff {
			panic(http.ErrAbortHandler)
		}
		refuse(w, service, what)
		return
	case twice:
		f.injects(what)
		f.forward(process, nil, r, service, op, body, nil)
	case shortPage:
		f.forward(process, w, r, service, op, body, f.shorten)
		return
	}
	f.forward(process, w, r, service, op, body, nil)
}

// refuse answers with an error as the service would.
func refuse(w http.ResponseWriter, service string, what fault) {
	status, code := http.StatusInternalServerError, "InternalServerError"
	switch {
	case what == throttled && service == "dynamodb":
		status, code = http.StatusBadRequest, "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException"
	case what == throttled && service == "sqs":
		status, code = http.StatusBadRequest, "com.amazonaws.sqs#RequestThrottled"
	case what == throttled:
		status, code = http.StatusServiceUnavailable, "SlowDown"
	case service == "s3":
		code = "InternalError"
	}
	if service == "s3" {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>a fault of the test</Message></Error>", code)
		return
	}
	answerJSON(w, status, fmt.Appendf(nil, `{"__type":%q,"message":"a fault of the test"}`, code))
}

// answerJSON answers as DynamoDB does, with a checksum.
func answerJSON(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.Header().Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE(body)), 10))
	w.WriteHeader(status)
	w.Write(body)
}

// forward makes a request of the service and hands its answer on, changed by edit if that is not nil; nobody gets the answer if w is nil.
func (f *faults) forward(process string, w http.ResponseWriter, r *http.Request, service, op string, body []byte, edit func([]byte) []byte) {
	endpoint := map[string]string{"dynamodb": f.where.DynamoDB, "sqs": f.where.SQS, "s3": f.where.S3}[service]
	to, err := url.Parse(endpoint)
	if err != nil {
		f.t.Error(err)
		return
	}
	to.Path, to.RawPath, to.RawQuery = r.URL.Path, r.URL.RawPath, r.URL.RawQuery
	// What is being done is done, though whoever asked may be killed: a service does not take it back.
	req, err := http.NewRequest(r.Method, to.String(), bytes.NewReader(body))
	if err != nil {
		f.t.Error(err)
		return
	}
	req.Header, req.Host = r.Header.Clone(), r.Host
	resp, err := f.client.RoundTrip(req)
	var answer []byte
	if err == nil {
		defer resp.Body.Close()
		answer, err = io.ReadAll(resp.Body)
	}
	if err != nil {
		// A substitute that closes a connection at that moment: to its clients one more that is cut.
		panic(http.ErrAbortHandler)
	}
	if resp.StatusCode == http.StatusOK {
		f.learn(process, op, body, answer)
		if edit != nil {
			answer = edit(answer)
		}
	}
	if w == nil {
		return
	}
	maps.Copy(w.Header(), resp.Header)
	if r.Method != http.MethodHead {
		w.Header().Del("Content-Length")
	}
	if service == "dynamodb" {
		w.Header().Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE(answer)), 10))
	}
	w.WriteHeader(resp.StatusCode)
	w.Write(answer)
}

// batch has what is changed and learned of requests and answers.
type batch struct {
	QueueURL      string `json:"QueueUrl"`
	ReceiptHandle string
	// VisibilityTimeout is in seconds.
	VisibilityTimeout int
	Entries           []struct {
		ID            string `json:"Id"`
		ReceiptHandle string
	}
	Successful []struct {
		ID string `json:"Id"`
	}
	Messages []struct{ ReceiptHandle string }
}

// learn notes what an answer says about the work of a process.
func (f *faults) learn(process, op string, request, answer []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var in, out batch
	switch op {
	case indexQuery:
		if len(f.pages) > 1000 {
			clear(f.pages)
		}
		f.pages[string(request)] = page{time.Now(), answer}
		return
	case "ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibility":
		if json.Unmarshal(request, &in) != nil || len(answer) > 0 && json.Unmarshal(answer, &out) != nil {
			f.t.Errorf("%s: cannot be read: %s %s", op, request, answer)
			return
		}
	}
	held := f.held[process]
	if held == nil {
		held = map[string]string{}
		f.held[process] = held
	}
	switch op {
	case "ReceiveMessage":
		for _, m := range out.Messages {
			held[m.ReceiptHandle] = in.QueueURL
		}
	case "ChangeMessageVisibility":
		if in.VisibilityTimeout != int(store.DefaultLease/time.Second) { // what a handler that goes on with it asks for
			delete(held, in.ReceiptHandle)
		}
	case "DeleteMessageBatch":
		for _, done := range out.Successful {
			for _, e := range in.Entries {
				if e.ID == done.ID {
					delete(held, e.ReceiptHandle)
				}
			}
		}
		if _, queue, ok := strings.Cut(in.QueueURL, f.where.Prefix+"-"); ok && !slices.Contains(timers, queue) {
			f.acknowledged(len(out.Successful))
		}
	}
}

// holds is how many messages a process has received and neither acknowledged nor given back.
func (f *faults) holds(process string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.held[process])
}

// release lets what a dead process holds come again after some seconds. It would by itself when the leases end: after a minute, of which a piece on its way to
// a deal meets several when processes die all the time. Leases of which nobody knows end then.
func (f *faults) release(process string) {
	f.mu.Lock()
	held := f.held[process]
	delete(f.held, process)
	f.mu.Unlock()
	for _, handle := range slices.Sorted(maps.Keys(held)) {
		queue := held[handle]
		_, err := f.queues.ChangeMessageVisibility(f.t.Context(), &sqs.ChangeMessageVisibilityInput{
			QueueUrl: &queue, ReceiptHandle: &handle, VisibilityTimeout: int32(1 + f.chance(10)),
		})
		// One whose lease has ended, or that was acknowledged by a request of which the answer is on its way.
		if err != nil && !errors.As(err, new(smithy.APIError)) {
			f.t.Errorf("ending a lease: %v", err)
		}
	}
}

// change changes a batch of messages or items: only half of it is to be done, or a message comes late. rest answers for what is not to be done; do is nil
// if that is all.
func (f *faults) change(what fault, op string, body []byte) (do, rest []byte, err error) {
	var in map[string]any
	if err := json.Unmarshal(body, &in); err != nil {
		return body, nil, err
	}
	if op == "BatchWriteItem" {
		tables, _ := in["RequestItems"].(map[string]any)
		left := map[string]any{}
		for table, v := range tables {
			items, _ := v.([]any)
			half := len(items) / 2
			tables[table], left[table] = items[:half], items[half:]
			if half == 0 {
				delete(tables, table)
			}
		}
		if rest, err = json.Marshal(map[string]any{"UnprocessedItems": left}); err != nil || len(tables) == 0 {
			return nil, rest, err
		}
		do, err = json.Marshal(in)
		return do, rest, err
	}
	entries, _ := in["Entries"].([]any)
	if what == late {
		entry, _ := entries[f.chance(len(entries))].(map[string]any)
		delay, _ := entry["DelaySeconds"].(float64)
		entry["DelaySeconds"] = min(900, int(delay)+1+f.chance(5))
		do, err = json.Marshal(in)
		return do, nil, err
	}
	half := len(entries) / 2
	failed := []any{}
	for _, e := range entries[half:] {
		entry, _ := e.(map[string]any)
		failed = append(failed, map[string]any{"Id": entry["Id"], "Code": "InternalError", "Message": "a fault of the test", "SenderFault": false})
	}
	if rest, err = json.Marshal(map[string]any{"Successful": []any{}, "Failed": failed}); err != nil || half == 0 {
		return nil, rest, err
	}
	in["Entries"] = entries[:half]
	do, err = json.Marshal(in)
	return do, rest, err
}

// merged is an answer that says of some what rest says of them.
func merged(t testing.TB, answer, rest []byte) []byte {
	if rest == nil {
		return answer
	}
	var all, more map[string]json.RawMessage
	if json.Unmarshal(answer, &all) != nil || json.Unmarshal(rest, &more) != nil {
		t.Errorf("an answer that cannot be read: %s", answer)
		return answer
	}
	for _, name := range []string{"Failed", "UnprocessedItems"} {
		if v, ok := more[name]; ok {
			all[name] = v
		}
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Error(err)
	}
	return b
}

// shorten leaves the last third of a page out, as long as there is another page or none: its rows have not come to the index yet.
func (f *faults) shorten(answer []byte) []byte {
	var p map[string]any
	if err := json.Unmarshal(answer, &p); err != nil {
		f.t.Errorf("a page that cannot be read: %s", answer)
		return answer
	}
	items, _ := p["Items"].([]any)
	if len(items) == 0 {
		return answer
	}
	f.injects(shortPage)
	p["Items"] = items[:len(items)-(len(items)+2)/3]
	p["Count"] = len(items) - (len(items)+2)/3
	b, err := json.Marshal(p)
	if err != nil {
		f.t.Error(err)
	}
	return b
}

// report tells what was injected, and how often the services were asked.
func (f *faults) report(pieces int) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	all := 0
	for _, what := range slices.Sorted(maps.Keys(f.injected)) {
		list = append(list, fmt.Sprintf("%s %d", what, f.injected[what]))
		all += f.injected[what]
	}
	f.t.Logf("injected: %d faults: %s", all, strings.Join(list, ", "))
	for _, op := range slices.Sorted(maps.Keys(f.requests)) {
		f.t.Logf("asked: %-30s %8d requests, %6.1f a piece", op, f.requests[op], float64(f.requests[op])/float64(pieces))
	}
	f.t.Logf("%d messages were worked on, %.1f a piece", f.handled, float64(f.handled)/float64(pieces))
}
