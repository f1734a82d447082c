package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/wire"
)

// ContentType is what agent messages are sent as.
const ContentType = "application/vnd.ipld.car"

// maxReply bounds the bytes of a reply that are read.
const maxReply = 32 << 20

// Conn reaches a role over HTTP. It implements [capabilities.Conn] and is safe for concurrent use.
type Conn struct {
	url  string
	http *http.Client
}

// Dial returns a connection to the role at url; it opens none before the first call. A nil client gets a timeout of 60 seconds, which is longer
// than any role takes to answer.
func Dial(url string, c *http.Client) *Conn {
	if c == nil {
		c = &http.Client{Timeout: time.Minute}
	}
	return &Conn{strings.TrimSuffix(url, "/"), c}
}

// Execute implements [capabilities.Conn].
func (c *Conn) Execute(ctx context.Context, m *capabilities.Message) (*capabilities.Message, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/", bytes.NewReader(m.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", ContentType)
	req.Header.Set("Accept", ContentType)
	resp, err := c.do(req)
	if err != nil {
		return nil, err
	}
	switch resp.code {
	case http.StatusOK:
		reply, err := wire.DecodeMessage(resp.body, wire.Limits{})
		if err != nil {
			return nil, fmt.Errorf("reading the reply of %s: %w", c.url, err)
		}
		return reply, nil
	case http.StatusAccepted, http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusBadRequest:
		return nil, &capabilities.Unavailable{
			Accepted:   resp.code == http.StatusAccepted,
			Overloaded: resp.code == http.StatusTooManyRequests,
			Invalid:    resp.code == http.StatusBadRequest,
			RetryAfter: resp.retryAfter, Reason: text(resp.body, resp.status),
		}
	default:
		return nil, fmt.Errorf("%s answered %s: %s", c.url, resp.status, text(resp.body, ""))
	}
}

// Receipt implements [capabilities.Conn].
func (c *Conn) Receipt(ctx context.Context, task cid.Cid) (*capabilities.Message, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/receipt/"+task.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", ContentType)
	resp, err := c.do(req)
	if err != nil {
		return nil, err
	}
	switch resp.code {
	case http.StatusOK:
		m, err := wire.DecodeMessage(resp.body, wire.Limits{})
		if err != nil {
			return nil, fmt.Errorf("reading the receipt of %s from %s: %w", task, c.url, err)
		}
		return m, nil
	case http.StatusNotFound:
		return nil, capabilities.ErrNoReceipt
	default:
		return nil, fmt.Errorf("%s answered %s: %s", c.url, resp.status, text(resp.body, ""))
	}
}

// answer is a response that has been read.
type answer struct {
	code       int
	status     string
	retryAfter time.Duration
	body       []byte
}

func (c *Conn) do(req *http.Request) (answer, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, fmt.Errorf("calling %s: %w", c.url, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err == nil && len(body) > maxReply {
		err = errors.New("reply is too large")
	}
	if err != nil {
		return answer{}, fmt.Errorf("reading the reply of %s: %w", c.url, err)
	}
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		seconds = 0
	}
	return answer{resp.StatusCode, resp.Status, time.Duration(seconds) * time.Second, body}, nil
}

// text is the first line of an error body, for people.
func text(body []byte, otherwise string) string {
	s, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	if s == "" {
		return otherwise
	}
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return s
}
