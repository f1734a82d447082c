package sqstest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// Variable names the environment variable that says where a server is, as the AWS engine's tests have it. `make test-aws` sets it.
const Variable = "W3FILECOIN_TEST_AWS"

// A Server is a queue of its own at a server.
type Server struct {
	URL, Region, Endpoint              string
	AccessKey, SecretKey, SessionToken string

	t      testing.TB
	client *sqs.Client
}

// Start makes a queue, and removes it with the test. It skips the test if [Variable] is not set.
func Start(t testing.TB) *Server {
	t.Helper()
	where, err := url.Parse(os.Getenv(Variable))
	if err != nil || where.Host == "" {
		t.Skipf("%s is not set: `make test-aws` runs this test", Variable)
	}
	s := &Server{Region: where.Query().Get("region"), Endpoint: where.Query().Get("sqs"), t: t,
		AccessKey: os.Getenv("AWS_ACCESS_KEY_ID"), SecretKey: os.Getenv("AWS_SECRET_ACCESS_KEY"), SessionToken: os.Getenv("AWS_SESSION_TOKEN")}
	options := sqs.Options{Region: s.Region, Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: s.AccessKey, SecretAccessKey: s.SecretKey, SessionToken: s.SessionToken}, nil
	})}
	if s.Endpoint != "" {
		options.BaseEndpoint = &s.Endpoint
	}
	s.client = sqs.New(options)
	name := fmt.Sprintf("w3filecoin-events-%d", time.Now().UnixNano())
	made, err := s.client.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: &name})
	if err != nil {
		t.Fatal(err)
	}
	s.URL = aws.ToString(made.QueueUrl)
	t.Cleanup(func() {
		if _, err := s.client.DeleteQueue(context.Background(), &sqs.DeleteQueueInput{QueueUrl: &s.URL}); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Send puts a message into the queue.
func (s *Server) Send(body string) {
	s.t.Helper()
	if _, err := s.client.SendMessage(s.t.Context(), &sqs.SendMessageInput{QueueUrl: &s.URL, MessageBody: &body}); err != nil {
		s.t.Fatal(err)
	}
}

// Len returns how many messages nobody has deleted, as far as the server knows.
func (s *Server) Len() int {
	s.t.Helper()
	names := []types.QueueAttributeName{types.QueueAttributeNameApproximateNumberOfMessages, types.QueueAttributeNameApproximateNumberOfMessagesNotVisible,
		types.QueueAttributeNameApproximateNumberOfMessagesDelayed}
	out, err := s.client.GetQueueAttributes(s.t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: &s.URL, AttributeNames: names})
	if err != nil {
		s.t.Fatal(err)
	}
	sum := 0
	for _, name := range names {
		n, err := strconv.Atoi(out.Attributes[string(name)])
		if err != nil {
			s.t.Fatalf("%s: %v", name, err)
		}
		sum += n
	}
	return sum
}
