package s3

import (
	"context"
	"time"

	"github.com/ipfs/go-cid"
)

// Address signs an address of the content without looking whether it is there.
func (b *Bucket) Address(ctx context.Context, content cid.Cid, valid time.Duration) (string, error) {
	return b.sign(ctx, object{key: b.Key(content)}, valid)
}
