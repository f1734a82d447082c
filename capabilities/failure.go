package capabilities

import (
	"fmt"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

// Failure is a named failure, as it stands in a receipt: {name, message} and the fields of its details. There is no stack trace in it.
type Failure struct {
	Name    string
	Message string
	// Details are further fields of the map; nil for none.
	Details Struct
	// raw is the whole value of a failure that was read.
	raw Raw
}

func (f *Failure) Error() string { return f.Name + ": " + f.Message }

func (f *Failure) Fields() []Field {
	fields := []Field{{Key: "name", Value: &f.Name}, {Key: "message", Value: &f.Message, Optional: true}}
	if f.Details != nil {
		fields = append(fields, f.Details.Fields()...)
	}
	return fields
}

// Encode returns the failure as canonical DAG-CBOR.
func (f *Failure) Encode() []byte {
	if f.raw != nil {
		return f.raw
	}
	return Encode(f)
}

// ReadFailure reads the error of a receipt. A value that has no name is a failure all the same, called "Error".
func ReadFailure(raw []byte) *Failure {
	f := &Failure{raw: raw}
	if err := Decode(raw, f); err != nil {
		text, _ := cbor.ToJSON(raw)
		return &Failure{Name: "Error", Message: string(text), raw: raw}
	}
	return f
}

// ReadDetails reads the fields of a failure that was read.
func (f *Failure) ReadDetails(s Struct) error { return Decode(f.raw, s) }

// ReadResult reads a receipt's result into ok, or returns the [*Failure] that it states.
func ReadResult(out wire.Result, ok Struct) error {
	if out.Error != nil {
		return ReadFailure(out.Error)
	}
	if err := Decode(out.OK, ok); err != nil {
		return fmt.Errorf("reading the result: %w", err)
	}
	return nil
}

// Names of failures: the one table of all that a receipt of ours can state.
const (
	// Of the protocol's layer; nothing was stored, nothing was done.
	HandlerNotFound      = "HandlerNotFound"           // the role does not execute this ability
	InvocationCapability = "InvocationCapabilityError" // an invocation has exactly one capability
	InvalidAudience      = "InvalidAudience"           // meant for somebody else
	Unauthorized         = "Unauthorized"              // no valid chain of authority, expired, revoked, wrong caveats
	MalformedCapability  = "MalformedCapability"       // caveats of the wrong shape

	// Refusals that changed nothing; they are not stored, the same task may succeed later.
	UnsupportedContent    = "UnsupportedContent"    // filecoin/offer, compute/piececid: not a whole byte string, or not sha2-256
	PieceTooLarge         = "PieceTooLarge"         // filecoin/offer, piece/offer: could never be placed
	QuotaExceeded         = "QuotaExceeded"         // filecoin/offer, piece/offer, space/blob/add: as much as may be offered or uploaded in a day has been
	OfferRefused          = "OfferRefused"          // filecoin/offer, piece/offer: too much that was offered before was proven wrong
	RecordNotFound        = "RecordNotFound"        // filecoin/info: unknown piece
	ContentNotFound       = "ContentNotFoundError"  // compute/piececid: nothing to read at the claimed locations
	UnsupportedCapability = "UnsupportedCapability" // the task is not for this invoker or this resource

	// Terminal.
	InvalidPieceCID     = "InvalidPieceCID"     // filecoin/submit: the content's bytes give another piece
	InvalidContentPiece = "InvalidContentPiece" // filecoin/accept: likewise
	AggregationFailed   = "AggregationFailed"   // filecoin/accept: no aggregate with the piece found a deal
	QuarantineEnded     = "QuarantineEnded"     // piece/accept: among pieces kept apart it waited too long for the volume of an aggregate
	AggregateMismatch   = "AggregateMismatch"   // aggregate/offer: the list of pieces gives another aggregate
	InvalidPiece        = "InvalidPiece"        // aggregate/accept: pieces proven bad
)

// Terminal reports whether a failure is final by its name. All others, whoever signs them, may pass: other implementations sign receipts for faults
// of the moment too.
func (f *Failure) Terminal() bool {
	switch f.Name {
	case InvalidPieceCID, InvalidContentPiece, AggregationFailed, QuarantineEnded, AggregateMismatch, InvalidPiece, UnsupportedContent:
		return true
	}
	return false
}

// Malformed says that the caveats of an invocation do not have the shape that its ability asks for.
func Malformed(can, with string, err error) *Failure {
	return &Failure{Name: MalformedCapability, Message: fmt.Sprintf("%s on %s has malformed caveats: %v", can, with, err)}
}

// Mismatch are the details of InvalidPieceCID and InvalidContentPiece.
type Mismatch struct {
	Content  cid.Cid
	Piece    piece.Link // as offered
	Computed piece.Link // of the content's bytes
}

func (m *Mismatch) Fields() []Field {
	return []Field{{Key: "content", Value: &m.Content}, {Key: "piece", Value: &m.Piece}, {Key: "computed", Value: &m.Computed}}
}

// NewInvalidPieceCID is the terminal failure of filecoin/submit.
func NewInvalidPieceCID(m Mismatch) *Failure {
	return &Failure{Name: InvalidPieceCID, Details: &m,
		Message: fmt.Sprintf("the bytes of %s are piece %s, not %s", m.Content, m.Computed, m.Piece)}
}

// NewInvalidContentPiece is the terminal failure of filecoin/accept for the same cause.
func NewInvalidContentPiece(m Mismatch) *Failure {
	f := NewInvalidPieceCID(m)
	f.Name = InvalidContentPiece
	return f
}

type sizeDetails struct {
	Piece     piece.Link
	Size, Max uint64
}

func (d *sizeDetails) Fields() []Field {
	return []Field{{Key: "piece", Value: &d.Piece}, {Key: "size", Value: &d.Size}, {Key: "max", Value: &d.Max}}
}

// NewPieceTooLarge refuses a piece of more than max padded bytes.
func NewPieceTooLarge(p piece.Link, max uint64) *Failure {
	return &Failure{Name: PieceTooLarge, Details: &sizeDetails{p, p.PaddedSize(), max},
		Message: fmt.Sprintf("piece %s has %d padded bytes, the largest accepted has %d: split the content into smaller pieces", p, p.PaddedSize(), max)}
}

type quotaDetails struct {
	Subject         string
	Count, MaxCount uint64
	Bytes, MaxBytes uint64
	RetryAfter      uint64 // seconds
}

func (d *quotaDetails) Fields() []Field {
	return []Field{
		{Key: "subject", Value: &d.Subject},
		{Key: "count", Value: &d.Count}, {Key: "maxCount", Value: &d.MaxCount, Optional: true},
		{Key: "bytes", Value: &d.Bytes}, {Key: "maxBytes", Value: &d.MaxBytes, Optional: true},
		{Key: "retryAfter", Value: &d.RetryAfter},
	}
}

// Quota is what somebody has offered or uploaded on a day, and what they may; a maximum of zero bounds nothing.
type Quota struct {
	Count, MaxCount uint64 // pieces; of uploads blobs
	Bytes, MaxBytes uint64 // padded bytes of pieces; of uploads bytes
}

// NewQuotaExceeded refuses an offer beyond what the subject (an agent, a space, a storefront, all newcomers) may offer in a day.
func NewQuotaExceeded(subject string, q Quota, retryAfter time.Duration) *Failure {
	return quotaFailure(subject, q, retryAfter, "%s has offered %d pieces of %d padded bytes today: offer again in %s")
}

// NewUploadQuotaExceeded refuses an upload beyond what the subject (an agent, a space, all newcomers) may upload in a day.
func NewUploadQuotaExceeded(subject string, q Quota, retryAfter time.Duration) *Failure {
	return quotaFailure(subject, q, retryAfter, "%s has uploaded %d blobs of %d bytes today: upload again in %s")
}

func quotaFailure(subject string, q Quota, retryAfter time.Duration, format string) *Failure {
	return &Failure{Name: QuotaExceeded,
		Details: &quotaDetails{subject, q.Count, q.MaxCount, q.Bytes, q.MaxBytes, seconds(retryAfter)},
		Message: fmt.Sprintf(format, subject, q.Count, q.Bytes, retryAfter.Round(time.Second))}
}

// RefusalDetails are the details of OfferRefused.
type RefusalDetails struct {
	// Score counts what was proven wrong, halving with time, in thousandths.
	Score uint64
	// Cause is the latest of it.
	Cause string
	// RetryAfter is in seconds: offers are taken again then, if nothing more is proven wrong.
	RetryAfter uint64
}

func (d *RefusalDetails) Fields() []Field {
	return []Field{{Key: "score", Value: &d.Score}, {Key: "cause", Value: &d.Cause}, {Key: "retryAfter", Value: &d.RetryAfter}}
}

// NewOfferRefused refuses what a subject offers because of what was proven of its earlier offers.
func NewOfferRefused(subject string, score float64, cause string, retryAfter time.Duration) *Failure {
	return &Failure{Name: OfferRefused, Details: &RefusalDetails{uint64(score * 1000), cause, seconds(retryAfter)},
		Message: fmt.Sprintf("too much of what %s offered was proven wrong, the last time: %s; offer again in %s, or ask the operator",
			subject, cause, retryAfter.Round(time.Second))}
}

func seconds(d time.Duration) uint64 { return uint64((d + time.Second - 1) / time.Second) }

type contentDetails struct{ Content cid.Cid }

func (d *contentDetails) Fields() []Field { return []Field{{Key: "content", Value: &d.Content}} }

// NewUnsupportedContent refuses content that cannot be hashed as one byte string.
func NewUnsupportedContent(c cid.Cid) *Failure {
	return &Failure{Name: UnsupportedContent, Details: &contentDetails{c},
		Message: fmt.Sprintf("%s does not name a whole byte string: offer the raw or CAR CID (sha2-256) of the stored bytes", c)}
}

// NewContentNotFound says that there is nothing to compute from. It is not terminal.
func NewContentNotFound(c cid.Cid, why string) *Failure {
	return &Failure{Name: ContentNotFound, Details: &contentDetails{c}, Message: fmt.Sprintf("content %s: %s", c, why)}
}

// NewAggregationFailed is the terminal failure of filecoin/accept for a piece whose aggregates never found a deal.
func NewAggregationFailed(attempts uint64, why string) *Failure {
	return &Failure{Name: AggregationFailed, Details: &attemptDetails{attempts}, Message: why}
}

type attemptDetails struct{ Attempts uint64 }

func (d *attemptDetails) Fields() []Field { return []Field{{Key: "attempts", Value: &d.Attempts}} }

type quarantineDetails struct {
	Piece piece.Link
	Group string
	Since uint64 // seconds since the Unix epoch
}

func (d *quarantineDetails) Fields() []Field {
	return []Field{{Key: "piece", Value: &d.Piece}, {Key: "group", Value: &d.Group}, {Key: "since", Value: &d.Since}}
}

// NewQuarantineEnded is the terminal failure of piece/accept for a piece that was kept apart from those of others, and waited in vain, since a time, for
// enough of its like to make an aggregate.
func NewQuarantineEnded(p piece.Link, group string, since time.Time) *Failure {
	return &Failure{Name: QuarantineEnded, Details: &quarantineDetails{p, group, uint64(since.Unix())},
		Message: fmt.Sprintf("piece %s of group %s was kept apart, as too much that was offered with it was proven wrong, and since %s too little came to fill an aggregate",
			p, group, since.UTC().Format(time.RFC3339))}
}

type aggregateDetails struct{ Aggregate, Computed piece.Link }

func (d *aggregateDetails) Fields() []Field {
	return []Field{{Key: "aggregate", Value: &d.Aggregate}, {Key: "computed", Value: &d.Computed, Optional: true}}
}

// NewAggregateMismatch refuses an aggregate that its list of pieces does not give. Computed is undefined if the list gives none at all.
func NewAggregateMismatch(aggregate, computed piece.Link, why string) *Failure {
	return &Failure{Name: AggregateMismatch, Details: &aggregateDetails{aggregate, computed}, Message: why}
}

// BadPiece names one culprit of a failed aggregate.
type BadPiece struct {
	Name  string // InvalidPieceCID
	Piece piece.Link
}

func (p *BadPiece) Fields() []Field {
	return []Field{{Key: "name", Value: &p.Name}, {Key: "piece", Value: &p.Piece}}
}

// InvalidPieceDetails are the details of InvalidPiece.
type InvalidPieceDetails struct {
	Aggregate piece.Link
	Cause     BadPieces
}

func (d *InvalidPieceDetails) Fields() []Field {
	return []Field{{Key: "aggregate", Value: &d.Aggregate}, {Key: "cause", Value: &d.Cause}}
}

// BadPieces is a list of [BadPiece].
type BadPieces []BadPiece

func (l *BadPieces) AppendCBOR(b []byte) []byte { return AppendList(b, *l) }
func (l *BadPieces) ReadCBOR(r *cbor.Reader)    { *l = ReadList[BadPiece](r) }
func (l *BadPieces) IsZero() bool               { return len(*l) == 0 }

// NewInvalidPiece is the terminal failure of aggregate/accept that names the culprits.
func NewInvalidPiece(aggregate piece.Link, culprits []piece.Link) *Failure {
	d := &InvalidPieceDetails{Aggregate: aggregate}
	for _, p := range culprits {
		d.Cause = append(d.Cause, BadPiece{InvalidPieceCID, p})
	}
	return &Failure{Name: InvalidPiece, Details: d, Message: fmt.Sprintf("%d pieces of the aggregate are invalid", len(culprits))}
}

type capabilityDetails struct {
	Error      bool
	Capability canWith
}

type canWith struct{ Can, With string }

func (c *canWith) Fields() []Field {
	return []Field{{Key: "can", Value: &c.Can}, {Key: "with", Value: &c.With}}
}

func (d *capabilityDetails) Fields() []Field {
	return []Field{{Key: "error", Value: &d.Error}, {Key: "capability", Value: &d.Capability}}
}

// NewHandlerNotFound answers an ability that the role does not execute.
func NewHandlerNotFound(can, with string) *Failure {
	return &Failure{Name: HandlerNotFound, Details: &capabilityDetails{true, canWith{can, with}},
		Message: fmt.Sprintf("service does not implement {can: %q} handler", can)}
}

// Fail returns a failure that needs no details.
func Fail(name, format string, args ...any) *Failure {
	return &Failure{Name: name, Message: fmt.Sprintf(format, args...)}
}
