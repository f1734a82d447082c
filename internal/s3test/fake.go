package s3test

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Fake is as much of S3 as this project uses, in memory: objects by path-style address, ranges, If-Match and
// If-None-Match, SHA-256 checksums, uploads in parts. It looks at no signature and no credentials, keeps no versions,
// and knows no limits: what depends on these is tested with a real server.
type Fake struct {
	// Before, if set, sees each request first, and answers it if it returns true.
	Before func(w http.ResponseWriter, r *http.Request) bool
	// Page is how many keys one page of a listing has; 0: all.
	Page int

	mu      sync.Mutex
	buckets map[string]bool
	objects map[string]*stored // by bucket/key
	uploads map[string]map[int][]byte
	said    map[string]string // metadata of uploads
	serial  int
	counts  map[string]int // requests by method
}

const metadata = "X-Amz-Meta-W3filecoin-Sha256"

type stored struct {
	body     []byte
	etag     string
	checksum string // that it was put with
	metadata string // w3filecoin-sha256
}

// Requests returns how many requests of a method came.
func (f *Fake) Requests(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[method]
}

func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.Before != nil && f.Before(w, r) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counts == nil {
		f.counts = map[string]int{}
	}
	f.counts[r.Method]++
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	query := r.URL.Query()
	switch {
	case key == "" && r.Method == http.MethodPut:
		f.buckets[bucket] = true
		return
	case !f.buckets[bucket]:
		refuse(w, http.StatusNotFound, "NoSuchBucket")
		return
	case key == "" && r.Method == http.MethodHead:
		return
	case key == "" && r.Method == http.MethodGet:
		f.list(w, bucket, query)
		return
	}
	name := bucket + "/" + key
	body, err := io.ReadAll(r.Body)
	if err != nil {
		refuse(w, http.StatusBadRequest, "IncompleteBody")
		return
	}
	if want := r.Header.Get("X-Amz-Checksum-Sha256"); want != "" && len(body) > 0 {
		if got := sha256.Sum256(body); base64.StdEncoding.EncodeToString(got[:]) != want {
			refuse(w, http.StatusBadRequest, "BadDigest")
			return
		}
	}
	id := query.Get("uploadId")
	switch {
	case r.Method == http.MethodPost && query.Has("uploads"):
		f.serial++
		id = strconv.Itoa(f.serial)
		f.uploads[id+"@"+name] = map[int][]byte{}
		f.said[id+"@"+name] = r.Header.Get(metadata)
		reply(w, struct {
			XMLName  xml.Name `xml:"InitiateMultipartUploadResult"`
			UploadId string
		}{UploadId: id})
	case id != "":
		f.multipart(w, r, id, name, body)
	case r.Method == http.MethodPut:
		f.put(w, r, name, body)
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		f.get(w, r, name)
	case r.Method == http.MethodDelete:
		delete(f.objects, name)
		w.WriteHeader(http.StatusNoContent)
	default:
		refuse(w, http.StatusNotImplemented, "NotImplemented")
	}
}

func (f *Fake) multipart(w http.ResponseWriter, r *http.Request, id, name string, body []byte) {
	parts, ok := f.uploads[id+"@"+name]
	if !ok {
		refuse(w, http.StatusNotFound, "NoSuchUpload")
		return
	}
	switch r.Method {
	case http.MethodPut:
		n, err := strconv.Atoi(r.URL.Query().Get("partNumber"))
		if err != nil || n < 1 || n > 10_000 {
			refuse(w, http.StatusBadRequest, "InvalidPart")
			return
		}
		parts[n] = body
		w.Header().Set("ETag", etag(body))
	case http.MethodDelete:
		delete(f.uploads, id+"@"+name)
		w.WriteHeader(http.StatusNoContent)
	default:
		var whole []byte
		for _, n := range slices.Sorted(maps.Keys(parts)) {
			whole = append(whole, parts[n]...)
		}
		if !f.put(w, r, name, whole) {
			return
		}
		f.objects[name].metadata = f.said[id+"@"+name]
		delete(f.uploads, id+"@"+name)
		reply(w, struct {
			XMLName xml.Name `xml:"CompleteMultipartUploadResult"`
			ETag    string
		}{ETag: etag(whole)})
	}
}

func (f *Fake) put(w http.ResponseWriter, r *http.Request, name string, body []byte) bool {
	if _, there := f.objects[name]; there && r.Header.Get("If-None-Match") == "*" {
		refuse(w, http.StatusPreconditionFailed, "PreconditionFailed")
		return false
	}
	f.objects[name] = &stored{body: body, etag: etag(body), checksum: r.Header.Get("X-Amz-Checksum-Sha256")}
	w.Header().Set("ETag", etag(body))
	return true
}

func (f *Fake) get(w http.ResponseWriter, r *http.Request, name string) {
	o, ok := f.objects[name]
	if !ok {
		refuse(w, http.StatusNotFound, "NoSuchKey")
		return
	}
	w.Header().Set("ETag", o.etag)
	if o.metadata != "" {
		w.Header().Set(metadata, o.metadata)
	}
	if r.Header.Get("X-Amz-Checksum-Mode") != "" && o.checksum != "" {
		w.Header().Set("X-Amz-Checksum-Sha256", o.checksum)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(o.body))
}

// list answers with the keys, in pages of Page if that is set, or with the uploads in parts.
func (f *Fake) list(w http.ResponseWriter, bucket string, query url.Values) {
	type entry struct {
		Key  string
		ETag string `xml:",omitempty"`
		Size int
	}
	var keys, open []entry
	encoding := query.Get("encoding-type")
	more, next := false, ""
	for _, name := range slices.Sorted(maps.Keys(f.objects)) {
		key, ok := strings.CutPrefix(name, bucket+"/")
		if !ok || !strings.HasPrefix(key, query.Get("prefix")) || key <= query.Get("continuation-token") {
			continue
		}
		if f.Page > 0 && len(keys) == f.Page {
			more = true
			break
		}
		next = key
		if encoding == "url" {
			key = url.QueryEscape(key)
		}
		keys = append(keys, entry{key, f.objects[name].etag, len(f.objects[name].body)})
	}
	if !more {
		next = ""
	}
	for name := range f.uploads {
		if _, key, ok := strings.Cut(name, "@"+bucket+"/"); ok {
			open = append(open, entry{Key: key})
		}
	}
	if query.Has("uploads") {
		reply(w, struct {
			XMLName xml.Name `xml:"ListMultipartUploadsResult"`
			Upload  []entry
		}{Upload: open})
		return
	}
	reply(w, struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		IsTruncated           bool
		NextContinuationToken string `xml:",omitempty"`
		EncodingType          string `xml:",omitempty"`
		Contents              []entry
	}{IsTruncated: more, NextContinuationToken: next, EncodingType: encoding, Contents: keys})
}

func etag(b []byte) string {
	sum := md5.Sum(b)
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, code)
}

func reply(w http.ResponseWriter, v any) {
	b, err := xml.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/xml")
	w.Write(b)
}
