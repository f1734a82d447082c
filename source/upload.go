package source

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/uploads"
	"github.com/storacha/w3filecoin/wire"
)

const (
	uploadPath = "/blob/"
	// DefaultUploads is how many uploads run at a time.
	DefaultUploads = 64
	// uploadsOfOne is how many of them may be of one content. Each takes room until it has ended, so one address must not take it many times over; a
	// client that tries again may do so beside a connection of its own that is dead and has not stalled for long enough.
	uploadsOfOne = 4
	// DefaultUploadRate is the average below which an upload is ended, in bytes per second.
	DefaultUploadRate = 8 << 10
)

// Uploads is the place of a custody that uploads go to, and the addresses that take them. It implements [uploads.Bucket]: an address is
// one of the place itself if it is a [PutSigner], else base/blob/{content CID}, where [NewUploadHandler] is, with a token in its headers that
// the signer has made for exactly these bytes.
type Uploads struct {
	custody *Custody
	place   Place
	signer  capabilities.Signer
}

var _ uploads.Bucket = (*Uploads)(nil)

// A Voucher is a [Place] that knows what it has verified itself, beside what others may have put there. It fails as Stat does.
type Voucher interface {
	Verified(ctx context.Context, content cid.Cid) (length int64, err error)
}

// A PutSigner is a [Place] that takes content from others without the service in between.
type PutSigner interface {
	// SignPut returns an address that takes exactly the bytes of the content by HTTP PUT for as long as valid, if it can be. The
	// error wraps errors.ErrUnsupported if the service has to take these bytes itself.
	SignPut(ctx context.Context, content cid.Cid, length int64, valid time.Duration) (PutAddress, error)
}

// A PutAddress takes content by HTTP PUT.
type PutAddress struct {
	URL    string
	Header http.Header // of the request
	// Valid is for how long a request may begin, from when the address was made.
	Valid time.Duration
}

// Uploads returns the uploads of the custody; an error if it has no place that can be written to. Every replica that takes uploads needs the
// same signer.
func (c *Custody) Uploads(signer capabilities.Signer) (*Uploads, error) {
	p, ok := c.writable()
	if !ok {
		return nil, errors.New("uploads: the custody has no place to store them in")
	}
	if !signer.DID().Defined() {
		return nil, errors.New("uploads: no signer")
	}
	return &Uploads{c, p, signer}, nil
}

// Stat implements [uploads.Bucket]. Of a [Voucher] only what was put counts, whose bytes were hashed on their way in. A place of uploads that
// is none has to be one that nobody else writes to.
func (b *Uploads) Stat(ctx context.Context, digest blob.Digest) (uploads.Stored, error) {
	content := blob.Blob{Digest: digest}.CID()
	look := b.place.Stat
	if v, ok := b.place.(Voucher); ok {
		look = v.Verified
	}
	length, err := look(ctx, content)
	if errors.Is(err, ErrNoContent) {
		return uploads.Stored{}, fmt.Errorf("%w: %w", uploads.ErrNoBlob, err)
	}
	if err != nil {
		return uploads.Stored{}, err
	}
	return uploads.Stored{Size: uint64(length), URL: b.custody.URL(content)}, nil
}

// Allocate implements [uploads.Bucket].
func (b *Uploads) Allocate(ctx context.Context, bl blob.Blob, expires time.Time) (blob.Address, error) {
	if err := Check(bl.CID()); err != nil {
		return blob.Address{}, err
	}
	if s, ok := b.place.(PutSigner); ok && bl.Size <= math.MaxInt64 {
		at, err := s.SignPut(ctx, bl.CID(), int64(bl.Size), time.Until(expires))
		if err == nil {
			if until := time.Now().Add(at.Valid); until.Before(expires) {
				expires = until
			}
			a := blob.Address{URL: at.URL, Headers: blob.Headers{}, Expires: uint64(expires.Unix())}
			for k := range at.Header {
				a.Headers[strings.ToLower(k)] = at.Header.Get(k)
			}
			return a, nil
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			return blob.Address{}, err
		}
	}
	t := uploadToken{content: bl.CID(), length: bl.Size, expires: expires.Unix()}
	return blob.Address{
		URL: b.custody.base + uploadPath + bl.CID().String(), Expires: uint64(t.expires),
		Headers: blob.Headers{"authorization": "Bearer " + t.sign(b.signer)},
	}, nil
}

// uploadToken allows to put one content, until it expires (seconds since 1970 UTC). Its text is {length}.{expires}.{signature}.
type uploadToken struct {
	content cid.Cid
	length  uint64
	expires int64
}

// payload is what is signed. It starts like nothing else that the key signs: invocations are signed as JWTs, receipts as maps.
func (t uploadToken) payload() []byte {
	return fmt.Appendf(nil, "w3filecoin upload\n%s\n%d\n%d", cid.NewCidV1(Raw, t.content.Hash()), t.length, t.expires)
}

func (t uploadToken) sign(s capabilities.Signer) string {
	return fmt.Sprintf("%d.%d.%s", t.length, t.expires, base64.RawURLEncoding.EncodeToString(s.Sign(t.payload()).Raw()))
}

// parseUploadToken reads a token for the content and checks its signature, not its time.
func parseUploadToken(text string, content cid.Cid, v capabilities.Verifier) (t uploadToken, ok bool) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return t, false
	}
	length, err1 := strconv.ParseUint(parts[0], 10, 64)
	expires, err2 := strconv.ParseInt(parts[1], 10, 64)
	sig, err3 := base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if errors.Join(err1, err2, err3) != nil || len(sig) != 64 {
		return t, false
	}
	t = uploadToken{content, length, expires}
	return t, v.Verify(t.payload(), wire.NewSignature(wire.SigEdDSA, sig))
}

// UploadConfig configures [NewUploadHandler]. The zero value works.
type UploadConfig struct {
	// MaxUploads is how many run at a time; 0 means DefaultUploads. One more is told to come back.
	MaxUploads int
	// Stall ends an upload that sends nothing for that long; 0 means DefaultStall.
	Stall time.Duration
	// MinRate ends an upload that stays below it on average, in bytes per second; 0 means DefaultUploadRate.
	MinRate int64
	// Log receives what a client is not told: why storing failed. Nil discards.
	Log *slog.Logger
	// Now is the clock that tokens expire by; nil means the system's.
	Now func() time.Time
}

// NewUploadHandler takes content into custody at PUT /blob/{content CID}, by an address that [Uploads.Allocate] gave out. The answer is
//
//	201  stored, durable     {"content", "length", "url"}, Location: where it is served
//	200  it was there        the same
//	400  the path names no content, or the body is not that content, or not of the length that was allocated
//	401  no valid token
//	403  the token has expired
//	408  the body came too slowly
//	413  longer than was allocated
//	503  too many uploads at once, of all or of this content, with Retry-After
//	507  no space left
//
// and 500 for what is the service's own fault. Every refusal has the body {"name", "message"}. An upload may be repeated: content is stored
// once.
func NewUploadHandler(b *Uploads, cfg UploadConfig) http.Handler {
	h := &uploadHandler{uploads: b, cfg: cfg, now: time.Now, verifier: b.signer.Verifier(), underWay: map[string]int{}}
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
	if h.cfg.Now == nil {
		h.cfg.Now = time.Now
	}
	h.slots = make(chan struct{}, h.cfg.MaxUploads)
	return h
}

type uploadHandler struct {
	uploads  *Uploads
	cfg      UploadConfig
	verifier capabilities.Verifier
	slots    chan struct{}
	now      func() time.Time // that uploads are paced by

	mu       sync.Mutex
	underWay map[string]int // uploads by multihash
}

// begin takes a slot, if there is one, until end is called.
func (h *uploadHandler) begin(content cid.Cid) (end func(), ok bool) {
	select {
	case h.slots <- struct{}{}:
	default:
		return nil, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	hash := string(content.Hash())
	if h.underWay[hash] == uploadsOfOne {
		<-h.slots
		return nil, false
	}
	h.underWay[hash]++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.underWay[hash]--; h.underWay[hash] == 0 {
			delete(h.underWay, hash)
		}
		<-h.slots
	}, true
}

// uploaded is the body of a successful answer.
type uploaded struct {
	Content string `json:"content"`
	Length  int64  `json:"length"` // bytes
	URL     string `json:"url"`
}

func (h *uploadHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPut {
		refuseMethod(w, http.MethodPut)
		return
	}
	text, ok := strings.CutPrefix(r.URL.Path, uploadPath)
	if !ok {
		refuse(w, http.StatusNotFound, "NotFound", "uploads go to "+uploadPath+"{content CID}")
		return
	}
	content, err := ParseContent(text)
	if err != nil {
		refuse(w, http.StatusBadRequest, "InvalidContent", err.Error())
		return
	}
	if token, ok := h.authorised(w, r, content); ok {
		h.put(w, r, token)
	}
}

func (h *uploadHandler) put(w http.ResponseWriter, r *http.Request, token uploadToken) {
	length, content := int64(token.length), token.content
	switch {
	case r.ContentLength > length:
		refuse(w, http.StatusRequestEntityTooLarge, "ContentTooLarge",
			fmt.Sprintf("content has %d bytes, %d were allocated", r.ContentLength, length))
		return
	case r.ContentLength >= 0 && r.ContentLength < length:
		refuse(w, http.StatusBadRequest, "LengthMismatch", fmt.Sprintf("content has %d bytes, %d were allocated", r.ContentLength, length))
		return
	case r.Header.Get("Content-Range") != "":
		refuse(w, http.StatusBadRequest, "InvalidRequest", "content cannot be uploaded in parts; send the whole of it")
		return
	}
	end, ok := h.begin(content)
	if !ok {
		w.Header().Set("Retry-After", "5")
		refuse(w, http.StatusServiceUnavailable, "Busy", "too many uploads at once; try again in a few seconds")
		return
	}
	defer end()

	body := &uploadBody{r: r.Body, control: http.NewResponseController(w), stall: h.cfg.Stall, now: h.now, pace: pace{minRate: h.cfg.MinRate}}
	created, err := h.uploads.place.Put(r.Context(), content, body, length)
	if err == nil && !created && r.Header.Get("Expect") == "" {
		// A client that sends without asking first has its body taken, lest it fails writing and misses the answer.
		_, _ = io.Copy(io.Discard, io.LimitReader(body, length))
	}
	// What is left of the deadline must not end the request while it is answered.
	_ = body.control.SetReadDeadline(time.Time{})
	if err != nil {
		h.refusePut(w, r, body, err)
		return
	}
	found, err := h.uploads.Stat(r.Context(), blob.Digest(content.Hash()))
	if err != nil {
		h.internal(w, r, err)
		return
	}
	if found.Size != token.length {
		refuse(w, http.StatusBadRequest, "LengthMismatch", fmt.Sprintf("content has %d bytes, %d were allocated", found.Size, length))
		return
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	w.Header().Set("Location", found.URL)
	w.Header().Set("Cache-Control", "no-store")
	reply(w, status, uploaded{Content: content.String(), Length: length, URL: found.URL})
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

// authorised answers 401 (RFC 6750) or 403 and returns false unless the request carries a token for the content.
func (h *uploadHandler) authorised(w http.ResponseWriter, r *http.Request, content cid.Cid) (uploadToken, bool) {
	scheme, text, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	given := text != "" && strings.EqualFold(scheme, "Bearer")
	token, ok := uploadToken{}, false
	if given {
		token, ok = parseUploadToken(text, content, h.verifier)
	}
	switch {
	case !ok:
		challenge := `Bearer realm="w3filecoin uploads"`
		if given {
			challenge += `, error="invalid_token"`
		}
		w.Header().Set("WWW-Authenticate", challenge)
		refuse(w, http.StatusUnauthorized, "Unauthorized", "send the headers of the address that space/blob/add allocated for this content")
		return token, false
	case h.cfg.Now().Unix() >= token.expires:
		refuse(w, http.StatusForbidden, "Expired", "the address has expired; invoke space/blob/add again")
		return token, false
	case token.length > 1<<62:
		refuse(w, http.StatusRequestEntityTooLarge, "ContentTooLarge", "no content has so many bytes")
		return token, false
	}
	return token, true
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
