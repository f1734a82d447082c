package capabilities_test

import (
	"context"
	"errors"
	"testing"

	"github.com/storacha/w3filecoin/capabilities"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/wire"
)

// TestVerifyReceipt: a receipt is believed of the task that it names, from the one whom the task was for, signed with that one's key.
func TestVerifyReceipt(t *testing.T) {
	storefront, aggregator, mallory := chaintest.Key("storefront"), chaintest.Key("aggregator"), chaintest.Key("mallory")
	elsewhere, err := wire.ParseDID("did:web:elsewhere.example")
	if err != nil {
		t.Fatal(err)
	}
	named, err := aggregator.WithDID(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	link := chaintest.New().Piece
	invoke := func(group string) capabilities.Task {
		return chaintest.Invoke(storefront, aggregator.DID(), aggregator.DID().String(), &piececap.Offer{Piece: link, Group: group}, capabilities.Terms{})
	}
	task, other := invoke("a"), invoke("b")
	issue := func(by capabilities.Signer, ran capabilities.Task) *capabilities.Receipt {
		r, err := capabilities.Issue(by, ran.Link(), &piececap.OfferOK{Piece: link}, capabilities.Effects{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	keys := chaintest.Keys{elsewhere: aggregator.KeyDID()}
	for _, tt := range []struct {
		name     string
		receipt  *capabilities.Receipt
		believed bool
	}{
		{"as it should be", issue(aggregator, task), true},
		{"of another task", issue(aggregator, other), false},
		{"by somebody else", issue(mallory, task), false},
		{"by the invoker", issue(storefront, task), false},
		{"by somebody else in the right name", chaintest.Claim(aggregator.DID())(issue(mallory, task)), false},
		{"signed in somebody else's name afterwards", chaintest.Claim(mallory.DID())(issue(aggregator, task)), false},
		{"signed with the right key in another name", issue(named, task), false},
		{"one bit of the signature changed", chaintest.FlipSignature(issue(aggregator, task)), false},
	} {
		err := capabilities.VerifyReceipt(t.Context(), tt.receipt, task.UCAN, keys)
		if (err == nil) != tt.believed || err != nil && !errors.Is(err, capabilities.ErrInvalidReceipt) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	// A key that cannot be looked up says nothing about the receipt.
	err = capabilities.VerifyReceipt(t.Context(), issue(aggregator, task), task.UCAN, noKeys{})
	if !errors.Is(err, errNoKeys) || errors.Is(err, capabilities.ErrInvalidReceipt) {
		t.Errorf("without keys: %v", err)
	}
}

type noKeys struct{}

var errNoKeys = errors.New("the keys are away")

func (noKeys) Verifier(context.Context, capabilities.DID) (capabilities.Verifier, error) {
	return capabilities.Verifier{}, errNoKeys
}
