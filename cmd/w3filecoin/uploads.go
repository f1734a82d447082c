package main

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/storefront"
	"github.com/storacha/w3filecoin/uploads"
)

// uploads lets a storefront take content into its custody, if it is to. Whoever may offer content may store it.
func (n *node) uploads(s *storefront.Service, custody *source.Custody, policy storefront.Policy, driver store.Driver,
	routes map[string]http.Handler, log *slog.Logger) (roles.Service, error) {
	cfg := n.cfg.Storefront
	if !cfg.Uploads {
		return s, nil
	}
	signer := n.signers[storefrontRole]
	bucket, err := custody.Uploads(signer)
	if err != nil {
		return nil, err
	}
	taking, err := uploads.New(uploads.Deps{
		Signer: signer, Store: driver, Keys: n.keys, Bucket: bucket, Window: time.Duration(cfg.UploadWindow), Now: time.Now, Log: log,
		Policy: uploads.Policy{MayUpload: policy.MayOffer, MaxSize: uint64(maxPayload(cfg.MaxPiece))},
	})
	if err != nil {
		return nil, err
	}
	routes["/blob/"] = source.NewUploadHandler(bucket, source.UploadConfig{Log: log})
	return roles.Join(s, taking)
}
