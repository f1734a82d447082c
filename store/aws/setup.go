package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/storacha/w3filecoin/store"
)

// Layout is what a deployment consists of: its roles, and the queues of each.
type Layout map[string][]string

// Finding is something that a deployment lacks, or that differs from what the engine needs.
type Finding struct {
	Resource string // "table w3filecoin-dealer-rows"
	Problem  string
	Advice   bool // it works nevertheless
}

// MaxReceives is after how many receptions SQS moves a message to the queue of dead messages by itself: some more than a consumer allows, so that
// only messages end there whose consumers end with them.
const MaxReceives = store.DefaultAttempts + 5

// retention is how long SQS keeps a message, the longest it offers.
const retention = 14 * 24 * time.Hour

// setup creates and checks the parts of a deployment.
type setup struct {
	clients
	where   Location
	options Options
	told    func(string)
	found   []Finding
}

func newSetup(ctx context.Context, where Location, layout Layout, o Options) (*setup, error) {
	if o.Now == nil || o.After == nil {
		return nil, errors.New("options Now and After are required")
	}
	if err := where.Check(); err != nil {
		return nil, err
	}
	for role, names := range layout {
		if err := checkRole(role); err != nil {
			return nil, err
		}
		for _, name := range names {
			if err := checkQueue(name); err != nil {
				return nil, fmt.Errorf("queue %q: %w", name, err)
			}
		}
	}
	c, err := connect(ctx, where, o)
	return &setup{clients: c, where: where, options: o, told: func(string) {}}, err
}

// Init creates what is missing of a deployment: tables with their indexes, queues, the bucket. What is there is left as it is, but for the
// settings of queues. It is for development; who runs a service will want to describe its parts elsewhere, and use [Check]. told, if not nil, hears
// of each thing that was created.
func Init(ctx context.Context, where Location, layout Layout, o Options, told func(what string)) error {
	s, err := newSetup(ctx, where, layout, o)
	if err != nil {
		return fmt.Errorf("preparing %s: %w", where, err)
	}
	if told != nil {
		s.told = told
	}
	if err := s.createAll(ctx, layout); err != nil {
		return fmt.Errorf("preparing %s: %w", where, err)
	}
	return nil
}

func (s *setup) createAll(ctx context.Context, layout Layout) error {
	if err := s.createBucket(ctx); err != nil {
		return err
	}
	for _, role := range slices.Sorted(maps.Keys(layout)) {
		for _, table := range s.tables(role) {
			if err := s.createTable(ctx, table); err != nil {
				return err
			}
		}
		dead, err := s.createQueue(ctx, s.where.DeadQueueName(role), nil)
		if err != nil {
			return err
		}
		for _, name := range layout[role] {
			if _, err := s.createQueue(ctx, s.where.QueueName(role, name), &dead); err != nil {
				return err
			}
		}
	}
	return nil
}

// tables are the two tables of a role as they have to be.
func (s *setup) tables(role string) []*dynamodb.CreateTableInput {
	attribute := func(name string, kind types.ScalarAttributeType) types.AttributeDefinition {
		return types.AttributeDefinition{AttributeName: &name, AttributeType: kind}
	}
	keys := func(names ...string) (schema []types.KeySchemaElement) {
		for i, name := range names {
			kind := types.KeyTypeHash
			if i > 0 {
				kind = types.KeyTypeRange
			}
			schema = append(schema, types.KeySchemaElement{AttributeName: &name, KeyType: kind})
		}
		return schema
	}
	return []*dynamodb.CreateTableInput{{
		TableName: awssdk.String(s.where.RowTable(role)), BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{
			attribute(attrPartition, types.ScalarAttributeTypeS), attribute(attrSort, types.ScalarAttributeTypeS),
			attribute(attrList, types.ScalarAttributeTypeS), attribute(attrListSort, types.ScalarAttributeTypeS),
			attribute(attrShard, types.ScalarAttributeTypeN), attribute(attrLook, types.ScalarAttributeTypeN),
		},
		KeySchema: keys(attrPartition, attrSort),
		GlobalSecondaryIndexes: []types.GlobalSecondaryIndex{
			{IndexName: awssdk.String(listingIndex), KeySchema: keys(attrList, attrListSort), Projection: &types.Projection{
				ProjectionType: types.ProjectionTypeInclude, NonKeyAttributes: []string{attrVersion, attrValue}}},
			{IndexName: awssdk.String(outboxIndex), KeySchema: keys(attrShard, attrLook), Projection: &types.Projection{
				ProjectionType: types.ProjectionTypeKeysOnly}},
		},
	}, {
		TableName: awssdk.String(s.where.BlobTable(role)), BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{attribute(attrBlob, types.ScalarAttributeTypeB)},
		KeySchema:            keys(attrBlob),
	}}
}

func (s *setup) createTable(ctx context.Context, in *dynamodb.CreateTableInput) error {
	name := *in.TableName
	_, err := s.db.CreateTable(ctx, in)
	var there *types.ResourceInUseException
	switch {
	case err == nil:
		s.told("table " + name)
	case !errors.As(err, &there):
		return fault("creating table "+name, err)
	}
	for {
		out, err := s.db.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &name})
		if err != nil {
			return fault("looking at table "+name, err)
		}
		if out.Table.TableStatus == types.TableStatusActive {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.options.After(time.Second):
		}
	}
}

// redrive is the attribute of a queue that says where its dead messages go.
type redrive struct {
	Target   string `json:"deadLetterTargetArn"`
	Receives int    `json:"maxReceiveCount"`
}

// UnmarshalJSON takes the count as a number and, as some write it, as text.
func (r *redrive) UnmarshalJSON(b []byte) error {
	var v struct {
		Target   string `json:"deadLetterTargetArn"`
		Receives any    `json:"maxReceiveCount"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	n, err := strconv.Atoi(fmt.Sprint(v.Receives))
	r.Target, r.Receives = v.Target, n
	return err
}

// createQueue returns the ARN of a queue, whose dead messages go to another one if that is given.
func (s *setup) createQueue(ctx context.Context, name string, dead *string) (arn string, err error) {
	out, err := s.sqs.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &name})
	var missing *sqstypes.QueueDoesNotExist
	var url *string
	switch {
	case err == nil:
		url = out.QueueUrl
	case !errors.As(err, &missing):
		return "", fault("looking for queue "+name, err)
	default:
		created, err := s.sqs.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: &name})
		if err != nil {
			return "", fault("creating queue "+name, err)
		}
		url = created.QueueUrl
		s.told("queue " + name)
	}
	attributes := map[string]string{string(sqstypes.QueueAttributeNameMessageRetentionPeriod): strconv.Itoa(int(retention / time.Second))}
	if dead != nil {
		b, err := json.Marshal(redrive{*dead, MaxReceives})
		if err != nil {
			return "", err
		}
		attributes[string(sqstypes.QueueAttributeNameRedrivePolicy)] = string(b)
	}
	if _, err := s.sqs.SetQueueAttributes(ctx, &sqs.SetQueueAttributesInput{QueueUrl: url, Attributes: attributes}); err != nil {
		return "", fault("setting up queue "+name, err)
	}
	got, err := s.queueAttributes(ctx, url)
	if err != nil {
		return "", fault("looking at queue "+name, err)
	}
	return got[string(sqstypes.QueueAttributeNameQueueArn)], nil
}

func (s *setup) queueAttributes(ctx context.Context, url *string) (map[string]string, error) {
	out, err := s.sqs.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{
		QueueUrl: url, AttributeNames: []sqstypes.QueueAttributeName{sqstypes.QueueAttributeNameAll}})
	if err != nil {
		return nil, err
	}
	return out.Attributes, nil
}

func (s *setup) createBucket(ctx context.Context) error {
	name := s.where.BucketName()
	_, err := s.s3.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &name})
	if err == nil {
		return nil
	}
	if status(err) != http.StatusNotFound {
		return fault("looking for bucket "+name, err)
	}
	in := &s3.CreateBucketInput{Bucket: &name}
	// The oldest region has no name of its own here; elsewhere the region has to be said.
	if region := s.s3.Options().Region; region != "us-east-1" && region != "auto" {
		in.CreateBucketConfiguration = &s3types.CreateBucketConfiguration{LocationConstraint: s3types.BucketLocationConstraint(region)}
	}
	_, err = s.s3.CreateBucket(ctx, in)
	var ours *s3types.BucketAlreadyOwnedByYou
	switch {
	case errors.As(err, &ours): // somebody created it at this moment
		return nil
	case err != nil:
		return fault("creating bucket "+name, err)
	}
	s.told("bucket " + name)
	_, err = s.s3.PutBucketLifecycleConfiguration(ctx, &s3.PutBucketLifecycleConfigurationInput{Bucket: &name,
		LifecycleConfiguration: &s3types.BucketLifecycleConfiguration{Rules: []s3types.LifecycleRule{{
			ID: awssdk.String("unfinished"), Status: s3types.ExpirationStatusEnabled, Filter: &s3types.LifecycleRuleFilter{Prefix: awssdk.String("")},
			AbortIncompleteMultipartUpload: &s3types.AbortIncompleteMultipartUpload{DaysAfterInitiation: awssdk.Int32(unfinishedDays)},
		}}}})
	if err != nil && !unanswerable(err) {
		return fault("having unfinished uploads removed from bucket "+name, err)
	}
	return nil
}

// unfinishedDays is how long the parts of an upload stay that nobody finishes, because its process was killed.
const unfinishedDays = 7

// Check says what a deployment lacks, and what differs from what the engine needs. An error means that it could not be found out.
func Check(ctx context.Context, where Location, layout Layout, o Options) ([]Finding, error) {
	s, err := newSetup(ctx, where, layout, o)
	if err != nil {
		return nil, fmt.Errorf("checking %s: %w", where, err)
	}
	if err := s.checkAll(ctx, layout); err != nil {
		return s.found, fmt.Errorf("checking %s: %w", where, err)
	}
	return s.found, nil
}

func (s *setup) problem(resource, format string, args ...any) {
	s.found = append(s.found, Finding{Resource: resource, Problem: fmt.Sprintf(format, args...)})
}

func (s *setup) advise(resource, format string, args ...any) {
	s.found = append(s.found, Finding{Resource: resource, Problem: fmt.Sprintf(format, args...), Advice: true})
}

func (s *setup) checkAll(ctx context.Context, layout Layout) error {
	if err := s.checkBucket(ctx); err != nil {
		return err
	}
	for _, role := range slices.Sorted(maps.Keys(layout)) {
		for _, table := range s.tables(role) {
			if err := s.checkTable(ctx, table); err != nil {
				return err
			}
		}
		dead, err := s.checkQueue(ctx, s.where.DeadQueueName(role), "")
		if err != nil {
			return err
		}
		for _, name := range layout[role] {
			if _, err := s.checkQueue(ctx, s.where.QueueName(role, name), dead); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *setup) checkTable(ctx context.Context, want *dynamodb.CreateTableInput) error {
	name := *want.TableName
	resource := "table " + name
	out, err := s.db.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &name})
	var missing *types.ResourceNotFoundException
	switch {
	case errors.As(err, &missing):
		s.problem(resource, "is missing")
		return nil
	case err != nil:
		return fault("looking at table "+name, err)
	}
	got := out.Table
	if got.TableStatus != types.TableStatusActive && got.TableStatus != types.TableStatusUpdating {
		s.problem(resource, "is %s", got.TableStatus)
	}
	if g, w := keySchema(got.KeySchema, got.AttributeDefinitions), keySchema(want.KeySchema, want.AttributeDefinitions); g != w {
		s.problem(resource, "has the key %s instead of %s", g, w)
	}
	for _, index := range want.GlobalSecondaryIndexes {
		i := slices.IndexFunc(got.GlobalSecondaryIndexes, func(d types.GlobalSecondaryIndexDescription) bool {
			return awssdk.ToString(d.IndexName) == *index.IndexName
		})
		if i < 0 {
			s.problem(resource, "has no index %s", *index.IndexName)
			continue
		}
		there := got.GlobalSecondaryIndexes[i]
		if g, w := keySchema(there.KeySchema, got.AttributeDefinitions), keySchema(index.KeySchema, want.AttributeDefinitions); g != w {
			s.problem(resource, "index %s has the key %s instead of %s", *index.IndexName, g, w)
		}
		if !projects(there.Projection, index.Projection) {
			s.problem(resource, "index %s does not hold the attributes %s", *index.IndexName, strings.Join(index.Projection.NonKeyAttributes, ", "))
		}
		if there.IndexStatus != "" && there.IndexStatus != types.IndexStatusActive && there.IndexStatus != types.IndexStatusUpdating {
			s.problem(resource, "index %s is %s", *index.IndexName, there.IndexStatus)
		}
	}
	backups, err := s.db.DescribeContinuousBackups(ctx, &dynamodb.DescribeContinuousBackupsInput{TableName: &name})
	if err == nil && (backups.ContinuousBackupsDescription.PointInTimeRecoveryDescription == nil ||
		backups.ContinuousBackupsDescription.PointInTimeRecoveryDescription.PointInTimeRecoveryStatus != types.PointInTimeRecoveryStatusEnabled) {
		s.advise(resource, "has no point-in-time recovery")
	} else if err != nil && !unanswerable(err) {
		return fault("looking at the backups of table "+name, err)
	}
	if !awssdk.ToBool(got.DeletionProtectionEnabled) {
		s.advise(resource, "is not protected against deletion")
	}
	return nil
}

// keySchema is a key for people and for comparing: "p (S), s (S)".
func keySchema(keys []types.KeySchemaElement, attributes []types.AttributeDefinition) string {
	var parts []string
	for _, k := range keys {
		kind := types.ScalarAttributeType("?")
		for _, a := range attributes {
			if awssdk.ToString(a.AttributeName) == awssdk.ToString(k.AttributeName) {
				kind = a.AttributeType
			}
		}
		part := fmt.Sprintf("%s (%s)", awssdk.ToString(k.AttributeName), kind)
		if k.KeyType == types.KeyTypeHash {
			parts = slices.Insert(parts, 0, part)
		} else {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ", ")
}

// projects reports whether an index holds at least what is wanted.
func projects(got, want *types.Projection) bool {
	switch {
	case got == nil:
		return false
	case got.ProjectionType == types.ProjectionTypeAll:
		return true
	}
	for _, name := range want.NonKeyAttributes {
		if !slices.Contains(got.NonKeyAttributes, name) {
			return false
		}
	}
	return true
}

// unanswerable: the service does not know the question, or we may not ask it.
func unanswerable(err error) bool {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return false
	}
	switch api.ErrorCode() {
	case "UnknownOperationException", "AccessDeniedException", "AccessDenied", "NotImplemented", "MethodNotAllowed", "UnsupportedOperation":
		return true
	}
	return false
}

// checkQueue returns the ARN of the queue, "" if there is none.
func (s *setup) checkQueue(ctx context.Context, name, dead string) (arn string, err error) {
	resource := "queue " + name
	url, err := s.sqs.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &name})
	var missing *sqstypes.QueueDoesNotExist
	switch {
	case errors.As(err, &missing):
		s.problem(resource, "is missing")
		return "", nil
	case err != nil:
		return "", fault("looking for queue "+name, err)
	}
	got, err := s.queueAttributes(ctx, url.QueueUrl)
	if err != nil {
		return "", fault("looking at queue "+name, err)
	}
	attribute := func(name sqstypes.QueueAttributeName) int {
		n, err := strconv.Atoi(got[string(name)])
		if err != nil {
			return 0
		}
		return n
	}
	if got[string(sqstypes.QueueAttributeNameFifoQueue)] == "true" {
		s.problem(resource, "is a FIFO queue: it has to be a standard one")
	}
	if kept := time.Duration(attribute(sqstypes.QueueAttributeNameMessageRetentionPeriod)) * time.Second; kept < retention {
		s.problem(resource, "keeps messages for %s: work would be lost after that; set it to 14 days", kept)
	}
	if n := attribute(sqstypes.QueueAttributeNameDelaySeconds); n > 0 {
		s.advise(resource, "delays every message by %d s", n)
	}
	if dead != "" {
		var policy redrive
		switch err := json.Unmarshal([]byte(got[string(sqstypes.QueueAttributeNameRedrivePolicy)]), &policy); {
		case err != nil || policy.Target != dead:
			s.problem(resource, "does not move dead messages to %s", dead)
		case policy.Receives < MaxReceives:
			s.problem(resource, "moves messages away after %d receptions: consumers try %d times", policy.Receives, store.DefaultAttempts)
		}
	}
	return got[string(sqstypes.QueueAttributeNameQueueArn)], nil
}

func (s *setup) checkBucket(ctx context.Context) error {
	name := s.where.BucketName()
	_, err := s.s3.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &name})
	switch status(err) {
	case 0:
		if err != nil {
			return fault("looking for bucket "+name, err)
		}
		return s.adviseBucket(ctx, name)
	case http.StatusNotFound:
		s.problem("bucket "+name, "is missing")
	case http.StatusForbidden:
		s.problem("bucket "+name, "is not ours to use: the credentials do not reach it, or its name is somebody else's")
	default:
		return fault("looking for bucket "+name, err)
	}
	return nil
}

// adviseBucket looks at what a bucket should do by itself. Not every store can be asked.
func (s *setup) adviseBucket(ctx context.Context, name string) error {
	rules, err := s.s3.GetBucketLifecycleConfiguration(ctx, &s3.GetBucketLifecycleConfigurationInput{Bucket: &name})
	var api smithy.APIError
	none := errors.As(err, &api) && api.ErrorCode() == "NoSuchLifecycleConfiguration"
	switch {
	case err == nil:
		none = !slices.ContainsFunc(rules.Rules, func(r s3types.LifecycleRule) bool {
			return r.Status == s3types.ExpirationStatusEnabled && r.AbortIncompleteMultipartUpload != nil
		})
	case !none && !unanswerable(err):
		return fault("looking at the rules of bucket "+name, err)
	}
	if none {
		s.advise("bucket "+name, "has no rule that removes the parts of unfinished uploads")
	}
	versions, err := s.s3.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &name})
	switch {
	case err == nil && versions.Status != s3types.BucketVersioningStatusEnabled:
		s.advise("bucket "+name, "keeps no versions: what is removed by mistake is gone")
	case err != nil && !unanswerable(err):
		return fault("looking at the versions of bucket "+name, err)
	}
	return nil
}
