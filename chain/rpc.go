package chain

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// RPCError is an error that the node itself answered with.
type RPCError struct {
	Method  string // "ChainHead"
	Code    int    // JSON-RPC code; Lotus uses 1 for most errors of its own
	Message string
}

func (e *RPCError) Error() string {
	return fmt.Sprintf("%s: node answered with error %d: %s", e.Method, e.Code, e.Message)
}

// BusyError says that the node asks for patience: HTTP 429, or 503 with Retry-After. The call may be repeated after that time.
type BusyError struct {
	Method string
	Status int           // HTTP status
	After  time.Duration // as the node says, or a default when it does not
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("%s: node is busy (HTTP %d), retry after %s", e.Method, e.Status, e.After)
}

// RetryAfter returns how long the node wants to be left alone.
func (e *BusyError) RetryAfter() time.Duration { return e.After }

// statusError is an HTTP answer that carries no JSON-RPC message.
type statusError struct {
	method string
	status int
	body   string // an excerpt
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s: HTTP %d: %q", e.method, e.status, e.body)
}

// Bounds on what a node may make us wait.
const (
	defaultRetryAfter = 5 * time.Second
	maxRetryAfter     = time.Hour
)

// rpc is a JSON-RPC 2.0 client over HTTP for one node.
type rpc struct {
	base    string // scheme, host and path up to, not including, /rpc/v1
	token   string
	http    *http.Client
	timeout time.Duration
	limit   int64 // bytes of one answer
	now     func() time.Time
}

type rpcRequest struct {
	JSONRPC string `json:"jsonrpc"`
	ID      int    `json:"id"`
	Method  string `json:"method"`
	Params  []any  `json:"params"`
}

type rpcResponse struct {
	ID     json.RawMessage `json:"id"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

// call invokes a method of API version "v1" or "v2" and decodes its result. A result of null leaves result untouched.
func (c *rpc) call(ctx context.Context, version, method string, result any, params ...any) error {
	if params == nil {
		params = []any{}
	}
	body, err := json.Marshal(rpcRequest{JSONRPC: "2.0", ID: 1, Method: "Filecoin." + method, Params: params})
	if err != nil {
		return fmt.Errorf("%s: encoding request: %w", method, err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/rpc/"+version, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	req.Header.Set("Content-Type", "application/json")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	defer resp.Body.Close()
	// The status is looked at first where it alone decides: the body of a 429 is whatever the proxy in front writes.
	if after, busy := retryAfter(resp, c.now()); busy {
		return &BusyError{Method: method, Status: resp.StatusCode, After: after}
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, c.limit+1))
	if err != nil {
		return fmt.Errorf("%s: reading answer: %w", method, err)
	}
	if int64(len(answer)) > c.limit {
		return fmt.Errorf("%s: answer is over %d bytes", method, c.limit)
	}
	return decodeAnswer(method, resp.StatusCode, answer, result)
}

// decodeAnswer decodes the body of an answer. Nodes differ in the HTTP status of an error (Lotus 200 or 500, Forest 500, gateways
// their own), so the body is asked first.
func decodeAnswer(method string, status int, answer []byte, result any) error {
	var msg rpcResponse
	err := json.Unmarshal(answer, &msg)
	switch {
	case err == nil && msg.Error != nil:
		return &RPCError{Method: method, Code: msg.Error.Code, Message: msg.Error.Message}
	case status != http.StatusOK:
		return &statusError{method: method, status: status, body: excerpt(answer)}
	case err != nil:
		return fmt.Errorf("%s: decoding answer %q: %w", method, excerpt(answer), err)
	case string(bytes.TrimSpace(msg.ID)) != "1":
		return fmt.Errorf("%s: answer is to another request (id %q)", method, excerpt(msg.ID))
	case msg.Result == nil:
		return fmt.Errorf("%s: answer has neither result nor error", method)
	}
	if err := json.Unmarshal(msg.Result, result); err != nil {
		return fmt.Errorf("%s: decoding result %q: %w", method, excerpt(msg.Result), err)
	}
	return nil
}

// retryAfter reports whether an answer asks for patience, and for how long.
func retryAfter(resp *http.Response, now time.Time) (time.Duration, bool) {
	header := strings.TrimSpace(resp.Header.Get("Retry-After"))
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
	case resp.StatusCode == http.StatusServiceUnavailable && header != "":
	default:
		return 0, false
	}
	after := defaultRetryAfter
	if seconds, err := strconv.ParseUint(header, 10, 31); err == nil {
		after = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(header); err == nil {
		after = at.Sub(now)
	}
	return min(max(after, 0), maxRetryAfter), true
}

// excerpt returns the beginning of a foreign text, short enough for an error message.
func excerpt(b []byte) string {
	const limit = 200
	b = bytes.TrimSpace(b)
	if len(b) > limit {
		return string(b[:limit]) + "…"
	}
	return string(b)
}
