package main

import (
	"log/slog"
	"maps"
	"net/http"
	"time"

	"github.com/storacha/w3filecoin/capabilities/assert"
	"github.com/storacha/w3filecoin/claims"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/storefront"
	"github.com/storacha/w3filecoin/uploads"
)

// claims keeps what the storefront claims and is told. Whoever may offer content may claim.
func (n *node) claims(policy storefront.Policy, driver store.Driver, log *slog.Logger) (*claims.Service, error) {
	d := claims.Deps{Signer: n.signers[storefrontRole], Store: driver, Keys: n.keys, MayClaim: policy.MayOffer, Now: time.Now, Log: log,
		Revoked: roles.NewRevocations(driver, n.keys, time.Now).Revoked}
	if service := n.cfg.Storefront.Claims; service.URL != "" {
		peer, err := n.remote("claims", storefrontRole, assert.LocationAbility, service)
		if err != nil {
			return nil, err
		}
		d.Forward = &peer
	}
	return claims.New(d)
}

// fetcher brings content into custody from where it is claimed to be, if it is to.
func (n *node) fetcher(custody *source.Custody) (storefront.Fetcher, error) {
	cfg := n.cfg.Storefront
	if !cfg.Fetch {
		return nil, nil
	}
	from, err := source.NewHTTP(source.HTTPConfig{AllowHosts: cfg.AllowHosts, MaxBytes: maxPayload(cfg.MaxPiece)})
	if err != nil {
		return nil, err
	}
	return source.NewCopier(custody, from)
}

// uploads lets a storefront take content into its custody, if it is to. Whoever may offer content may store it.
func (n *node) uploads(s *storefront.Service, custody *source.Custody, kept *claims.Service, policy storefront.Policy, driver store.Driver,
	routes map[string]http.Handler, log *slog.Logger) (roles.Service, error) {
	cfg := n.cfg.Storefront
	maps.Copy(routes, roles.ClaimRoutes(kept, log))
	if !cfg.Uploads {
		return roles.Join(s, kept)
	}
	signer := n.signers[storefrontRole]
	bucket, err := custody.Uploads(signer)
	if err != nil {
		return nil, err
	}
	taking, err := uploads.New(uploads.Deps{
		Signer: signer, Store: driver, Keys: n.keys, Bucket: bucket, Claims: kept, Window: time.Duration(cfg.UploadWindow), Now: time.Now, Log: log,
		Policy: uploads.Policy{MayUpload: policy.MayOffer, MaxSize: uint64(maxPayload(cfg.MaxPiece))},
	})
	if err != nil {
		return nil, err
	}
	routes["/blob/"] = source.NewUploadHandler(bucket, source.UploadConfig{Log: log})
	return roles.Join(s, taking, kept)
}
