package s3

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/source"
)

// Defaults of [Config].
const (
	DefaultKey   = "{multihash}"
	DefaultStall = source.DefaultStall
	// MaxValid is how long a signed address can be made to work: the longest that signature version 4 allows.
	MaxValid = 7 * 24 * time.Hour

	connectTimeout = 10 * time.Second
	// lookTimeout bounds a question about one object, retries included.
	lookTimeout = 30 * time.Second
	maxPerHost  = 256
	// maxAttempts is how often one request is made, the first included, and maxRetryPause the longest pause between two. Three attempts, as the SDK has
	// it, are too few for a store that fails one request in thirty: among some ten thousand there is one that fails them all.
	maxAttempts   = 6
	maxRetryPause = time.Second
)

// Credentials are an access key. The zero value makes requests without a signature, for public buckets.
type Credentials struct {
	AccessKey, SecretKey string
	// SessionToken belongs to temporary credentials; empty for others.
	SessionToken string
}

// Config describes one bucket.
type Config struct {
	// Bucket is its name. Required.
	Bucket string
	// Endpoint is the address of the store, such as https://ACCOUNT.r2.cloudflarestorage.com; AWS in Region if empty.
	Endpoint string
	// Region is the bucket's; "auto" if empty and there is an endpoint. AWS needs one.
	Region string
	// PathStyle puts the bucket's name into the path of addresses, not into the host. Stores without wildcard
	// certificates or names need it.
	PathStyle   bool
	Credentials Credentials
	// Provider yields credentials that may change, instead of Credentials. What it signs works no longer than they do.
	Provider aws.CredentialsProvider

	// Prefix is put before every key.
	Prefix string
	// Keys are templates of the keys under which content lies, tried in order; the first is also that of what Put writes.
	// DefaultKey alone if empty. Each has at least one of
	//
	//	{multihash}  the multihash in base32, "bciq…"
	//	{base58}     the multihash in base58, "zQm…"
	//	{raw}, {car} the CID in base32 with that codec, "bafkrei…", "bagbaiera…"
	Keys []string

	// Writable lets Put store content in the bucket.
	Writable bool
	// PublicURL is an address below which everybody can read the objects by key; addresses are signed if it is empty. Without
	// credentials it is the store's own.
	PublicURL string
	// Private says that nobody but the service reaches the bucket: the service passes the bytes on itself.
	Private bool

	// Stall is how long the header of a response or the next bytes of a body may take; 0 means DefaultStall.
	Stall time.Duration
}

// A Bucket is a bucket of content. It implements source.Remote. Safe for concurrent use.
type Bucket struct {
	cfg    Config
	client *s3.Client
	signer *s3.PresignClient
	public string // without a slash at the end
}

var (
	_ source.Remote = (*Bucket)(nil)
	_ source.Near   = (*Bucket)(nil)
)

// Open returns the bucket. It asks the store nothing; [Bucket.Check] does.
func Open(cfg Config) (*Bucket, error) {
	if cfg.Bucket == "" {
		return nil, errors.New("bucket without a name")
	}
	fail := func(format string, args ...any) (*Bucket, error) {
		return nil, fmt.Errorf("bucket %s: "+format, append([]any{cfg.Bucket}, args...)...)
	}
	if cfg.Endpoint != "" {
		if err := checkBase(cfg.Endpoint); err != nil {
			return fail("endpoint: %w", err)
		}
	}
	if cfg.PublicURL != "" {
		if err := checkBase(cfg.PublicURL); err != nil {
			return fail("public address: %w", err)
		}
		if cfg.Private {
			return fail("it cannot be private and have a public address")
		}
	}
	switch {
	case cfg.Region == "" && cfg.Endpoint == "":
		return fail("name its region, or the endpoint of the store")
	case cfg.Region == "":
		cfg.Region = "auto"
	}
	c := cfg.Credentials
	if (c.AccessKey == "") != (c.SecretKey == "") {
		return fail("an access key and a secret key belong together")
	}
	anonymous := c.AccessKey == "" && cfg.Provider == nil
	if anonymous && cfg.Writable {
		return fail("writing needs credentials")
	}
	if len(cfg.Keys) == 0 {
		cfg.Keys = []string{DefaultKey}
	}
	for _, k := range cfg.Keys {
		if err := checkTemplate(k); err != nil {
			return fail("%w", err)
		}
	}
	if cfg.Stall == 0 {
		cfg.Stall = DefaultStall
	}
	var credentials aws.CredentialsProvider = aws.AnonymousCredentials{}
	switch {
	case cfg.Provider != nil:
		credentials = cfg.Provider
	case c.AccessKey != "":
		credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: c.AccessKey, SecretAccessKey: c.SecretKey, SessionToken: c.SessionToken}, nil
		})
	}
	options := s3.Options{
		Region: cfg.Region, Credentials: credentials, UsePathStyle: cfg.PathStyle, HTTPClient: newClient(cfg.Stall),
		// Ranges have no checksum, and whoever reads content verifies its hash. What is written carries one wherever
		// it says more than the signature.
		ResponseChecksumValidation:                aws.ResponseChecksumValidationWhenRequired,
		RequestChecksumCalculation:                aws.RequestChecksumCalculationWhenRequired,
		DisableLogOutputChecksumValidationSkipped: true,
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = maxAttempts, maxRetryPause }),
	}
	if cfg.Endpoint != "" {
		options.BaseEndpoint = aws.String(strings.TrimRight(cfg.Endpoint, "/"))
	}
	if anonymous && cfg.PublicURL == "" && !cfg.Private {
		cfg.PublicURL = ownAddress(cfg) // who reads without a signature can send others there as well
	}
	b := &Bucket{cfg: cfg, client: s3.New(options), public: strings.TrimRight(cfg.PublicURL, "/")}
	b.signer = s3.NewPresignClient(b.client)
	return b, nil
}

// ownAddress is where the store itself has the objects of a bucket.
func ownAddress(cfg Config) string {
	endpoint := cfg.Endpoint
	if endpoint == "" {
		endpoint = "https://s3." + cfg.Region + ".amazonaws.com"
	}
	if cfg.PathStyle {
		return strings.TrimRight(endpoint, "/") + "/" + cfg.Bucket
	}
	scheme, host, _ := strings.Cut(endpoint, "://")
	return scheme + "://" + cfg.Bucket + "." + host
}

// newClient returns a client that follows no redirect, as signatures and credentials are meant for one host.
func newClient(stall time.Duration) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: connectTimeout}).DialContext,
			ForceAttemptHTTP2:     true,
			TLSHandshakeTimeout:   connectTimeout,
			ResponseHeaderTimeout: stall,
			IdleConnTimeout:       90 * time.Second,
			MaxIdleConnsPerHost:   32,
			MaxConnsPerHost:       maxPerHost,
			DisableCompression:    true, // the bytes count, and their number
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func checkBase(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("not http(s)://host[:port][/path]")
	}
	return nil
}

// sample stands for any content.
var sample = cid.MustParse("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")

func checkTemplate(k string) error {
	if err := source.CheckTemplate(k); err != nil {
		return fmt.Errorf("key %w", err)
	}
	if strings.HasPrefix(k, "/") || len(source.Fill(k, sample)) > 512 {
		return fmt.Errorf("key %q begins with a slash or is too long", k)
	}
	return nil
}

// keys returns where the content may lie, the preferred key first.
func (b *Bucket) keys(content cid.Cid) []string {
	keys := make([]string, len(b.cfg.Keys))
	for i, k := range b.cfg.Keys {
		keys[i] = b.cfg.Prefix + source.Fill(k, content)
	}
	return keys
}

// Near returns the bucket and, where the store has any, its region.
func (b *Bucket) Near() []string {
	near := []string{"bucket:" + b.cfg.Bucket}
	if b.cfg.Region != "auto" {
		near = append(near, "region:"+b.cfg.Region)
	}
	return near
}

// Name is the bucket's, as it is addressed by people.
func (b *Bucket) Name() string { return b.cfg.Bucket }

// Key returns the key under which Put stores the content.
func (b *Bucket) Key(content cid.Cid) string { return b.keys(content)[0] }

// ReadOnly reports whether nothing can be put into the bucket.
func (b *Bucket) ReadOnly() bool { return !b.cfg.Writable }

// Host returns the host that addresses of the bucket lead to, with its port if that is said; none of a private bucket.
func (b *Bucket) Host(ctx context.Context) (string, error) {
	if b.cfg.Private {
		return "", nil
	}
	at := b.public
	if at == "" {
		// Who signs does not matter, and nobody has to be asked for credentials.
		req, err := b.signer.PresignGetObject(ctx, &s3.GetObjectInput{Bucket: &b.cfg.Bucket, Key: aws.String(b.Key(sample))},
			s3.WithPresignClientFromClientOptions(func(o *s3.Options) {
				o.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
					return aws.Credentials{AccessKeyID: "-", SecretAccessKey: "-"}, nil
				})
			}))
		if err != nil {
			return "", fmt.Errorf("finding the host of bucket %s: %w", b.cfg.Bucket, err)
		}
		at = req.URL
	}
	u, err := url.Parse(at)
	if err != nil {
		return "", err
	}
	return u.Host, nil
}

// Check asks whether the bucket is there and may be read.
func (b *Bucket) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if _, err := b.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &b.cfg.Bucket}); err != nil {
		return fmt.Errorf("looking at bucket %s: %w", b.cfg.Bucket, explain(err))
	}
	return nil
}

// An object is one version of an object, as it was when it was looked at.
type object struct {
	key     string
	version string // empty where the bucket keeps none
	etag    string
	length  int64
}

// find looks for the content under its keys.
func (b *Bucket) find(ctx context.Context, content cid.Cid) (object, error) {
	if err := source.Check(content); err != nil {
		return object{}, err
	}
	for _, key := range b.keys(content) {
		o, err := b.look(ctx, key)
		if !errors.Is(err, source.ErrNoContent) {
			return o, err
		}
	}
	return object{}, fmt.Errorf("%s: %w", content, source.ErrNoContent)
}

// look asks for one object. The error wraps source.ErrNoContent if it is not there.
func (b *Bucket) look(ctx context.Context, key string) (object, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	out, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.cfg.Bucket, Key: &key})
	if err != nil {
		return object{}, fmt.Errorf("looking for %s in bucket %s: %w", key, b.cfg.Bucket, explain(err))
	}
	if out.ContentLength == nil || *out.ContentLength < 0 {
		return object{}, fmt.Errorf("looking for %s in bucket %s: the store states no length", key, b.cfg.Bucket)
	}
	if e := aws.ToString(out.ContentEncoding); e != "" && e != "identity" && e != "aws-chunked" {
		return object{}, fmt.Errorf("%s in bucket %s is encoded (%s): its bytes are not the content", key, b.cfg.Bucket, e)
	}
	o := object{key: key, etag: aws.ToString(out.ETag), length: *out.ContentLength}
	if v := aws.ToString(out.VersionId); v != "null" {
		o.version = v
	}
	return o, nil
}

// Stat returns the length of the content. The error wraps source.ErrUnsupported or source.ErrNoContent.
func (b *Bucket) Stat(ctx context.Context, content cid.Cid) (length int64, err error) {
	o, err := b.find(ctx, content)
	return o.length, err
}

// Locate returns an address of the content as it lies there now. It fails as Stat does.
func (b *Bucket) Locate(ctx context.Context, content cid.Cid) (source.Location, error) {
	o, err := b.find(ctx, content)
	if err != nil {
		return source.Location{}, err
	}
	return b.location(o), nil
}

// LocateKey is Locate for any object below the prefix of the bucket, whatever it holds.
func (b *Bucket) LocateKey(ctx context.Context, key string) (source.Location, error) {
	if key == "" || len(b.cfg.Prefix)+len(key) > 1024 {
		return source.Location{}, fmt.Errorf("key of %d bytes: %w", len(key), source.ErrNoContent)
	}
	o, err := b.look(ctx, b.cfg.Prefix+key)
	if err != nil {
		return source.Location{}, err
	}
	return b.location(o), nil
}

func (b *Bucket) location(o object) source.Location {
	at := source.Location{Length: o.length, Expires: b.public == ""}
	if !b.cfg.Private {
		at.Sign = func(ctx context.Context, valid time.Duration) (string, error) { return b.sign(ctx, o, valid) }
	}
	return at
}

// sign returns an address of the object. It asks nobody.
func (b *Bucket) sign(ctx context.Context, o object, valid time.Duration) (string, error) {
	if b.public != "" {
		parts := strings.Split(o.key, "/")
		for i := range parts {
			parts[i] = url.PathEscape(parts[i])
		}
		return b.public + "/" + strings.Join(parts, "/"), nil
	}
	in := &s3.GetObjectInput{Bucket: &b.cfg.Bucket, Key: &o.key}
	if o.version != "" {
		in.VersionId = &o.version
	}
	req, err := b.signer.PresignGetObject(ctx, in, s3.WithPresignExpires(max(time.Second, min(valid, MaxValid))))
	if err != nil {
		return "", fmt.Errorf("signing an address in bucket %s: %w", b.cfg.Bucket, err)
	}
	return req.URL, nil
}

// explain turns an error of the SDK into one that says what happened: the original repeats request IDs and addresses.
func explain(err error) error {
	var (
		api  smithy.APIError
		resp interface{ HTTPStatusCode() int }
	)
	status := 0
	if errors.As(err, &resp) {
		status = resp.HTTPStatusCode()
	}
	switch {
	case status == http.StatusNotFound || status == http.StatusGone:
		if errors.As(err, &api) && api.ErrorCode() == "NoSuchBucket" {
			return errors.New("there is no such bucket")
		}
		return source.ErrNoContent
	case status == http.StatusPreconditionFailed || status == http.StatusConflict:
		return errExists
	case status >= 300 && status < 400:
		return &statusError{status, "the store redirects, which is not followed: correct endpoint and region"}
	case status >= 400:
		code := "no error code"
		if errors.As(err, &api) {
			code = api.ErrorCode()
		}
		return &statusError{status, code}
	}
	for _, e := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return e
		}
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// errExists: another writer was faster, or the object is not what it was when it was looked at.
var errExists = errors.New("the object has changed")

// statusError is an answer of the store that is not a success.
type statusError struct {
	status int
	code   string
}

func (e *statusError) Error() string { return fmt.Sprintf("status %d (%s)", e.status, e.code) }
