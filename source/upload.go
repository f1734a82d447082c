package source

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ipfs/go-cid"
)

const (
	uploadPath = "/upload/"
	// minTokenLen is what [NewUploadHandler] accepts as a secret, in characters.
	minTokenLen = 16
	// DefaultUploads is how many uploads run at a time.
	DefaultUploads = 64
	// DefaultUploadRate is the average below which an upload is ended, in bytes per second.
	DefaultUploadRate = 8 << 10
)

// UploadConfig configures [NewUploadHandler].
type UploadConfig struct {
	// Tokens are the bearer tokens that may upload, at least one, each of at least 16 characters.
	Tokens []string
	// MaxBytes is the longest content accepted. Required.
	MaxBytes int64
	// MaxUploads is how many run at a time; 0 means DefaultUploads. One more is told to come back.
	MaxUploads int
	// Stall ends an upload that sends nothing for that long; 0 means DefaultStall.
	Stall time.Duration
	// MinRate ends an upload that stays below it on average, in bytes per second; 0 means DefaultUploadRate.
	MinRate int64
	// Log receives what a client is not told: why storing failed. Nil discards.
	Log *slog.Logger
}

// NewUploadHandler takes content into custody at PUT /upload/{content CID}, and says at HEAD whether it is there.
// Both need a bearer token. The answer to a PUT is
//
//	201  stored, durable     {"content", "length", "url"}, Location: where it is served
//	200  it was there        the same
//	400  the path names no content, or the body is not that content
//	401  no valid token
//	408  the body came too slowly
//	411  no Content-Length
//	413  longer than the limit
//	503  too many uploads at once, with Retry-After
//	507  no space left
//
// and 500 for what is the service's own fault. Every refusal has the body {"name", "message"}. An upload may be
// repeated: content is stored once.
func NewUploadHandler(c *Custody, cfg UploadConfig) (http.Handler, error) {
	h := &uploadHandler{custody: c, cfg: cfg, now: time.Now}
	if _, ok := c.writable(); !ok {
		return nil, errors.New("uploads: the custody has no directory to store them in")
	}
	if len(cfg.Tokens) == 0 {
		return nil, errors.New("uploads: no token is set")
	}
	for _, token := range cfg.Tokens {
		if len(token) < minTokenLen || strings.ContainsAny(token, " \t\r\n") {
			return nil, fmt.Errorf("uploads: a token needs at least %d characters and no spaces", minTokenLen)
		}
		h.tokens = append(h.tokens, sha256.Sum256([]byte(token)))
	}
	if cfg.MaxBytes <= 0 {
		return nil, errors.New("uploads: no maximum length is set")
	}
	if h.cfg.MaxUploads <= 0 {
		h.cfg.MaxUploads = DefaultUploads
	}
	if h.cfg.Stall <= 0 {
		h.cfg.Stall = DefaultStall
	}
	if h.cfg.MinRate <= 0 {
		h.cfg.MinRate = DefaultUploadRate
	}
	if h.cfg.Log == nil {
		h.cfg.Log = slog.New(slog.DiscardHandler)
	}
	h.slots = make(chan struct{}, h.cfg.MaxUploads)
	return h, nil
}

type uploadHandler struct {
	custody *Custody
	cfg     UploadConfig
	tokens  [][sha256.Size]byte
	slots   chan struct{}
	now     func() time.Time // that uploads are paced by
}

// uploaded is the body of a successful answer.
type uploaded struct {
	Content string `json:"content"`
	Length  int64  `json:"length"` // bytes
	URL     string `json:"url"`
}

func (h *uploadHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPut && r.Method != http.MethodHead {
		refuseMethod(w, http.MethodPut, http.MethodHead)
		return
	}
	text, ok := strings.CutPrefix(r.URL.Path, uploadPath)
	if !ok {
		refuse(w, http.StatusNotFound, "NotFound", "uploads go to "+uploadPath+"{content CID}")
		return
	}
	if !h.authorised(w, r) {
		return
	}
	content, err := ParseContent(text)
	if err != nil {
		refuse(w, http.StatusBadRequest, "InvalidContent", err.Error())
		return
	}
	if r.Method == http.MethodHead {
		h.head(w, r, content)
		return
	}
	h.put(w, r, content)
}

func (h *uploadHandler) head(w http.ResponseWriter, r *http.Request, content cid.Cid) {
	found, err := h.custody.Stat(r.Context(), content)
	switch {
	case errors.Is(err, ErrNoContent):
		refuse(w, http.StatusNotFound, "ContentNotFound", "upload it with PUT")
	case err != nil:
		h.internal(w, r, err)
	default:
		w.Header().Set("Content-Length", strconv.FormatInt(found.Length, 10))
		w.Header().Set("Content-Location", found.URL)
		w.Header().Set("Cache-Control", "no-store")
	}
}

func (h *uploadHandler) put(w http.ResponseWriter, r *http.Request, content cid.Cid) {
	switch {
	case r.ContentLength < 0:
		refuse(w, http.StatusLengthRequired, "LengthRequired", "state the length of the content in Content-Length")
		return
	case r.ContentLength > h.cfg.MaxBytes:
		refuse(w, http.StatusRequestEntityTooLarge, "ContentTooLarge",
			fmt.Sprintf("content has %d bytes, at most %d are accepted; split it", r.ContentLength, h.cfg.MaxBytes))
		return
	case r.Header.Get("Content-Range") != "":
		refuse(w, http.StatusBadRequest, "InvalidRequest", "content cannot be uploaded in parts; send the whole of it")
		return
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	default:
		w.Header().Set("Retry-After", "5")
		refuse(w, http.StatusServiceUnavailable, "Busy", "too many uploads at once; try again in a few seconds")
		return
	}

	body := &uploadBody{r: r.Body, control: http.NewResponseController(w), stall: h.cfg.Stall, now: h.now, pace: pace{minRate: h.cfg.MinRate}}
	created, err := h.custody.Put(r.Context(), content, body, h.cfg.MaxBytes)
	if err == nil && !created && r.Header.Get("Expect") == "" {
		// A client that sends without asking first has its body taken, lest it fails writing and misses the answer.
		_, _ = io.Copy(io.Discard, body)
	}
	// What is left of the deadline must not end the request while it is answered.
	_ = body.control.SetReadDeadline(time.Time{})
	if err != nil {
		h.refusePut(w, r, body, err)
		return
	}
	found, err := h.custody.Stat(r.Context(), content)
	if err != nil {
		h.internal(w, r, err)
		return
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	w.Header().Set("Location", found.URL)
	w.Header().Set("Cache-Control", "no-store")
	reply(w, status, uploaded{Content: content.String(), Length: found.Length, URL: found.URL})
}

// refusePut answers an upload that failed, by whose fault it was.
func (h *uploadHandler) refusePut(w http.ResponseWriter, r *http.Request, body *uploadBody, err error) {
	switch {
	case errors.Is(body.err, ErrSlow) || errors.Is(body.err, os.ErrDeadlineExceeded):
		w.Header().Set("Connection", "close")
		refuse(w, http.StatusRequestTimeout, "TooSlow", "the content came too slowly; send it again")
	case body.err != nil:
		refuse(w, http.StatusBadRequest, "IncompleteContent", "the content ended before its Content-Length; send it again")
	case errors.Is(err, ErrMismatch):
		refuse(w, http.StatusBadRequest, "ContentMismatch", err.Error()+"; name the content by the hash of its bytes")
	case errors.Is(err, ErrTooLarge):
		refuse(w, http.StatusRequestEntityTooLarge, "ContentTooLarge", err.Error())
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		h.cfg.Log.ErrorContext(r.Context(), "no space for uploads", "err", err)
		refuse(w, http.StatusInsufficientStorage, "OutOfSpace", "the service has no space left; try again later")
	default:
		h.internal(w, r, err)
	}
}

func (h *uploadHandler) internal(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // nobody is left to be told, and nothing is wrong here
	}
	h.cfg.Log.ErrorContext(r.Context(), "upload failed", "err", err)
	refuse(w, http.StatusInternalServerError, "Internal", "the content could not be stored; try again later")
}

// authorised answers 401 (RFC 6750) and returns false unless the request carries one of the tokens. Digests are
// compared, all of them, so the time it takes tells nothing about a token.
func (h *uploadHandler) authorised(w http.ResponseWriter, r *http.Request) bool {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	given := token != "" && strings.EqualFold(scheme, "Bearer")
	digest, match := sha256.Sum256([]byte(token)), 0
	for _, t := range h.tokens {
		match |= subtle.ConstantTimeCompare(digest[:], t[:])
	}
	if given && match == 1 {
		return true
	}
	challenge := `Bearer realm="w3filecoin uploads"`
	if given {
		challenge += `, error="invalid_token"`
	}
	w.Header().Set("WWW-Authenticate", challenge)
	refuse(w, http.StatusUnauthorized, "Unauthorized", "send a valid upload token: Authorization: Bearer {token}")
	return false
}

// uploadBody reads a request's body, gives each read a deadline and remembers the first error, by which the client's
// faults are told from the disk's.
type uploadBody struct {
	r       io.Reader
	control *http.ResponseController
	stall   time.Duration
	now     func() time.Time
	pace    pace
	err     error
}

func (b *uploadBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	// A server that cannot set a deadline has none that could end the read.
	_ = b.control.SetReadDeadline(time.Now().Add(b.stall))
	start := b.now()
	n, err := b.r.Read(p)
	if slow := b.pace.add(n, b.now().Sub(start)); err == nil {
		err = slow
	}
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}
