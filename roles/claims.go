package roles

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multibase"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// ClaimSource knows claims about content.
type ClaimSource interface {
	// Of returns the claims about a multihash that are valid now.
	Of(ctx context.Context, hash multihash.Multihash) ([]capabilities.Task, error)
	// Get returns a claim; store.ErrNotFound if it is unknown or not valid now.
	Get(ctx context.Context, claim cid.Cid) (capabilities.Task, error)
}

// ClaimRoutes returns the handlers of GET /claims/{hash}, the claims about a multihash (multibase, or any CID that has it), and of GET
// /claim/{cid}, one claim. Answers are CARs whose roots are the claims, with the proofs of each; or, if asked for (Accept: application/json), JSON.
func ClaimRoutes(claims ClaimSource, log *slog.Logger) map[string]http.Handler {
	h := &claimHandler{claims, log}
	return map[string]http.Handler{"GET /claims/{hash}": http.HandlerFunc(h.list), "GET /claim/{cid}": http.HandlerFunc(h.one)}
}

type claimHandler struct {
	claims ClaimSource
	log    *slog.Logger
}

func (h *claimHandler) list(w http.ResponseWriter, r *http.Request) {
	hash, err := parseHash(r.PathValue("hash"))
	if err != nil {
		http.Error(w, "neither a multihash nor a CID: "+clip(r.PathValue("hash")), http.StatusBadRequest)
		return
	}
	list, err := h.claims.Of(r.Context(), hash)
	if err != nil {
		h.fault(w, r, err)
		return
	}
	if wantsJSON(r) {
		body := struct {
			Claims []any `json:"claims"`
		}{make([]any, 0, len(list))}
		for _, claim := range list {
			described, err := describe(claim)
			if err != nil {
				h.fault(w, r, err)
				return
			}
			body.Claims = append(body.Claims, described)
		}
		w.Header().Set("Vary", "Accept")
		writeJSON(w, http.StatusOK, body)
		return
	}
	writeClaims(w, list)
}

func (h *claimHandler) one(w http.ResponseWriter, r *http.Request) {
	c, ok := pathCID(w, r, "cid")
	if !ok {
		return
	}
	claim, err := h.claims.Get(r.Context(), c)
	if errors.Is(err, store.ErrNotFound) {
		http.Error(w, "no claim "+c.String()+" that is valid now", http.StatusNotFound)
		return
	}
	if err == nil && wantsJSON(r) {
		var body any
		if body, err = describe(claim); err == nil {
			w.Header().Set("Vary", "Accept")
			writeJSON(w, http.StatusOK, body)
			return
		}
	}
	if err != nil {
		h.fault(w, r, err)
		return
	}
	writeClaims(w, []capabilities.Task{claim})
}

func (h *claimHandler) fault(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return
	}
	h.log.Error("answering a request", "path", r.URL.Path, "err", err)
	http.Error(w, "internal fault, try again", http.StatusServiceUnavailable)
}

// wantsJSON reports whether JSON is asked for: a client that takes anything gets the bytes that are signed.
func wantsJSON(r *http.Request) bool {
	accept := r.Header.Get("Accept")
	return !accepts(accept, client.ContentType) && accepts(accept, "application/json")
}

func writeClaims(w http.ResponseWriter, list []capabilities.Task) {
	var roots []cid.Cid
	var blocks []capabilities.Block
	seen := map[cid.Cid]bool{}
	for _, claim := range list {
		roots = append(roots, claim.Link())
		for _, b := range claim.Blocks() {
			if !seen[b.CID] {
				seen[b.CID] = true
				blocks = append(blocks, b)
			}
		}
	}
	w.Header().Set("Vary", "Accept")
	w.Header().Set("Content-Type", client.ContentType)
	_, _ = w.Write(wire.AppendCAR(nil, roots, blocks)) // the client may be gone
}

// claimJSON is a claim for people and scripts.
type claimJSON struct {
	Claim      string     `json:"claim"`
	Ability    string     `json:"ability"`
	Issuer     string     `json:"issuer"`
	Audience   string     `json:"audience"`
	With       string     `json:"with"`
	Expiration *time.Time `json:"expiration,omitempty"`
	Caveats    rawJSON    `json:"caveats"` // DAG-JSON
}

// rawJSON is JSON text.
type rawJSON []byte

// MarshalJSON returns the text.
func (r rawJSON) MarshalJSON() ([]byte, error) { return r, nil }

func describe(claim capabilities.Task) (claimJSON, error) {
	caveats, err := cbor.ToJSON(claim.Capabilities[0].Nb)
	d := claimJSON{Claim: claim.Link().String(), Ability: claim.Can(), Issuer: claim.Issuer.String(), Audience: claim.Audience.String(),
		With: claim.Resource(), Caveats: caveats}
	if claim.Expiration != nil {
		t := time.Unix(*claim.Expiration, 0).UTC()
		d.Expiration = &t
	}
	return d, err
}

// parseHash reads a multihash in multibase, or that of a CID.
func parseHash(text string) (multihash.Multihash, error) {
	if len(text) > maxCIDText {
		return nil, errors.New("too long")
	}
	if c, err := cid.Decode(text); err == nil {
		return c.Hash(), nil
	}
	_, raw, err := multibase.Decode(text)
	if err != nil {
		return nil, err
	}
	return multihash.Cast(raw)
}
