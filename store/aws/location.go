package aws

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// Location says where the state of a deployment is. All roles of a deployment share it; their names keep them apart.
type Location struct {
	// Prefix begins the names of tables and queues: "{prefix}-{role}-rows", "{prefix}-{role}-blobs", "{prefix}-{role}-{queue}".
	Prefix string
	// Bucket holds the larger blobs of all roles, as "{prefix}/{role}/{CID}", and what else belongs to the deployment, see
	// [Location.ObjectPrefix]; "{prefix}-blobs" if empty.
	Bucket string
	// Region is the region of all three services; what the SDK's configuration says if empty.
	Region string
	// DynamoDB, SQS and S3 are endpoints other than the region's: substitutes, gateways, another maker's object store.
	DynamoDB, SQS, S3 string
	// S3Profile names a profile of the SDK's configuration whose credentials and region are for S3 only: those of another maker's store.
	S3Profile string
	// Shards is how many partitions the index of items with messages has; 0: DefaultShards. It may grow at any time: every process sends what is in those that it
	// knows of, so nothing waits for longer than one that knows of all takes to come. To make it smaller, stop all processes and wait for the outbox to be
	// empty.
	Shards int
	// PathStyle puts the bucket's name into the path of S3 requests instead of the host.
	PathStyle bool
}

// DefaultShards and MaxShards are how many partitions the index of items with messages has if the location does not say, and at most.
const (
	DefaultShards = 32
	MaxShards     = 1024
)

// Schemes of a location as text.
const Scheme = "aws"

// maxPrefix and maxRole leave a queue of 40 bytes a name within the 80 that SQS takes.
var (
	prefixForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,23}$`)
	roleForm   = regexp.MustCompile(`^[a-z][a-z0-9]{0,13}$`)
	queueForm  = regexp.MustCompile(`^[A-Za-z0-9_-]{1,40}$`)
	bucketForm = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
)

// ParseLocation reads a location written as a URL:
//
//	aws://PREFIX?region=eu-west-1&bucket=NAME
//
// with the optional parameters region, bucket, dynamodb, sqs, s3 (endpoints), s3_profile, path_style=true and shards=128.
func ParseLocation(s string) (Location, error) {
	u, err := url.Parse(s)
	if err != nil {
		return Location{}, fmt.Errorf("location %q: %w", s, err)
	}
	if u.Scheme != Scheme || u.User != nil || strings.Trim(u.Path, "/") != "" || u.Fragment != "" || u.Opaque != "" {
		return Location{}, fmt.Errorf("location %q is not of the form aws://PREFIX?region=REGION&bucket=NAME", s)
	}
	l := Location{Prefix: u.Host}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Location{}, fmt.Errorf("location %q: %w", s, err)
	}
	fields := l.fields()
	for name, values := range query {
		switch field := fields[name]; {
		case len(values) != 1:
			return Location{}, fmt.Errorf("location %q: parameter %s is given %d times", s, name, len(values))
		case name == "path_style":
			if l.PathStyle, err = strconv.ParseBool(values[0]); err != nil {
				return Location{}, fmt.Errorf("location %q: path_style is true or false", s)
			}
		case name == "shards":
			if l.Shards, err = strconv.Atoi(values[0]); err != nil || l.Shards < 1 {
				return Location{}, fmt.Errorf("location %q: shards is a number from 1 to %d", s, MaxShards)
			}
		case field == nil:
			return Location{}, fmt.Errorf("location %q: there is no parameter %s", s, name)
		default:
			*field = values[0]
		}
	}
	if err := l.Check(); err != nil {
		return Location{}, fmt.Errorf("location %q: %w", s, err)
	}
	return l, nil
}

// fields are the parameters of a location that are text.
func (l *Location) fields() map[string]*string {
	return map[string]*string{
		"region": &l.Region, "bucket": &l.Bucket, "dynamodb": &l.DynamoDB, "sqs": &l.SQS, "s3": &l.S3, "s3_profile": &l.S3Profile,
	}
}

// Check reports why there can be no such location.
func (l Location) Check() error {
	switch {
	case !prefixForm.MatchString(l.Prefix):
		return fmt.Errorf("prefix %q is not 2 to 24 lower-case letters, digits and hyphens", l.Prefix)
	case !bucketForm.MatchString(l.BucketName()):
		return fmt.Errorf("bucket %q has no name that S3 takes", l.BucketName())
	case l.Shards < 0 || l.Shards > MaxShards:
		return fmt.Errorf("%d shards, not 1 to %d", l.Shards, MaxShards)
	}
	for name, endpoint := range map[string]string{"dynamodb": l.DynamoDB, "sqs": l.SQS, "s3": l.S3} {
		if endpoint == "" {
			continue
		}
		u, err := url.Parse(endpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("endpoint %s=%q is not a URL", name, endpoint)
		}
	}
	return nil
}

// String is the location as [ParseLocation] reads it.
func (l Location) String() string {
	query := url.Values{}
	for name, field := range l.fields() {
		if *field != "" {
			query.Set(name, *field)
		}
	}
	if l.PathStyle {
		query.Set("path_style", "true")
	}
	if l.Shards != 0 {
		query.Set("shards", strconv.Itoa(l.Shards))
	}
	u := url.URL{Scheme: Scheme, Host: l.Prefix, RawQuery: query.Encode()}
	return u.String()
}

func (l Location) shards() int {
	if l.Shards == 0 {
		return DefaultShards
	}
	return l.Shards
}

// BucketName is the bucket of the larger blobs.
func (l Location) BucketName() string {
	if l.Bucket != "" {
		return l.Bucket
	}
	return l.Prefix + "-blobs"
}

// ObjectPrefix begins the keys of a role's blobs in the bucket, or of objects that are nobody's blobs, under a name that no role has.
func (l Location) ObjectPrefix(name string) string { return l.Prefix + "/" + name + "/" }

// RowTable is the table of a role's rows, with the messages that they still hold.
func (l Location) RowTable(role string) string { return l.Prefix + "-" + role + "-rows" }

// BlobTable is the table of a role's small blobs.
func (l Location) BlobTable(role string) string { return l.Prefix + "-" + role + "-blobs" }

// QueueName is the SQS queue of one of a role's queues.
func (l Location) QueueName(role, queue string) string { return l.Prefix + "-" + role + "-" + queue }

// DeadQueueName is the SQS queue to which a role's messages go that were received again and again without an outcome.
func (l Location) DeadQueueName(role string) string { return l.Prefix + "-" + role + deadSuffix }

// deadSuffix is not the form of a queue's name after the hyphen that would separate it.
const deadSuffix = "_dead"

func checkRole(role string) error {
	if !roleForm.MatchString(role) {
		return fmt.Errorf("role %q is not a name of up to 14 lower-case letters and digits", role)
	}
	return nil
}

func checkQueue(queue string) error {
	if !queueForm.MatchString(queue) {
		return errors.New("its name is not 1 to 40 letters, digits, hyphens and underscores")
	}
	return nil
}
