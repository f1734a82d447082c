package source

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
)

// DefaultStall is how long the other side of a transfer may let it rest.
const DefaultStall = 30 * time.Second

// DefaultValid is how long a reader has to begin a download that it was sent to.
const DefaultValid = time.Hour

// ContentConfig configures [NewContentHandler]. The zero value works.
type ContentConfig struct {
	// Stall ends a download whose receiver takes nothing for that long; 0 means DefaultStall.
	Stall time.Duration
	// Valid is how long an address at another place works that the reader is sent to; 0 means DefaultValid.
	Valid time.Duration
	// Log receives what a client is not told: why reading from a place failed. Nil discards.
	Log *slog.Logger
}

// NewContentHandler serves the custody at GET and HEAD /content/{content CID}, ranges included, or redirects (302) to
// where the content lies if the reader can have it there. It looks at the whole path of the request, so nothing but a
// content CID ever becomes a file name.
//
// The entity tag is the CID. Uploaded content may be cached for ever; content of an operator's directory for an hour,
// as the operator may replace a file that is wrong. Bytes are offered as a download, never as a page.
func NewContentHandler(c *Custody, cfg ContentConfig) http.Handler {
	if cfg.Stall <= 0 {
		cfg.Stall = DefaultStall
	}
	if cfg.Valid <= 0 {
		cfg.Valid = DefaultValid
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &contentHandler{custody: c, cfg: cfg}
}

type contentHandler struct {
	custody *Custody
	cfg     ContentConfig
}

func (h *contentHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		refuseMethod(w, http.MethodGet, http.MethodHead)
		return
	}
	text, ok := strings.CutPrefix(r.URL.Path, contentPath)
	if !ok {
		refuse(w, http.StatusNotFound, "NotFound", "content is at "+contentPath+"{content CID}")
		return
	}
	content, err := ParseContent(text)
	if err != nil {
		refuse(w, http.StatusBadRequest, "InvalidContent", err.Error())
		return
	}
	place, at, err := h.custody.locate(r.Context(), content)
	if err != nil {
		h.fail(w, r, content, err)
		return
	}
	if at.Sign != nil {
		address, err := at.Sign(r.Context(), h.cfg.Valid)
		if err != nil {
			h.fail(w, r, content, err)
			return
		}
		w.Header().Set("Location", address)
		w.Header().Set("Cache-Control", "no-store") // the next reader gets an address of its own
		w.WriteHeader(http.StatusFound)
		return
	}
	body, _, err := place.Open(r.Context(), content)
	if err != nil {
		h.fail(w, r, content, err)
		return
	}
	defer body.Close()

	contentType, suffix := "application/octet-stream", ".bin"
	if content.Type() == CAR {
		contentType, suffix = "application/vnd.ipld.car", ".car"
	}
	cache := "public, max-age=3600"
	if !place.ReadOnly() {
		cache = "public, max-age=31536000, immutable"
	}
	header := w.Header()
	header.Set("Content-Type", contentType)
	header.Set("Content-Disposition", `attachment; filename="`+content.String()+suffix+`"`)
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", cache)
	header.Set("ETag", `"`+content.String()+`"`)
	Serve(w, r, h.cfg.Stall, body)
}

// Serve serves bytes as http.ServeContent does, however long that takes, but not to a reader that takes nothing for the
// time of stall. The caller has set the headers, Content-Type and ETag among them.
func Serve(w http.ResponseWriter, r *http.Request, stall time.Duration, body io.ReadSeeker) {
	out := &stallWriter{ResponseWriter: w, control: http.NewResponseController(w), stall: stall}
	http.ServeContent(out, r, "", time.Time{}, body)
}

// fail answers a request for content that cannot be read, for whatever reason.
func (h *contentHandler) fail(w http.ResponseWriter, r *http.Request, content cid.Cid, err error) {
	switch {
	case errors.Is(err, ErrNoContent):
		refuse(w, http.StatusNotFound, "ContentNotFound", "this service does not hold "+content.String())
	case r.Context().Err() != nil: // nobody is left to be told, and nothing is wrong here
	default:
		h.cfg.Log.ErrorContext(r.Context(), "reading content failed", "content", content.String(), "err", err)
		refuse(w, http.StatusInternalServerError, "Internal", "the content cannot be read right now; try again later")
	}
}

// stallWriter gives every piece of a response its own deadline: content of any size may be sent to a slow reader, but
// one that takes nothing gives back its connection and its file.
type stallWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
}

// stallChunk is sent within one stall time: with the default, a reader may be as slow as 8.7 kB/s.
const stallChunk = 256 << 10

// more extends the deadline. A server that cannot do that has none to extend.
func (w *stallWriter) more() { _ = w.control.SetWriteDeadline(time.Now().Add(w.stall)) }

func (w *stallWriter) Write(p []byte) (int, error) {
	w.more()
	return w.ResponseWriter.Write(p)
}

// ReadFrom copies in chunks, each of them as the underlying writer does it best: from a file to a socket without
// passing through this process.
func (w *stallWriter) ReadFrom(src io.Reader) (n int64, err error) {
	limit := &io.LimitedReader{R: src, N: 1<<63 - 1}
	if l, ok := src.(*io.LimitedReader); ok {
		limit = l
	}
	for limit.N > 0 {
		w.more()
		chunk := min(limit.N, stallChunk)
		k, err := io.Copy(w.ResponseWriter, &io.LimitedReader{R: limit.R, N: chunk})
		n, limit.N = n+k, limit.N-k
		if err != nil || k < chunk {
			return n, err
		}
	}
	return n, nil
}
