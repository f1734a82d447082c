package ingest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"unicode/utf8"
)

// Kind is what an event says happened to an object.
type Kind string

// Kinds of events.
const (
	Created Kind = "created" // it is there, or there again with other bytes
	Removed Kind = "removed"
	Test    Kind = "test"  // somebody has set up the notifications of a bucket
	Other   Kind = "other" // it was tagged, restored, …
)

// An Event says what happened to one object.
type Event struct {
	Kind Kind
	// Name is the store's name of it: "ObjectCreated:Put", "Object Created", "PutObject".
	Name string
	// Bucket and Key name the object; an event of kind Test has no key.
	Bucket, Key string
}

// ErrMalformed: these bytes are no event of a bucket.
var ErrMalformed = errors.New("no event of a bucket")

// Bounds of what is decoded.
const (
	MaxBody    = 1 << 20 // bytes of a message: as much as SQS takes
	maxRecords = 1000
	maxKey     = 1024 // bytes of a key, as S3 has it
	maxName    = 255  // bytes of a bucket's name, and of an event's
)

// Decode reads the events of one message: an S3 notification (several events), an EventBridge event of S3, an R2 notification, or one of these that came
// by SNS. The error wraps ErrMalformed. Keys are decoded where the store encodes them.
func Decode(body []byte) ([]Event, error) {
	list, err := decode(body, true)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		if err := e.check(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

func decode(body []byte, outer bool) ([]Event, error) {
	if len(body) > MaxBody {
		return nil, malformed("it has %d bytes", len(body))
	}
	// By exact names first: some forms differ in nothing but case.
	var fields map[string]json.RawMessage
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(&fields); err != nil {
		return nil, malformed("it is not a JSON object")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, malformed("something follows the JSON object")
	}
	has := func(names ...string) bool {
		for _, name := range names {
			if fields[name] == nil {
				return false
			}
		}
		return true
	}
	switch {
	case has("Records"):
		return notification(fields["Records"])
	case has("Service", "Event", "Bucket"):
		return testEvent(fields)
	case has("detail-type", "source", "detail"):
		return bridged(fields)
	case has("action", "bucket", "object"):
		return ofR2(fields)
	case has("Type", "Message") && outer:
		var kind, message string
		if read(fields, "Type", &kind) != nil || read(fields, "Message", &message) != nil || kind != "Notification" {
			return nil, malformed("it is no notification of SNS")
		}
		return decode([]byte(message), false)
	}
	return nil, malformed("it has the form of no known event")
}

func read(fields map[string]json.RawMessage, name string, v any) error {
	if err := json.Unmarshal(fields[name], v); err != nil {
		return malformed("its %q is not what it should be", name)
	}
	return nil
}

// notification reads the records of an S3 notification. Keys are encoded as in a query.
func notification(raw json.RawMessage) ([]Event, error) {
	var records []struct {
		EventVersion string `json:"eventVersion"`
		EventSource  string `json:"eventSource"`
		EventName    string `json:"eventName"`
		S3           *struct {
			Bucket struct {
				Name string `json:"name"`
			} `json:"bucket"`
			Object struct {
				Key string `json:"key"`
			} `json:"object"`
		} `json:"s3"`
	}
	if err := json.Unmarshal(raw, &records); err != nil {
		return nil, malformed("its records are not those of S3")
	}
	if len(records) == 0 || len(records) > maxRecords {
		return nil, malformed("it has %d records", len(records))
	}
	var list []Event
	for _, r := range records {
		// Stores that speak S3 name themselves: "minio:s3".
		if r.S3 == nil || !strings.HasSuffix(r.EventSource, ":s3") {
			return nil, malformed("a record is of %q, not of S3", short(r.EventSource))
		}
		if major, _, _ := strings.Cut(r.EventVersion, "."); major != "2" {
			return nil, malformed("a record has version %q, not 2", short(r.EventVersion))
		}
		key, err := url.QueryUnescape(r.S3.Object.Key)
		if err != nil {
			return nil, malformed("key %q is not encoded as it should be", short(r.S3.Object.Key))
		}
		// Some stores write the names as they are configured: "s3:ObjectCreated:Put".
		name := strings.TrimPrefix(r.EventName, "s3:")
		kind := Other
		switch {
		case strings.HasPrefix(name, "ObjectCreated:"):
			kind = Created
		case strings.HasPrefix(name, "ObjectRemoved:"), strings.HasPrefix(name, "LifecycleExpiration:"):
			kind = Removed
		}
		list = append(list, Event{kind, name, r.S3.Bucket.Name, key})
	}
	return list, nil
}

// testEvent reads what S3 sends when notifications are set up.
func testEvent(fields map[string]json.RawMessage) ([]Event, error) {
	var service, event, bucket string
	for name, v := range map[string]*string{"Service": &service, "Event": &event, "Bucket": &bucket} {
		if err := read(fields, name, v); err != nil {
			return nil, err
		}
	}
	if service != "Amazon S3" || event != "s3:TestEvent" {
		return nil, malformed("event %q of %q is not known", short(event), short(service))
	}
	return []Event{{Kind: Test, Name: event, Bucket: bucket}}, nil
}

// bridged reads an EventBridge event of S3. Keys are as they are.
func bridged(fields map[string]json.RawMessage) ([]Event, error) {
	var name, source string
	var detail struct {
		Bucket struct {
			Name string `json:"name"`
		} `json:"bucket"`
		Object struct {
			Key string `json:"key"`
		} `json:"object"`
	}
	for field, v := range map[string]any{"detail-type": &name, "source": &source, "detail": &detail} {
		if err := read(fields, field, v); err != nil {
			return nil, err
		}
	}
	if source != "aws.s3" {
		return nil, malformed("it is of %q, not of S3", short(source))
	}
	kind := Other
	switch name {
	case "Object Created":
		kind = Created
	case "Object Deleted":
		kind = Removed
	}
	return []Event{{kind, name, detail.Bucket.Name, detail.Object.Key}}, nil
}

// ofR2 reads an event notification of R2. Keys are as they are.
func ofR2(fields map[string]json.RawMessage) ([]Event, error) {
	var action, bucket string
	var object struct {
		Key string `json:"key"`
	}
	for field, v := range map[string]any{"action": &action, "bucket": &bucket, "object": &object} {
		if err := read(fields, field, v); err != nil {
			return nil, err
		}
	}
	kind := Other
	switch action {
	case "PutObject", "CopyObject", "CompleteMultipartUpload":
		kind = Created
	case "DeleteObject", "LifecycleDeletion":
		kind = Removed
	}
	return []Event{{kind, action, bucket, object.Key}}, nil
}

// check refuses names that no object can have.
func (e Event) check() error {
	switch {
	case e.Bucket == "" || len(e.Bucket) > maxName || !utf8.ValidString(e.Bucket):
		return malformed("bucket %q", short(e.Bucket))
	case e.Name == "" || len(e.Name) > maxName || !utf8.ValidString(e.Name):
		return malformed("event %q", short(e.Name))
	case e.Kind != Test && (e.Key == "" || len(e.Key) > maxKey || !utf8.ValidString(e.Key)):
		return malformed("key %q", short(e.Key))
	}
	return nil
}

// short is text of somebody else's, cut for a message.
func short(s string) string {
	if len(s) > 100 {
		s = s[:100] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
