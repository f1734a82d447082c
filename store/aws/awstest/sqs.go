package awstest

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

type queue struct {
	messages []*message
}

type message struct {
	id, body, handle string
	visible          time.Time
	received         int
}

// Move moves all messages of a queue to another, as the service does with those that were received too often.
func (d *Double) Move(from, to string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queues[to].messages = append(d.queues[to].messages, d.queues[from].messages...)
	d.queues[from].messages = nil
}

// Put puts somebody else's message into a queue.
func (d *Double) Put(queue, id, body string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queues[queue].messages = append(d.queues[queue].messages, &message{id: id, body: body, visible: d.options.Now()})
}

func (d *Double) serveQueue(op string, in request, half bool) (any, string) {
	const noQueue = "com.amazonaws.sqs#QueueDoesNotExist"
	name := in.QueueName
	if name == "" {
		name = in.QueueURL[strings.LastIndex(in.QueueURL, "/")+1:]
	}
	q := d.queues[name]
	if q == nil && op != "CreateQueue" && (op != "GetQueueUrl" || !d.options.OnDemand) {
		return nil, noQueue
	}
	now := d.options.Now()
	byHandle := func(handle string) (int, string) {
		i := slices.IndexFunc(q.messages, func(m *message) bool { return m.handle == handle })
		if i < 0 {
			return i, "ReceiptHandleIsInvalid"
		}
		return i, ""
	}
	switch op {
	case "CreateQueue", "GetQueueUrl":
		if q == nil {
			d.queues[name] = &queue{}
		}
		return map[string]any{"QueueUrl": endpoint + "/1/" + name}, ""
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
			q.messages = append(q.messages, &message{id: strconv.Itoa(d.serial), body: m.MessageBody,
				visible: now.Add(time.Duration(m.DelaySeconds) * time.Second)})
			sent = append(sent, map[string]any{"Id": m.ID, "MessageId": strconv.Itoa(d.serial), "MD5OfMessageBody": md5Of(m.MessageBody)})
		}
		return map[string]any{"Successful": sent, "Failed": failed}, ""
	case "ReceiveMessage":
		var got []map[string]any
		for _, m := range d.due(q, in.MaxNumberOfMessages) {
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

// shuffleWindow is among how many due messages a random source chooses the next.
const shuffleWindow = 64

// due are the messages to be received next.
func (d *Double) due(q *queue, limit int) []*message {
	now := d.options.Now()
	var due []*message
	for _, m := range q.messages {
		if !m.visible.After(now) {
			due = append(due, m)
		}
	}
	slices.SortStableFunc(due, func(a, b *message) int { return a.visible.Compare(b.visible) })
	if r := d.options.Rand; r != nil {
		due = due[:min(len(due), max(limit, shuffleWindow))]
		r.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	}
	return due[:min(limit, len(due))]
}

func md5Of(s string) string {
	sum := md5.Sum([]byte(s))
	return hex.EncodeToString(sum[:])
}
