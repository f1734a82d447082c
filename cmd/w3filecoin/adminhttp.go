package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/storacha/w3filecoin/store"
)

// The admin interface is for the operator of a process: a listener of its own, on loopback only, open to whoever can read the token in the data
// directory.
//
//	GET    /dead?role=&queue=&cursor=&limit=    {"letters": […], "next": "…"}
//	GET    /dead/{role}/{queue}/{message}       a letter
//	POST   /dead/{role}/{queue}/{message}/retry 204
//	DELETE /dead/{role}/{queue}/{message}       204
//	GET    /standings?role=&cursor=&limit=      {"standings": […], "next": "…"}
//	POST   /standings/{role}/{kind}/{did}/pardon 204

// adminServer is the admin interface of a node.
type adminServer struct {
	listener net.Listener
	handler  http.Handler
	url      string
}

// buildAdmin adds the admin interface, if it is configured. The databases of all roles are open by then.
func (n *node) buildAdmin() error {
	if n.cfg.Admin == "" {
		return nil
	}
	token, err := adminToken(tokenFile(n.cfg.Data))
	if err != nil {
		return err
	}
	l, err := n.listen("admin", n.cfg.Admin)
	if err != nil {
		return err
	}
	var dead openDatabases
	for _, name := range allRoles {
		if r := n.roles[name]; r != nil {
			dead = append(dead, roleRows{name, r.rows})
		}
	}
	n.admin = &adminServer{l, adminHandler(dead, token, n.log), "http://" + l.Addr().String()}
	return nil
}

func tokenFile(data string) string { return filepath.Join(data, "admin.token") }

// adminToken reads the token from its file, and makes one if there is none.
func adminToken(file string) (string, error) {
	err := writeNew(file, []byte(rand.Text()+"\n"))
	if err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("keeping the token of the admin interface: %w", err)
	}
	return readToken(file)
}

// readToken reads a token from its file.
func readToken(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("reading the token of the admin interface: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < 16 {
		return "", fmt.Errorf("the token of the admin interface, %s, is too short: remove the file, and another one is made", file)
	}
	return token, nil
}

// deadPage is what GET /dead answers.
type deadPage struct {
	Letters []deadLetter `json:"letters"`
	Next    string       `json:"next,omitempty"`
}

func adminHandler(dead administered, token string, log *slog.Logger) http.Handler {
	// answer ends a request about one dead letter.
	answer := func(w http.ResponseWriter, r *http.Request, v any, err error) {
		switch {
		case errors.Is(err, store.ErrNotFound):
			http.Error(w, err.Error(), http.StatusNotFound)
		case err != nil && r.Context().Err() == nil:
			log.Error("answering a request of the operator", "path", r.URL.Path, "err", err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
		case err != nil: // nobody waits for the answer
		case v == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v) // the client may be gone
		}
	}
	one := func(do func(ctx context.Context, id deadID) (any, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			v, err := do(r.Context(), deadID{r.PathValue("role"), r.PathValue("queue"), r.PathValue("message")})
			answer(w, r, v, err)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /dead", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		limit, err := strconv.Atoi(q.Get("limit"))
		if q.Get("limit") != "" && err != nil {
			http.Error(w, "limit is a number", http.StatusBadRequest)
			return
		}
		letters, next, err := dead.list(r.Context(), deadFilter{q.Get("role"), q.Get("queue")}, q.Get("cursor"), limit)
		if letters == nil {
			letters = []deadLetter{}
		}
		answer(w, r, deadPage{letters, next}, err)
	})
	mux.HandleFunc("GET /dead/{role}/{queue}/{message}", one(func(ctx context.Context, id deadID) (any, error) { return dead.get(ctx, id) }))
	mux.HandleFunc("POST /dead/{role}/{queue}/{message}/retry", one(func(ctx context.Context, id deadID) (any, error) {
		return nil, dead.retry(ctx, id)
	}))
	mux.HandleFunc("DELETE /dead/{role}/{queue}/{message}", one(func(ctx context.Context, id deadID) (any, error) {
		return nil, dead.drop(ctx, id)
	}))
	mux.HandleFunc("GET /standings", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		limit, err := strconv.Atoi(q.Get("limit"))
		if q.Get("limit") != "" && err != nil {
			http.Error(w, "limit is a number", http.StatusBadRequest)
			return
		}
		list, next, err := dead.standings(r.Context(), q.Get("role"), q.Get("cursor"), limit)
		if list == nil {
			list = []shownStanding{}
		}
		answer(w, r, standingPage{list, next}, err)
	})
	mux.HandleFunc("POST /standings/{role}/{kind}/{did}/pardon", func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, nil, dead.pardon(r.Context(), standingID{r.PathValue("role"), r.PathValue("kind"), r.PathValue("did")}))
	})
	// Digests are compared, so that the time it takes tells nothing.
	want := sha256.Sum256([]byte("Bearer " + token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got := sha256.Sum256([]byte(r.Header.Get("Authorization")))
		if subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "the token of the admin interface is needed", http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// remoteDead are the dead letters of a process that runs, by its admin interface.
type remoteDead struct{ url, token string }

func (d remoteDead) list(ctx context.Context, f deadFilter, cursor string, limit int) ([]deadLetter, string, error) {
	q := url.Values{"role": {f.role}, "queue": {f.queue}, "cursor": {cursor}, "limit": {strconv.Itoa(limit)}}
	var page deadPage
	err := d.do(ctx, http.MethodGet, "/dead?"+q.Encode(), &page)
	return page.Letters, page.Next, err
}

func (d remoteDead) get(ctx context.Context, id deadID) (l deadLetter, err error) {
	return l, d.do(ctx, http.MethodGet, pathOf(id), &l)
}

func (d remoteDead) retry(ctx context.Context, id deadID) error {
	return d.do(ctx, http.MethodPost, pathOf(id)+"/retry", nil)
}

func (d remoteDead) drop(ctx context.Context, id deadID) error {
	return d.do(ctx, http.MethodDelete, pathOf(id), nil)
}

func pathOf(id deadID) string {
	return "/dead/" + url.PathEscape(id.role) + "/" + url.PathEscape(id.queue) + "/" + url.PathEscape(id.message)
}

// do asks once and reads the answer into v, if that is not nil.
func (d remoteDead) do(ctx context.Context, method, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, d.url+path, nil)
	if err != nil {
		return usage("it looks like http://127.0.0.1:8010", "--url: %v", err)
	}
	req.Header.Set("Authorization", "Bearer "+d.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return &exitError{exitFailure, fmt.Errorf("asking the admin interface: %w", err),
			"is it on? the process needs the setting admin, an address of this machine"}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20)) // a page of a thousand letters with all their errors may be large
	if err != nil {
		return fmt.Errorf("asking the admin interface: %w", err)
	}
	text := string(bytes.TrimSpace(body[:min(len(body), 1000)]))
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		return &exitError{exitFailure, fmt.Errorf("%s refuses the token", d.url), "is --data the directory of that process?"}
	case resp.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%s: %w", strings.TrimSuffix(text, ": "+store.ErrNotFound.Error()), store.ErrNotFound)
	case resp.StatusCode >= 300:
		return fmt.Errorf("%s answered %s: %s", d.url, resp.Status, text)
	case v == nil:
		return nil
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("reading the answer of %s: is it an admin interface of w3filecoin? %w", d.url, err)
	}
	return nil
}
