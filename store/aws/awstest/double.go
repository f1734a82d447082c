// Package awstest is a double of DynamoDB, SQS and S3 for tests: in the process, in memory, on the caller's clock, and able to fail in every way that the
// services can. It knows no more of them than the engine asks for; what they really do is tested by `make test-aws`.
//
// [Open] opens an engine on a double for simulations: one goroutine, one request at a time, everything that varies from given sources.
package awstest

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
	"strconv"
	"strings"
	"sync"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go/logging"

	"github.com/storacha/w3filecoin/store/aws"
)

// Double is the three services. It implements the SDK's HTTP client; see [Double.Configure].
type Double struct {
	options Options

	mu      sync.Mutex
	tables  map[string]*table
	queues  map[string]*queue
	objects map[string][]byte
	parts   map[string]map[int][]byte
	serial  int
	writes  int // to tables

	requests int
	ops      map[string]int
	fault    func(request int, op string) Fault
}

// Options configures a double. Now is required.
type Options struct {
	// Now is its clock.
	Now func() time.Time
	// IndexLag and IndexLagCommits say when indexes of tables show a write: once so much time has passed, or so many further writes to any table have been
	// made. Zero or less: at once.
	IndexLag        time.Duration
	IndexLagCommits int
	// Rand, if set, chooses which of the messages that are due are received next. Without it those that have been due the longest come first.
	Rand *rand.Rand
	// OnDemand creates queues when they are looked for.
	OnDemand bool
}

// Fault is what happens to a request.
type Fault int

// Faults.
const (
	Fine     Fault = iota
	Throttle       // refused: too many
	Broken         // HTTP 500, nothing done
	Lost           // done, and HTTP 500
	Cut            // done, and the connection closed without an answer
	Partial        // of a batch, only every other entry is done
	Short          // the answer breaks off in the middle
	Refused        // no connection, nothing done
)

func (f Fault) String() string {
	return [...]string{"fine", "throttle", "500 before", "500 after", "cut off after", "partial", "short answer", "no connection"}[f]
}

// New returns services that have nothing.
func New(o Options) *Double {
	return &Double{options: o, tables: map[string]*table{}, queues: map[string]*queue{},
		objects: map[string][]byte{}, parts: map[string]map[int][]byte{}, ops: map[string]int{}}
}

// endpoint is a URL that nothing connects to.
const endpoint = "http://double.test"

// Location is where an engine finds the double.
func (d *Double) Location() aws.Location {
	return aws.Location{Prefix: "test", Region: "us-east-1", DynamoDB: endpoint, SQS: endpoint, S3: endpoint, PathStyle: true}
}

// Configure lets an engine reach the double: for [aws.Options]. Attempts is how often the SDK makes a request, without pauses.
func (d *Double) Configure(attempts int) func(*awssdk.Config) {
	return func(cfg *awssdk.Config) {
		cfg.HTTPClient = d
		cfg.Logger = logging.Nop{}                      // it tells of every answer that breaks off
		cfg.Credentials = awssdk.AnonymousCredentials{} // signing takes as long as everything else
		cfg.Retryer = func() awssdk.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) {
				o.MaxAttempts = attempts
				o.Backoff = retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return 0, nil })
				o.RateLimiter = ratelimit.None
			})
		}
	}
}

// Failing sets what happens to requests from now on, and counts them from 1 again. The function is called by one request at a time; nil: all is fine.
func (d *Double) Failing(f func(request int, op string) Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault, d.requests = f, 0
}

// Count is how often an operation was requested so far: "UpdateItem", or the method of a request to S3.
func (d *Double) Count(op string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ops[op]
}

// errCut is what becomes of connections.
var errCut = errors.New("awstest: connection closed")

// Do implements [awssdk.HTTPClient].
func (d *Double) Do(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		defer r.Body.Close()
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	op := r.Method
	if target := r.Header.Get("X-Amz-Target"); target != "" {
		_, op, _ = strings.Cut(target, ".")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests++
	d.ops[op]++
	f := Fine
	if d.fault != nil {
		f = d.fault(d.requests, op)
	}
	s3 := r.Header.Get("X-Amz-Target") == ""
	refuse := func(status int, code string) *http.Response {
		answer := fmt.Sprintf(`{"__type":%q,"message":"no"}`, code)
		if s3 {
			answer = fmt.Sprintf("<Error><Code>%s</Code><Message>no</Message></Error>", code)
		}
		return response(r, status, http.Header{}, []byte(answer))
	}
	switch {
	case f == Refused:
		return nil, errCut
	case f == Throttle && s3:
		return refuse(503, "SlowDown"), nil
	case f == Throttle:
		return refuse(400, "ThrottlingException"), nil
	case f == Broken:
		return refuse(500, "InternalServerError"), nil
	}
	out := httptest.NewRecorder()
	if s3 {
		d.serveObject(out, r, body)
	} else {
		d.serveJSON(out, op, body, f == Partial)
	}
	switch f {
	case Lost:
		return refuse(500, "InternalServerError"), nil
	case Cut:
		return nil, errCut
	}
	answer := response(r, out.Code, out.Header(), out.Body.Bytes())
	if f == Short {
		answer.Body = io.NopCloser(io.MultiReader(bytes.NewReader(out.Body.Bytes()[:out.Body.Len()/2]), cutReader{}))
	}
	return answer, nil
}

// cutReader is the rest of an answer whose connection was closed.
type cutReader struct{}

func (cutReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// response is an answer with a checksum, as DynamoDB gives one.
func response(r *http.Request, status int, header http.Header, body []byte) *http.Response {
	header = maps.Clone(header)
	header.Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE(body)), 10))
	length := int64(len(body))
	if n, err := strconv.ParseInt(header.Get("Content-Length"), 10, 64); err == nil {
		length = n // of what HEAD does not send
	}
	return &http.Response{Status: fmt.Sprintf("%d %s", status, http.StatusText(status)), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: length, Request: r}
}

// request has the fields of all operations of DynamoDB and SQS.
type request struct {
	TableName                 string
	IndexName                 string
	Key, ExclusiveStartKey    item
	UpdateExpression          string
	ConditionExpression       string
	KeyConditionExpression    string
	ExpressionAttributeNames  map[string]string
	ExpressionAttributeValues item
	ReturnValues              string
	Limit                     int
	RequestItems              map[string][]struct{ PutRequest struct{ Item item } }
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

func (d *Double) serveJSON(w *httptest.ResponseRecorder, op string, body []byte, half bool) {
	var in request
	if err := json.Unmarshal(body, &in); err != nil {
		panic(err) // the SDK does not send that
	}
	out, code, known := d.serveTable(op, in, half)
	if !known {
		out, code = d.serveQueue(op, in, half)
	}
	if code != "" {
		w.WriteHeader(400)
		fmt.Fprintf(w, `{"__type":%q,"message":"no"}`, code)
		return
	}
	if err := json.NewEncoder(w).Encode(out); err != nil {
		panic(err) // maps and texts
	}
}
