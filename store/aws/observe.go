package aws

import (
	"context"
	"io"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Call is one operation of a service, with all its attempts.
type Call struct {
	Service   string  // dynamodb, sqs, s3
	Operation string  // UpdateItem
	Attempts  int     // requests made, 1 if the first was answered
	Sent      int64   // bytes of the requests' bodies
	Received  int64   // bytes of the answers' bodies, without those of a blob that is read later
	Capacity  float64 // units that DynamoDB counted, indexes included
	Took      time.Duration
	Err       error
}

type callKey struct{}

// observed adds to a client what tells [Options.Observe] of each call.
func observed(service string, o Options) func(*middleware.Stack) error {
	if o.Observe == nil {
		return func(*middleware.Stack) error { return nil }
	}
	return func(stack *middleware.Stack) error {
		whole := middleware.InitializeMiddlewareFunc("w3filecoin.Call", func(ctx context.Context, in middleware.InitializeInput,
			next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
			call := &Call{Service: service, Operation: middleware.GetOperationName(ctx)}
			began := o.Now()
			out, meta, err := next.HandleInitialize(context.WithValue(ctx, callKey{}, call), in)
			call.Took, call.Err, call.Capacity = o.Now().Sub(began), err, capacity(out.Result)
			o.Observe(*call)
			return out, meta, err
		})
		attempt := middleware.DeserializeMiddlewareFunc("w3filecoin.Attempt", func(ctx context.Context, in middleware.DeserializeInput,
			next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
			call, _ := ctx.Value(callKey{}).(*Call)
			if call == nil {
				return next.HandleDeserialize(ctx, in)
			}
			call.Attempts++
			if req, ok := in.Request.(*smithyhttp.Request); ok {
				call.Sent += max(0, req.ContentLength)
			}
			out, meta, err := next.HandleDeserialize(ctx, in)
			if res, ok := out.RawResponse.(*smithyhttp.Response); ok && call.Operation != "GetObject" && res.Body != nil {
				res.Body = &countedBody{res.Body, call}
			} else if ok {
				call.Received += max(0, res.ContentLength)
			}
			return out, meta, err
		})
		if err := stack.Initialize.Add(whole, middleware.Before); err != nil {
			return err
		}
		return stack.Deserialize.Add(attempt, middleware.After)
	}
}

// countedBody counts what is read of an answer, which is before the call ends.
type countedBody struct {
	io.ReadCloser
	call *Call
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.call.Received += int64(n)
	return n, err
}

// capacity is what an operation of DynamoDB consumed.
func capacity(result any) float64 {
	one := func(c *types.ConsumedCapacity) float64 {
		if c == nil || c.CapacityUnits == nil {
			return 0
		}
		return *c.CapacityUnits
	}
	switch r := result.(type) {
	case *dynamodb.GetItemOutput:
		return one(r.ConsumedCapacity)
	case *dynamodb.UpdateItemOutput:
		return one(r.ConsumedCapacity)
	case *dynamodb.DeleteItemOutput:
		return one(r.ConsumedCapacity)
	case *dynamodb.QueryOutput:
		return one(r.ConsumedCapacity)
	case *dynamodb.ScanOutput:
		return one(r.ConsumedCapacity)
	case *dynamodb.BatchWriteItemOutput:
		sum := 0.0
		for i := range r.ConsumedCapacity {
			sum += one(&r.ConsumedCapacity[i])
		}
		return sum
	}
	return 0
}
