package awstest

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (d *Double) serveObject(w *httptest.ResponseRecorder, r *http.Request, body []byte) {
	q := r.URL.Query()
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if key == "" && q.Get("list-type") == "" {
		return // the bucket is there
	}
	b, there := d.objects[key]
	missing := func() {
		w.WriteHeader(404)
		fmt.Fprint(w, "<Error><Code>NoSuchKey</Code></Error>")
	}
	switch upload := q.Get("uploadId"); {
	case r.Method == "POST" && q.Has("uploads"):
		d.serial++
		id := fmt.Sprint("upload-", d.serial)
		d.parts[id] = map[int][]byte{}
		fmt.Fprintf(w, "<InitiateMultipartUploadResult><Bucket>%s</Bucket><Key>%s</Key><UploadId>%s</UploadId></InitiateMultipartUploadResult>", bucket, key, id)
	case r.Method == "PUT" && upload != "":
		n, _ := strconv.Atoi(q.Get("partNumber"))
		d.parts[upload][n] = body
		w.Header().Set("ETag", fmt.Sprintf("%q", q.Get("partNumber")))
	case r.Method == "POST" && upload != "":
		if d.parts[upload] == nil && there {
			return // completed before
		}
		var whole []byte
		for _, n := range slices.Sorted(maps.Keys(d.parts[upload])) {
			whole = append(whole, d.parts[upload][n]...)
		}
		d.objects[key] = whole
		delete(d.parts, upload)
		fmt.Fprint(w, "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")
	case r.Method == "DELETE" && upload != "":
		delete(d.parts, upload)
		w.WriteHeader(204)
	case r.Method == "PUT":
		if there && r.Header.Get("If-None-Match") == "*" {
			w.WriteHeader(412)
			fmt.Fprint(w, "<Error><Code>PreconditionFailed</Code></Error>")
			return
		}
		d.objects[key] = body
	case r.Method == "DELETE":
		delete(d.objects, key)
		w.WriteHeader(204)
	case q.Get("list-type") == "2":
		type content struct{ Key string }
		out := struct {
			XMLName     xml.Name `xml:"ListBucketResult"`
			IsTruncated bool
			Contents    []content
		}{}
		limit, _ := strconv.Atoi(q.Get("max-keys"))
		for _, k := range slices.Sorted(maps.Keys(d.objects)) {
			if strings.HasPrefix(k, q.Get("prefix")) && k > q.Get("start-after") {
				if out.IsTruncated = len(out.Contents) == limit; out.IsTruncated {
					break
				}
				out.Contents = append(out.Contents, content{k})
			}
		}
		if err := xml.NewEncoder(w).Encode(out); err != nil {
			panic(err)
		}
	case !there:
		missing()
	case r.Method == "HEAD":
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	default:
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}
