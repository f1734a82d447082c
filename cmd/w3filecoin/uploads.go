package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"path/filepath"
	"time"

	"github.com/storacha/w3filecoin/capabilities/assert"
	"github.com/storacha/w3filecoin/claims"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/source"
	"github.com/storacha/w3filecoin/source/s3"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/aws"
	"github.com/storacha/w3filecoin/storefront"
	"github.com/storacha/w3filecoin/uploads"
)

// uploadsName is what the place of uploads is called in a data directory, and in the bucket of a store on AWS.
const uploadsName = "uploads"

// openUploads returns the place of uploads in the bucket of a store on AWS. It makes no request.
func openUploads(ctx context.Context, location string, private bool) (*s3.Bucket, error) {
	where, err := parseStore(location)
	if err != nil {
		return nil, err
	}
	objects, err := aws.FindObjects(ctx, where, awsOptions(storefrontRole))
	if err != nil {
		return nil, err
	}
	return s3.Open(s3.Config{Bucket: objects.Bucket, Endpoint: objects.Endpoint, Region: objects.Region, PathStyle: objects.PathStyle,
		Provider: objects.Credentials, Prefix: where.ObjectPrefix(uploadsName), Writable: true, Private: private})
}

// ownPlaces is where the storefront keeps content itself: a directory, or the bucket of a store on AWS, which every replica reads. Uploads that were put
// into this process's data directory before are still read there, and nobody else can.
func (n *node) ownPlaces(log *slog.Logger) ([]source.Place, error) {
	dir := filepath.Join(n.cfg.Data, uploadsName)
	if n.cfg.Store == "" {
		own, err := source.OpenDir(dir)
		return []source.Place{own}, err
	}
	bucket, err := openUploads(context.Background(), n.cfg.Store, n.cfg.Storefront.UploadsPrivate)
	if err != nil {
		return nil, err
	}
	places := []source.Place{source.Guard(bucket, &source.Health{Name: "bucket " + bucket.Name(), Now: time.Now, Log: log})}
	earlier, err := source.OpenReadOnlyDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return places, nil
	}
	if err != nil {
		return nil, err
	}
	for _, err := range earlier.Contents(context.Background()) {
		if err != nil {
			return nil, err
		}
		log.Warn("content in the data directory is read by this process alone: w3filecoin admin copy --uploads carries it to the store", "directory", dir)
		return append(places, earlier), nil
	}
	return places, nil
}

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
		Policy: uploads.Policy{MayUpload: policy.MayOffer, MaxSize: uint64(maxPayload(cfg.MaxPiece)), Limits: cfg.UploadLimits.limits()},
	})
	if err != nil {
		return nil, err
	}
	routes["/blob/"] = source.NewUploadHandler(bucket, source.UploadConfig{Log: log})
	return roles.Join(s, taking, kept)
}
