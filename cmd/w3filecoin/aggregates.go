package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/storacha/w3filecoin/aggregator"
	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/resolver"
	"github.com/storacha/w3filecoin/source"
)

const aggregatePath = "/aggregate/"

// pieceTimeout bounds how long one piece of an aggregate may take that a provider downloads.
const pieceTimeout = 24 * time.Hour

// aggregates serves the aggregates of the aggregator in this process as files, by pieces of the storefront in this process, if there is one, and
// of others by what their resolvers have.
func (n *node) aggregates(s *aggregator.Service, known map[string]Registered, log *slog.Logger) (http.Handler, error) {
	cfg := n.cfg.Aggregator
	hosts, err := n.storefrontHosts(cfg.AllowHosts, cfg.Storefronts)
	if err != nil {
		return nil, err
	}
	fetcher, err := source.NewHTTP(source.HTTPConfig{AllowHosts: hosts, Timeout: pieceTimeout})
	if err != nil {
		return nil, err
	}
	others := resolver.Storefronts{HTTP: fetcher, Of: func(ctx context.Context, p piece.Link) (urls []string, err error) {
		dids, err := s.StorefrontsOf(ctx, p)
		for _, did := range dids {
			if url := known[did].URL; url != "" {
				urls = append(urls, strings.TrimSuffix(url, "/"))
			}
		}
		return urls, err
	}}
	return resolver.NewAggregates(resolver.AggregatesConfig{Aggregates: s, Payloads: ownFirst{n, others}, Log: log})
}

// ownFirst reads pieces from the custody of the storefront in this process, if there is one, and else as others have them.
type ownFirst struct {
	n      *node
	others resolver.Payloads
}

func (o ownFirst) OpenPiece(ctx context.Context, p piece.Link, off int64) (io.ReadCloser, int64, error) {
	if o.n.pieces != nil {
		if body, length, err := o.n.pieces.OpenPiece(ctx, p, off); !errors.Is(err, source.ErrNoContent) {
			return body, length, err
		}
	}
	return o.others.OpenPiece(ctx, p, off)
}

// aggregatesElsewhere answers at the storefront for aggregates: they are the aggregator's, in this process or where that is.
func (n *node) aggregatesElsewhere() http.Handler {
	at := strings.TrimSuffix(n.cfg.Storefront.Aggregator.URL, "/")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case n.files != nil: // it is built after the storefront
			n.files.ServeHTTP(w, r)
		case at != "":
			http.Redirect(w, r, at+r.URL.EscapedPath(), http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	})
}
