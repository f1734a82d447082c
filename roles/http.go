package roles

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"golang.org/x/sync/semaphore"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// HTTP is how a server is reached over HTTP.
type HTTP struct {
	Server *Server
	// MaxBody is the most bytes of a request body; see [MaxBody].
	MaxBody int64
	// Decoding bounds the sum of the bodies that are being read and decoded, over all roles of a process.
	Decoding *semaphore.Weighted
	// BodyTimeout is how long the body of an invocation may take to arrive, how long one may wait for room in Decoding before that, and how
	// long a client may take to fetch its answer; 0: 30 s.
	BodyTimeout time.Duration
	// Ready reports whether the role can do its work; nil for always.
	Ready func() error
	// Version is shown at /version and on the banner.
	Version Version
	// Revocation returns the revocation of a delegation, for GET /revocations/{cid}.
	Revocations *Revocations
	// Routes are further handlers by pattern, such as the resolver of a storefront.
	Routes map[string]http.Handler
}

// Version is what GET /version answers.
type Version struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	DID     string `json:"did"`
	// PublicKey is the did:key of the key in use.
	PublicKey string `json:"publicKey"`
	Commit    string `json:"commit,omitempty"`
}

// MaxBody is the most bytes of a request body that a role reads: lists of pieces come to the dealer, batches of receipts to storefront and
// aggregator.
func MaxBody(role string) int64 {
	switch role {
	case "dealer":
		return 32 << 20
	case "aggregator", "storefront":
		return 8 << 20
	}
	return 1 << 20
}

// DecodingBudget bounds the bodies that one process decodes at a time, in bytes. With what they are decoded into, the answers, and garbage a
// process takes up to ten times as much for them, whatever it is sent.
const DecodingBudget = 128 << 20

// smallBody is what an ordinary invocation has: it does not wait behind large bodies that come in slowly.
const smallBody = 64 << 10

// defaultBodyTimeout is the default of [HTTP.BodyTimeout].
const defaultBodyTimeout = 30 * time.Second

// Handler returns the role's HTTP interface.
func (h *HTTP) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{$}", h.execute)
	mux.HandleFunc("GET /{$}", h.banner)
	mux.HandleFunc("GET /version", h.version)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", h.ready)
	mux.HandleFunc("GET /.well-known/did.json", h.didDocument)
	mux.HandleFunc("GET /receipt/{task}", h.receipt)
	mux.HandleFunc("GET /status/{cid}", h.status)
	mux.HandleFunc("GET /revocations/{cid}", h.revocation)
	for pattern, handler := range h.Routes {
		mux.Handle(pattern, handler)
	}
	return h.timely(cors(mux))
}

func (h *HTTP) bodyTimeout() time.Duration {
	if h.BodyTimeout == 0 {
		return defaultBodyTimeout
	}
	return h.BodyTimeout
}

// timely lets no client hold a connection by announcing a body and not sending it, whether the request is refused or not. Handlers that take
// long bodies set deadlines of their own. The server takes deadlines back once a body has been read, or the request answered. Connections that
// know none, as in some tests, do without.
func (h *HTTP) timely(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(h.bodyTimeout()))
		}
		next.ServeHTTP(w, r)
	})
}

// cors lets browsers speak to a role: nothing here acts by cookie.
func cors(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		if r.Method == http.MethodOptions {
			w.Header().Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT")
			w.Header().Set("Access-Control-Allow-Headers", "content-type, accept, authorization")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (h *HTTP) execute(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Content-Type") != client.ContentType {
		w.Header().Set("Accept", client.ContentType)
		http.Error(w, "unsupported content type: send an agent message as "+client.ContentType, http.StatusUnsupportedMediaType)
		return
	}
	if r.Header.Get("Content-Encoding") != "" {
		http.Error(w, "send the body without content encoding", http.StatusUnsupportedMediaType)
		return
	}
	if !accepts(r.Header.Get("Accept"), client.ContentType) {
		http.Error(w, "replies are "+client.ContentType, http.StatusNotAcceptable)
		return
	}
	// What is not announced may be as large as the limit.
	size := h.MaxBody
	if r.ContentLength >= 0 && r.ContentLength < size {
		size = r.ContentLength
	}
	if r.ContentLength > h.MaxBody {
		h.tooLarge(w)
		return
	}
	if size > smallBody {
		// That a client has gone does not show before its body is read: without an end of their own, those who wait would pile up.
		ctx, cancel := context.WithTimeout(r.Context(), h.bodyTimeout())
		err := h.Decoding.Acquire(ctx, size)
		cancel()
		if err != nil {
			writeUnavailable(w, &capabilities.Unavailable{RetryAfter: h.bodyTimeout(), Reason: "too many large messages at a time, try again"})
			return
		}
		defer h.Decoding.Release(size)
	}
	connection := http.NewResponseController(w)
	_ = connection.SetReadDeadline(time.Now().Add(h.bodyTimeout()))
	body, err := readBody(http.MaxBytesReader(w, r.Body, h.MaxBody), r.ContentLength, h.MaxBody)
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		h.tooLarge(w)
		return
	}
	if err != nil {
		http.Error(w, "Bad request: the body ended early", http.StatusBadRequest)
		return
	}
	m, err := wire.DecodeMessage(body, wire.Limits{})
	if err != nil {
		http.Error(w, "Bad request: Malformed payload - "+err.Error(), http.StatusBadRequest)
		return
	}
	reply, err := h.Server.Execute(r.Context(), m)
	if err != nil {
		writeUnavailable(w, err)
		return
	}
	// The answer may repeat most of the message, whose room is taken until it is written.
	_ = connection.SetWriteDeadline(time.Now().Add(h.bodyTimeout()))
	w.Header().Set("Content-Type", client.ContentType)
	w.Write(reply.Encode())
}

func (h *HTTP) tooLarge(w http.ResponseWriter) {
	w.Header().Set("Connection", "close")
	http.Error(w, fmt.Sprintf("a message may have %d bytes here", h.MaxBody), http.StatusRequestEntityTooLarge)
}

// readBody reads a body of the length, or if that is negative of at most limit bytes, beyond which r fails. A body that may be large is read
// into one buffer for which there is room: one that grows takes several times as much.
func readBody(r io.Reader, length, limit int64) ([]byte, error) {
	if length >= 0 {
		b := make([]byte, length)
		_, err := io.ReadFull(r, b)
		return b, err
	}
	b := make([]byte, 0, min(smallBody, limit+1))
	for {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case errors.Is(err, io.EOF):
			return b, nil
		case err != nil:
			return nil, err
		case len(b) == cap(b):
			b = append(make([]byte, 0, limit+1), b...)
		}
	}
}

func writeUnavailable(w http.ResponseWriter, err error) {
	var u *capabilities.Unavailable
	if !errors.As(err, &u) {
		u = &capabilities.Unavailable{Reason: "internal fault, try again"}
	}
	if u.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((u.RetryAfter+time.Second-1)/time.Second)))
	}
	code := http.StatusServiceUnavailable
	switch {
	case u.Accepted:
		code = http.StatusAccepted
	case u.Overloaded:
		code = http.StatusTooManyRequests
	case u.Invalid:
		code = http.StatusBadRequest
	}
	http.Error(w, u.Reason, code)
}

// accepts reports whether an Accept header allows a type. An empty one allows all.
func accepts(header, want string) bool {
	if header == "" {
		return true
	}
	for part := range strings.SplitSeq(header, ",") {
		t, params, err := mime.ParseMediaType(strings.TrimSpace(part))
		if err != nil || params["q"] == "0" {
			continue
		}
		major, _, _ := strings.Cut(want, "/")
		if t == want || t == "*/*" || t == major+"/*" {
			return true
		}
	}
	return false
}

func (h *HTTP) banner(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, `w3filecoin %s %s

%s

POST /                      invocations (%s)
GET  /receipt/{task CID}    a receipt, as CAR or (Accept: application/json) as JSON
GET  /status/{CID}          where a piece, content or aggregate stands
GET  /version  /healthz  /readyz  /metrics  /.well-known/did.json
`, h.Version.Name, h.Version.Version, h.Version.DID, client.ContentType)
}

func (h *HTTP) version(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, h.Version)
}

func (h *HTTP) ready(w http.ResponseWriter, _ *http.Request) {
	if h.Ready != nil {
		if err := h.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
	}
	fmt.Fprintln(w, "ready")
}

func (h *HTTP) didDocument(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, DIDDocument(h.Server.Signer))
}

// maxCIDText bounds the text that is decoded as a CID: that takes time that grows with the square of its length.
const maxCIDText = 256

// pathCID returns the CID in a part of the path, or answers that it is none.
func pathCID(w http.ResponseWriter, r *http.Request, name string) (c cid.Cid, ok bool) {
	text := r.PathValue(name)
	err := errors.New("too long")
	if len(text) <= maxCIDText {
		c, err = cid.Decode(text)
	}
	if err != nil {
		http.Error(w, "not a CID: "+clip(text), http.StatusBadRequest)
	}
	return c, err == nil
}

// soon is how long GET /receipt waits for a receipt that is being written.
const soon = 10 * time.Second

func (h *HTTP) receipt(w http.ResponseWriter, r *http.Request) {
	task, ok := pathCID(w, r, "task")
	if !ok {
		return
	}
	wait := h.Server.wait(task, soon)
	defer wait.end()
	for {
		m, err := h.Server.Service.Receipt(r.Context(), task)
		if err == nil {
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(h.bodyTimeout()))
			writeMessage(w, r, m)
			return
		}
		if !errors.Is(err, store.ErrNotFound) {
			h.fault(w, r, err)
			return
		}
		if !errors.Is(err, capabilities.ErrSoon) || !wait.again(r.Context()) {
			break
		}
	}
	if r.Context().Err() != nil {
		return
	}
	w.Header().Set("Retry-After", "10")
	http.Error(w, "no receipt (yet) of task "+task.String(), http.StatusNotFound)
}

func (h *HTTP) fault(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return
	}
	h.Server.Log.Error("answering a request", "role", h.Server.Name, "path", r.URL.Path, "err", err)
	http.Error(w, "internal fault, try again", http.StatusServiceUnavailable)
}

func writeMessage(w http.ResponseWriter, r *http.Request, m *capabilities.Message) {
	w.Header().Set("Vary", "Accept")
	if accepts(r.Header.Get("Accept"), client.ContentType) {
		w.Header().Set("Content-Type", client.ContentType)
		w.Write(m.Encode())
		return
	}
	writeJSON(w, http.StatusOK, ReadableMessage(m))
}

// ReadableReceipt is a receipt for people and scripts; the signed form is the CAR.
type ReadableReceipt struct {
	Receipt string          `json:"receipt"`
	Task    string          `json:"task"`
	Ability string          `json:"ability,omitempty"`
	With    string          `json:"with,omitempty"`
	Caveats json.RawMessage `json:"caveats,omitempty"`
	Issuer  string          `json:"issuer,omitempty"`
	OK      json.RawMessage `json:"ok,omitempty"`
	Error   json.RawMessage `json:"error,omitempty"`
	Fork    []string        `json:"fork,omitempty"`
	Join    string          `json:"join,omitempty"`
}

// ReadableMessage returns the receipts of a message as they are shown to people.
func ReadableMessage(m *capabilities.Message) []ReadableReceipt {
	list := []ReadableReceipt{}
	for _, r := range m.Receipts() {
		out := ReadableReceipt{Receipt: r.Link().String(), Task: r.Ran.String(), Issuer: r.Issuer.String()}
		if t, ok := capabilities.FindTask(m, r.Ran); ok {
			out.Ability, out.With = t.Can(), t.Resource()
			if nb := t.Capabilities[0].Nb; nb != nil {
				out.Caveats, _ = cbor.ToJSON(nb)
			}
		}
		if r.Out.OK != nil {
			out.OK, _ = cbor.ToJSON(r.Out.OK)
		} else {
			out.Error, _ = cbor.ToJSON(r.Out.Error)
		}
		for _, f := range r.Fork {
			out.Fork = append(out.Fork, f.String())
		}
		if r.Join.Defined() {
			out.Join = r.Join.String()
		}
		list = append(list, out)
	}
	return list
}

func (h *HTTP) status(w http.ResponseWriter, r *http.Request) {
	c, ok := pathCID(w, r, "cid")
	if !ok {
		return
	}
	status, err := h.Server.Service.Status(r.Context(), c)
	switch {
	case errors.Is(err, store.ErrNotFound):
		http.Error(w, "nothing is known of "+c.String(), http.StatusNotFound)
	case err != nil:
		h.fault(w, r, err)
	default:
		writeJSON(w, http.StatusOK, status)
	}
}

func (h *HTTP) revocation(w http.ResponseWriter, r *http.Request) {
	c, ok := pathCID(w, r, "cid")
	if !ok {
		return
	}
	m, err := h.Revocations.Get(r.Context(), c)
	switch {
	case errors.Is(err, store.ErrNotFound):
		http.Error(w, c.String()+" is not revoked", http.StatusNotFound)
	case err != nil:
		h.fault(w, r, err)
	default:
		w.Header().Set("Content-Type", client.ContentType)
		w.Write(m.Encode())
	}
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	// The client may be gone; there is nobody to tell.
	_ = enc.Encode(v)
}
