package tasks

import (
	"fmt"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/aggregate"
	"github.com/storacha/w3filecoin/capabilities/assert"
	"github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/deal"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	httpcap "github.com/storacha/w3filecoin/capabilities/http"
	"github.com/storacha/w3filecoin/capabilities/pdp"
	"github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/wire"
)

// checkResult checks that a result has the shape that its ability promises, and tells whether it is terminal.
func checkResult(can string, out wire.Result) (terminal bool, err error) {
	if out.Error != nil {
		return capabilities.ReadFailure(out.Error).Terminal(), nil
	}
	var ok capabilities.Struct
	switch can {
	case filecoin.OfferAbility, filecoin.SubmitAbility:
		ok = new(filecoin.PieceOK)
	case filecoin.AcceptAbility:
		ok = new(filecoin.AcceptOK)
	case filecoin.InfoAbility:
		ok = new(filecoin.InfoOK)
	case piece.OfferAbility:
		ok = new(piece.OfferOK)
	case piece.AcceptAbility:
		ok = new(piece.AcceptOK)
	case aggregate.OfferAbility:
		ok = new(aggregate.OfferOK)
	case aggregate.AcceptAbility:
		ok = new(aggregate.AcceptOK)
	case deal.InfoAbility:
		ok = new(deal.InfoOK)
	case compute.PieceCIDAbility:
		ok = new(compute.PieceCIDOK)
	case assert.LocationAbility, assert.EqualsAbility, assert.InclusionAbility, assert.IndexAbility:
		ok = new(assert.OK)
	case httpcap.PutAbility:
		ok = new(httpcap.PutOK)
	case pdp.InfoAbility:
		ok = new(pdp.InfoOK)
	default:
		return false, fmt.Errorf("no result is known for ability %q", can)
	}
	return true, capabilities.ReadResult(out, ok)
}
