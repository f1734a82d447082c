// Package sqstest gives tests a queue of SQS in this process.
package sqstest

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Queue is as much of SQS as this project uses of one queue: it receives with long polling, deletes, and changes visibility. It looks at no
// signature.
type Queue struct {
	// URL is the queue's.
	URL string
	// Before, if set, sees the name of each action first, and answers the request if it returns true.
	Before func(w http.ResponseWriter, action string) bool

	mu      sync.Mutex
	list    []*message
	sent    int
	changed chan struct{} // closed when a message comes
}

type message struct {
	id, body, handle string
	count            int
	sent, visible    time.Time
}

// New serves a queue until the test ends.
func New(t testing.TB) *Queue {
	t.Helper()
	q := &Queue{changed: make(chan struct{})}
	server := httptest.NewServer(q)
	t.Cleanup(server.Close)
	q.URL = server.URL + "/000000000000/events"
	return q
}

// Send puts a message into the queue.
func (q *Queue) Send(body string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sent++
	now := time.Now()
	q.list = append(q.list, &message{id: fmt.Sprintf("00000000-0000-0000-0000-%012d", q.sent), body: body, sent: now, visible: now})
	close(q.changed)
	q.changed = make(chan struct{})
}

// Len returns how many messages nobody has deleted.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.list)
}

type request struct {
	QueueUrl, ReceiptHandle                                 string
	MaxNumberOfMessages, VisibilityTimeout, WaitTimeSeconds int
}

func (q *Queue) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	action := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS.")
	if q.Before != nil && q.Before(w, action) {
		return
	}
	var in request
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.QueueUrl != q.URL {
		Refuse(w, "QueueDoesNotExist", "there is no such queue")
		return
	}
	visible := time.Duration(in.VisibilityTimeout) * time.Second
	switch action {
	case "ReceiveMessage":
		end := time.After(time.Duration(in.WaitTimeSeconds) * time.Second)
		for {
			list, changed := q.receive(in.MaxNumberOfMessages, visible)
			if len(list) == 0 {
				select {
				case <-changed:
					continue
				case <-end:
				case <-r.Context().Done():
					return
				}
			}
			reply(w, map[string]any{"Messages": list})
			return
		}
	case "DeleteMessage", "ChangeMessageVisibility":
		if !q.change(in.ReceiptHandle, action == "DeleteMessage", visible) {
			Refuse(w, "ReceiptHandleIsInvalid", "the receipt handle is not valid")
			return
		}
		reply(w, map[string]any{})
	default:
		Refuse(w, "InvalidAction", action)
	}
}

func (q *Queue) receive(limit int, visible time.Duration) (list []map[string]any, changed <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for _, m := range q.list {
		if m.visible.After(now) || len(list) == limit {
			continue
		}
		m.count++
		m.visible, m.handle = now.Add(visible), fmt.Sprintf("%s/%d", m.id, m.count)
		sum := md5.Sum([]byte(m.body))
		list = append(list, map[string]any{"MessageId": m.id, "ReceiptHandle": m.handle, "Body": m.body, "MD5OfBody": hex.EncodeToString(sum[:]),
			"Attributes": map[string]string{"ApproximateReceiveCount": strconv.Itoa(m.count), "SentTimestamp": strconv.FormatInt(m.sent.UnixMilli(), 10)}})
	}
	return list, q.changed
}

func (q *Queue) change(handle string, remove bool, visible time.Duration) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := slices.IndexFunc(q.list, func(m *message) bool { return m.handle == handle })
	if n < 0 {
		return false
	}
	if remove {
		q.list = slices.Delete(q.list, n, n+1)
		return true
	}
	q.list[n].visible = time.Now().Add(visible)
	if visible == 0 {
		close(q.changed)
		q.changed = make(chan struct{})
	}
	return true
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	_ = json.NewEncoder(w).Encode(v)
}

// Refuse answers as SQS does when it refuses.
func Refuse(w http.ResponseWriter, code, text string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.WriteHeader(http.StatusBadRequest)
	_ = json.NewEncoder(w).Encode(map[string]string{"__type": "com.amazonaws.sqs#" + code, "message": text})
}
