package main

import (
	"fmt"
	"strings"
)

// never is the edit that makes the condition of an if statement, "cond" or "init; cond", never true.
func never(file, clause string) edit {
	init, condition, ok := strings.Cut(clause, "; ")
	if ok {
		init += "; "
	} else {
		init, condition = "", clause
	}
	return edit{file, "if " + clause + " {", "if " + init + "false && (" + condition + ") {"}
}

// without is the edit that takes a part out.
func without(file, part string) edit { return edit{file, part, ""} }

// ignore is the edit that does not look at the error of a statement `if err := …; err != nil`.
func ignore(file, statement string) edit {
	return edit{file, "if " + statement + "; err != nil {", "if " + statement + "; false && err != nil {"}
}

// mutants returns all of them, by area.
func mutants() []mutant {
	var all []mutant
	for _, area := range [][]mutant{chains(), receipts(), ledgers(), validation(), aggregation(), dealing(), engines(), authority(), edges()} {
		all = append(all, area...)
	}
	return all
}

// chains: what a reader of a chain of receipts, who trusts nobody, does not look at.
func chains() []mutant {
	const file = "roles/client/chain.go"
	var all []mutant
	add := func(name, breaks string, edits ...edit) {
		all = append(all, mutant{"chain/" + name, breaks, edits, "./roles/client", "^TestVerify(Rejects|FailureRejects)$"})
	}
	for _, can := range []string{"filecoin/offer", "filecoin/submit", "compute/piececid", "piece/offer", "piece/accept", "aggregate/offer", "aggregate/accept",
		"filecoin/accept"} {
		add("receipt of "+can, "a tampered receipt of "+can+" is believed: signature, issuer, task",
			edit{file, "if err := capabilities.VerifyReceipt(v.ctx, r, t.UCAN, v.keys); err != nil {",
				fmt.Sprintf("if err := capabilities.VerifyReceipt(v.ctx, r, t.UCAN, v.keys); err != nil && t.Can() != %q {", can)})
		add("invocation of "+can, "an invocation of "+can+" that its issuer did not sign is believed",
			edit{file, "if err := t.Verify(key); err != nil {", fmt.Sprintf("if err := t.Verify(key); err != nil && can != %q {", can)})
	}
	add("offer: piece", "the storefront acknowledges another piece than was offered", without(file, "offered.Piece != offer.Piece || "))
	add("offer: forks", "the offer's receipt forks more than filecoin/submit", without(file, " || len(offerReceipt.Fork) != 1"))
	add("submit: task", "filecoin/submit is about another piece or content",
		without(file, "submit != (filecoin.Submit{Content: offer.Content, Piece: offer.Piece}) || "))
	add("accept: task", "filecoin/accept is about another piece or content", without(file, " || accept != (filecoin.Accept(submit))"))
	add("failure: submit", "an offer is taken for failed without a receipt of filecoin/submit that holds",
		edit{file, "err != nil && !errors.As(err, &failure) {", "false && err != nil && !errors.As(err, &failure) {"})
	add("submit: piece", "filecoin/submit succeeds with another piece", without(file, "submitted.Piece != offer.Piece || "))
	add("submit: validation", "filecoin/submit need not name a validation", without(file, " || len(submitReceipt.Fork) == 0"))
	add("validation: issuer", "somebody else's validation is taken", edit{file, "t.Issuer != storefront || !nb.Content", "!nb.Content"})
	add("validation: content", "the validation of another content is taken", without(file, "!nb.Content.Equals(offer.Content) || "))
	add("validation: piece", "the validation found another piece",
		edit{file, "(offer.Content) || ok.Piece != offer.Piece", "(offer.Content)"})
	add("piece/offer: issuer", "somebody else offers the piece to the aggregator", without(file, "pieceOfferTask.Issuer != storefront || "))
	add("piece/offer: piece", "another piece is offered to the aggregator", without(file, " || pieceOffer.Piece != offer.Piece"))
	add("piece/offer: result", "the aggregator acknowledges another piece", without(file, "pieceOffered.Piece != offer.Piece || "))
	add("piece/accept: task", "piece/accept is about another piece or group", without(file, " || pieceAccept != piececap.Accept(pieceOffer)"))
	add("piece/accept: piece", "the inclusion of another piece is proven", never(file, "included.Piece != offer.Piece"))
	add("piece/accept: inclusion", "the proof of inclusion in piece/accept is not checked", ignore(file, "err := included.Verify()"))
	add("aggregate/offer: issuer", "somebody else offers the aggregate", without(file, "aggregateOfferTask.Issuer != p.Aggregator || "))
	add("aggregate/offer: aggregate", "another aggregate is offered", without(file, " || aggregateOffer.Aggregate != p.Aggregate"))
	add("aggregate/offer: result", "the dealer acknowledges another aggregate", without(file, "aggregateOffered.Aggregate != p.Aggregate || "))
	add("aggregate/accept: task", "aggregate/accept is about another aggregate", without(file, " || aggregateAccept != aggregatecap.Accept(aggregateOffer)"))
	add("aggregate/accept: aggregate", "the deal is for another aggregate", never(file, "dealt.Aggregate != p.Aggregate"))
	add("filecoin/accept: piece", "filecoin/accept names another piece", without(file, "accepted.Piece != offer.Piece || "))
	add("filecoin/accept: aggregate", "filecoin/accept names another aggregate", without(file, " || accepted.Aggregate != p.Aggregate"))
	add("filecoin/accept: inclusion", "the proof of inclusion in filecoin/accept is not checked", ignore(file, "err := accepted.Verify()"))
	add("filecoin/accept: deal", "filecoin/accept names another deal than the dealer reported", never(file, "accepted.Aux != p.Deal"))
	add("ability", "a link leads to another kind of task", without(file, " || t.Can() != can"))
	add("own: issuer", "a role's own task is somebody else's", without(file, "t.Issuer != role || "))
	add("own: audience", "a role's own task is for somebody else", without(file, " || t.Audience != role"))
	add("own: resource", "a role's own task is on another resource", without(file, " || t.Resource() != role.String()"))
	add("failed link", "a link that failed counts as not there, instead of as a contradiction",
		edit{file, "if f := (*capabilities.Failure)(nil); errors.As(err, &f) {\n\t\treturn unproven(", "if f := (*capabilities.Failure)(nil); false && errors.As(err, &f) {\n\t\treturn unproven("})
	return all
}

// receipts: the one function by which every role believes receipts, the signature below it, and the proof of inclusion.
func receipts() []mutant {
	const file = "capabilities/capabilities.go"
	return []mutant{
		{"receipt/task", "a receipt of another task is believed", []edit{never(file, "!r.Ran.Equals(task.Link())")}, "./capabilities", "^TestVerifyReceipt$"},
		{"receipt/issuer", "a receipt that names another issuer is believed", []edit{
			never(file, "r.Issuer.Defined() && r.Issuer != task.Audience"), never("wire/receipt.go", "rc.Issuer.Defined() && rc.Issuer != v.DID()")},
			"./capabilities", "^TestVerifyReceipt$"},
		{"receipt/signature", "a receipt that nobody signed is believed", []edit{ignore(file, "err := r.Verify(v)")}, "./capabilities", "^TestVerifyReceipt$"},
		{"receipt/key", "the issuer that a receipt names is asked for the key, not the one who was asked for the task", []edit{
			{file, "v, err := keys.Verifier(ctx, task.Audience)", "v, err := keys.Verifier(ctx, r.Issuer)"},
			never(file, "r.Issuer.Defined() && r.Issuer != task.Audience")}, "./capabilities", "^TestVerifyReceipt$"},
		{"receipt/answer", "an agent believes an answer because it came over the connection that it asked",
			[]edit{{"roles/client/chain.go", "if err := capabilities.VerifyReceipt(ctx, r, task.UCAN, keys); err != nil {\n\t\treturn task, nil, err\n\t}", ""}},
			"./roles/rolestest", "^TestForgedReplies$"},
		{"receipt/bytes", "signatures of receipts are not verified at all",
			[]edit{without("wire/receipt.go", " || !v.Verify(rc.outcome, rc.Signature)")}, "./wire", "Receipt"},
		{"receipt/listed", "a receipt stands in a message under another task's name",
			[]edit{never("wire/message.go", "string(cbor.AppendCIDText(text[:0], rc.Ran.KeyString())) != string(task)")}, "./wire", "^TestMalformedMessage$"},
		{"inclusion/index", "a proof need not show the piece's entry in the index",
			[]edit{never("segment/proof.go", "indexed := proof.Index.root(piece.HashPair(&left, &right)); indexed != root")}, "./segment", "^TestVerify"},
		{"inclusion/place", "a proof may show an entry outside the index",
			[]edit{never("segment/proof.go", "at := proof.Index.Offset * EntrySize; at < ContentCapacity(dealSize) || ContentCapacity(dealSize) == 0")},
			"./segment", "^TestEntryOutsideTheIndex$"},
		{"inclusion/aggregate", "a proof leads to some aggregate",
			[]edit{never("segment/proof.go", "got != aggregate")}, "./segment", "^TestVerify"},
	}
}

// ledgers: how a role keeps its word, and whom it believes.
func ledgers() []mutant {
	const file = "tasks/tasks.go"
	var all []mutant
	add := func(name, breaks, run string, edits ...edit) {
		all = append(all, mutant{"tasks/" + name, breaks, edits, "./tasks", run})
	}
	add("replay", "an invocation that is repeated gets a new receipt", "^TestAcceptOnce$",
		edit{file, "if created {\n\t\treturn r, nil\n\t}", "if created || true {\n\t\treturn r, nil\n\t}"})
	add("overwrite", "the second acknowledgement overwrites the first", "^TestAcceptOnce$",
		edit{file, "created, err := l.records.Create(ctx, &rec, effects)\n\tif err != nil {\n\t\treturn nil, fmt.Errorf(\"acknowledging",
			"there, _ := l.records.Get(ctx, rec.Key)\n\trec.Version = there.Version\n\tcreated, err := true, l.records.Commit(ctx, &rec, effects)\n\tif err != nil {\n\t\treturn nil, fmt.Errorf(\"acknowledging"})
	add("unasked", "receipts are kept that nobody waits for", "^Test(Arrive|Conclude.*)$", edit{file, `if !rec.Exists() || rec.Value.Notify == "" {`, `if false {`})
	add("unverified", "what arrives is believed without a look at issuer and signature", "^Test(Arrive|Conclude.*)$",
		edit{file, "if err := capabilities.VerifyReceipt(ctx, r, task.UCAN, l.keys); err != nil {\n\t\t\treturn err\n\t\t}\n\t\tterminal, err", "terminal, err"})
	add("shape", "a receipt whose result has another shape is kept", "^TestArrive$",
		edit{file, "terminal, err := checkResult(task.Can(), r.Out)", "terminal, err := true, error(nil)"})
	add("passing", "a failure that may pass is kept for good", "^TestPassingFailure$", never(file, "!terminal"))
	add("second", "a second, different receipt replaces the first", "^TestDifferentReceiptIsEvidence$", edit{file, "if rec.Value.Concluded {\n\t\t\tfirst, err", "if false {\n\t\t\tfirst, err"})
	add("evidence", "a receipt with a false signature is kept as evidence against its issuer", "^TestDifferentReceiptIsEvidence$",
		edit{file, "return err\n\t}\n\tev := ", "_ = err\n\t}\n\tev := "})
	add("silence", "nobody is told that a receipt came", "^TestArrive$",
		edit{file, "store.NewQueue[Arrival](rec.Value.Notify).Send(fx, Arrival{r.Ran, rec.Value.Owner})", ""})
	add("answer", "the answer to a call is believed without a look", "^TestExecute$",
		edit{file, "if err := capabilities.VerifyReceipt(ctx, r, task.UCAN, l.keys); err != nil {\n\t\treturn nil, nil, err\n\t}", ""})
	add("answer shape", "the answer to a call may have any result", "^TestExecute$", ignore(file, "_, err := checkResult(task.Can(), r.Out)"))
	add("batch", "one bad receipt hurts the others of its batch", "^TestConclude$",
		edit{"tasks/conclude.go", "refused++\n", "return refused, capabilities.ErrInvalidReceipt\n"})
	add("lost delivery", "receipts count as delivered when the other side did not take them", "^TestCourier$",
		edit{"tasks/conclude.go", "if _, err := conn.Execute(ctx, m); err != nil {\n\t\t\treturn err\n\t\t}", "_, _ = conn.Execute(ctx, m)"})
	return all
}

// network are the tests that run whole networks of roles, with everything that can go wrong between them.
const network = "^Test(OfferToDeal|WrongPiece.*|ContentThatNeverComes|RolesAway|SameOfferTwice|TwoStorefronts.*|Simulation)$"

// validation: a piece is what its content gives, and nothing else is passed on.
func validation() []mutant {
	const (
		rolestest = "./roles/rolestest"
		validate  = "storefront/validate.go"
		events    = "storefront/events.go"
		service   = "storefront/service.go"
		computing = "compute/events.go"
		claims    = "compute/claims.go"
	)
	return []mutant{
		{"storefront/validation", "any piece is handed on, whatever its content is", []edit{never(validate, "v.Piece != p.Value.Piece")}, rolestest, network},
		{"storefront/transient", "content that is not there yet is refused for good", []edit{{validate,
			"return s.wait(ctx, p, validateQueue, s.Timing.ContentRetry, time.Hour, notStored)",
			`submit, err := s.ledger.Effect(ctx, p.Value.Offer, p.Value.Submit)
		if err != nil {
			return err
		}
		return s.refuse(ctx, p, submit, capabilities.Effects{}, Verdict{Piece: p.Value.Piece})`}}, rolestest, network},
		{"storefront/keeps failures", "a provider's failure to find content is kept as its answer for ever",
			[]edit{{"storefront/providers.go", "case r.Out.Error == nil:", "default:"}}, rolestest, network},
		{"storefront/gives up", "content that a provider did not find at one time is refused for good", []edit{{validate,
			"return s.unanswered(ctx, p, q)", "return s.refuse(ctx, p, submit, capabilities.Effects{}, Verdict{Piece: p.Value.Piece})"}}, "./storefront", "^TestProviderWithoutTheContent$"},
		{"storefront/never expires", "content that never comes is waited for without end",
			[]edit{{validate, "if errors.Is(err, ErrNoContent) {\n\t\tif s.Now()", "if errors.Is(err, ErrNoContent) {\n\t\tif false && s.Now()"}},
			rolestest, network},
		{"storefront/repeated", "a step that ended before it looked for a receipt does not look for it when it is repeated",
			[]edit{never(events, "err == nil && p.Value.State == Offered")}, "./storefront", "^TestReceiptComesBetween$"},
		{"storefront/never looked for", "a receipt that is here and was not followed is not followed by the ticks either",
			[]edit{{events, "if here, err = s.arrived(ctx, &listed); err != nil {", "if err != nil && !errors.Is(err, capabilities.ErrNoReceipt) {"}}, "./storefront", "^TestReceiptComesBetween$"},
		{"aggregator/repeated", "a step that ended before it looked for a receipt does not look for it when it is repeated",
			[]edit{never("aggregator/events.go", "agg.Value.State == Published")}, "./aggregator", "^TestReceiptComesBetween$"},
		{"aggregator/never looked for", "a receipt that is here and was not followed is not followed by timers either",
			[]edit{{"aggregator/events.go", "if here, err := s.arrived(ctx, &agg); err", "if here, err := false, error(nil); err"}}, "./aggregator", "^TestReceiptComesBetween$"},
		{"storefront/inclusion", "the aggregator's proof of inclusion is not looked at", []edit{{events, "return ok, ok.Verify()", "return ok, nil"}},
			"./storefront", "^TestInclusionIsChecked$"},
		{"storefront/inclusion of another", "the aggregator's proof may be of another piece", []edit{never(events, "ok.Piece != p.Piece")},
			"./storefront", "^TestInclusionIsChecked$"},
		{"storefront/inclusion elsewhere", "a receipt of another piece or group is taken for this one's",
			[]edit{never(events, "nb.Piece != p.Piece || nb.Group != p.Group")}, "./storefront", "^TestInclusionIsChecked$"},
		{"storefront/other aggregate", "the deal of another aggregate concludes an offer",
			[]edit{{"storefront/conclude.go", "case accepted.Aggregate != a.Value.Aggregate:", "case false:"}}, "./storefront", "^TestDealOfAnotherAggregate$"},
		{"storefront/not linked", "an aggregator's receipt need not link what it offers to a dealer", []edit{never(events, "!r.Join.Defined()")},
			"./storefront", "^TestInclusionIsChecked$"},
		{"storefront/size", "pieces that no aggregate can hold are accepted", []edit{never(service, "limit := s.Policy.MaxPiece; limit != 0 && nb.Piece.PaddedSize() > limit")},
			rolestest, "^TestPieceTooLarge$"},
		{"storefront/content", "content is accepted that cannot be validated", []edit{never(service, "!supported(nb.Content)")}, rolestest, "^TestUnsupportedContent$"},
		{"storefront/policy", "everybody may offer, whatever the operator says",
			[]edit{never(service, "s.Policy.MayOffer != nil && !s.Policy.MayOffer(inv.Resource())")}, "./storefront", "^TestPolicy$"},
		{"storefront/refused all the same", "an agent whose offers were proven wrong is served for ever",
			[]edit{never("storefront/admission.go", "first.Level == standing.Good"), {"storefront/admission.go", "if known.Level == standing.Refused {", "if false {"}},
			"./storefront", "^TestReputation$"},
		{"storefront/blame", "only the first who offered a wrong piece is blamed for it", []edit{{"storefront/admission.go",
			"for _, by := range others {\n\t\toffer, err", "for _, by := range others[:0] {\n\t\toffer, err"}}, "./storefront", "^TestBlame$"},
		{"storefront/replay", "somebody else's old invocations use up what an agent may offer", []edit{{"storefront/admission.go",
			"if earlier, err = s.ledger.Receipt(ctx, inv.Link()); !errors.Is(err, store.ErrNotFound) {", "if false {"}}, "./storefront", "^TestReplayTakesNothing$"},
		{"storefront/unchecked", "what a quorum agrees on is never computed by the arbiter",
			[]edit{{"storefront/trust.go", "first[0].piece == p.Value.Piece && !check", "first[0].piece == p.Value.Piece && (!check || true)"}}, "./storefront", "^TestQuorum$"},
		{"storefront/liars", "a provider that lied is asked again and again", []edit{{"storefront/trust.go",
			"if c.piece == computed.piece {", "if true {"}}, "./storefront", "^TestLiar$"},
		{"storefront/length", "a storage node's word is taken against the content's length",
			[]edit{without(validate, " && lengthFits(content.Length, said.piece)")}, "./storefront", "^TestPossession$"},
		{"aggregator/quarantine", "pieces that their storefront keeps apart share aggregates with its other ones",
			[]edit{{"aggregator/admission.go", "strings.HasSuffix(group, piececap.QuarantineSuffix)", "strings.HasSuffix(group, piececap.QuarantineSuffix+piececap.QuarantineSuffix)"}}, "./aggregator", "^TestQuarantineOfAGroup$"},
		{"aggregator/quarantine for ever", "pieces that are kept apart wait without end",
			[]edit{{"aggregator/quarantine.go", "if !apart || l.Plan", "if true || !apart || l.Plan"}}, "./aggregator", "^TestQuarantineEnds$"},
		{"aggregator/all end", "pieces that are not kept apart end too", []edit{{"aggregator/quarantine.go", "if !apart || l.Plan", "if apart && !apart || l.Plan"}},
			"./aggregator", "^TestQuarantineEnds$"},
		{"aggregator/ends in silence", "nobody is told that a piece has ended",
			[]edit{{"aggregator/quarantine.go", "s.courier.Enqueue(ctx, front,", `s.courier.Enqueue(ctx, front+"x",`}}, "./aggregator", "^TestQuarantineEnds$"},
		{"aggregator/ended stays listed", "an ended piece stays in the index", []edit{without("aggregator/quarantine.go", "\t\t\tr.Listing = store.Listing{}\n")},
			"./aggregator", "^TestQuarantineEnds$"},
		{"aggregator/forgets the ended", "a piece leaves the index before its storefront can be told that it has ended",
			[]edit{{"aggregator/quarantine.go", "p.Value.Plan, p.Value.Ended = noPlan, now", "p.Value.Plan, p.Value.Ended, p.Listing = noPlan, now, store.Listing{}"}},
			"./aggregator", "^TestQuarantineFaults$"},
		{"storefront/fails for all", "the end of a piece in quarantine is a failure of the pair", []edit{{events, "p.Value.enter(Expired, s.Now())", "p.Value.enter(Failed, s.Now())"}},
			"./storefront", "^TestEndedInQuarantine$"},
		{"storefront/in circles", "a piece whose chain has ended begins anew in that chain", []edit{without(events, " || p.Value.PieceOffer.Defined()")},
			"./storefront", "^TestEndedInQuarantine$"},
		{"aggregator/lost tick", "a lane whose tick was lost never closes again",
			[]edit{{"aggregator/close.go", "s.Now().Sub(time.UnixMilli(l.Value.Next)) < lost", "(s.Now().Sub(time.UnixMilli(l.Value.Next)) < lost || true)"}}, "./aggregator", "^TestLostTick$"},
		{"storefront/one long step", "all receipts that are missing are looked for in one message, however long that takes",
			[]edit{never(events, "s.Now().Sub(began) > sweepTime")}, "./storefront", "^TestSweepInSteps$"},
		{"storefront/deaf", "an expired piece stays so when the very same offer is made again", []edit{never(service, "err == nil && kept != r")},
			rolestest, network},
		{"compute/flipped byte", "bytes are taken for the content without a look at their hash",
			[]edit{never("compute/fetch.go", "string(digest.Digest) != string(found.SHA256[:])")}, "./compute", "^Test(PieceOfContent|AddressesInTurn|ContentThatComesLate|Claims)$"},
		{"compute/short", "bytes are taken for the content although some are missing", []edit{never("compute/fetch.go", "want >= 0 && found.Size != want"),
			never("compute/fetch.go", "string(digest.Digest) != string(found.SHA256[:])")}, "./compute", "^Test(PieceOfContent|AddressesInTurn|Claims)$"},
		{"compute/claims", "others than the invoker say where content lies", []edit{without(claims, " || claim.Issuer != inv.Issuer")}, "./compute", "Claims"},
		{"compute/forged claims", "claims that the invoker did not sign say where content lies", []edit{never(claims, "claim.Verify(key) != nil")}, "./compute", "Claims"},
		{"compute/old claims", "claims that have expired say where content lies",
			[]edit{never(claims, "claim.Expiration != nil && *claim.Expiration <= now.Unix() || claim.NotBefore > now.Unix()")}, "./compute", "Claims"},
		{"compute/transient", "content that was not found at one time is not found for ever", []edit{{"compute/service.go", "\treturn nil, answer\n}",
			`	if f := (*capabilities.Failure)(nil); errors.As(answer, &f) {
		r, err := capabilities.IssueFailure(s.Signer, inv.Link(), f, capabilities.Effects{})
		if err != nil {
			return nil, err
		}
		return s.ledger.Accept(ctx, inv.Task, r, capabilities.Effects{}, store.Listing{}, store.Effects{})
	}
	return nil, answer
}`}}, "./compute", "^TestContentThatComesLate$"},
		{"custody/flipped byte", "an upload is stored under the name of other content", []edit{never("source/dir.go", "got := cid.NewCidV1(content.Type(), sum); !got.Equals(content)")},
			"./source", "^Test(PutRefuses|UploadRefuses|Put)$"},
		{"custody/not durable", "an upload is acknowledged before it is on disk", []edit{{"source/dir.go", "if err := tmp.Sync(); err != nil {", "if err := error(nil); err != nil {"}},
			"./source", "^TestPutCrash$"},
		{"resolver/unvalidated", "storage providers are sent to content that was never validated",
			[]edit{{service, "case Validated, Offered, Aggregated, Dealt, Failed:", "default:"}}, "./storefront", "^TestContentOf$"},
	}
}

// aggregation: each piece is in one aggregate, which its pieces give.
func aggregation() []mutant {
	const (
		closing = "aggregator/close.go"
		stale   = "^TestCloseByAStaleIndex$"
	)
	return []mutant{
		{"aggregator/no claim", "a close takes its candidates without claiming them", []edit{
			{closing, "p.Value.Plan = name\n\t\t\tp.Listing = store.Listing{}\n\t\t\treturn nil", "_ = name\n\t\t\treturn store.ErrUnchanged"},
			{closing, "if p.Value.Plan == name {", "if name != \"\" {"}}, "./aggregator", stale},
		{"aggregator/unclaimed rows", "candidates enter the aggregate that another close has claimed", []edit{{closing, "if p.Value.Plan == name {", "if name != \"\" {"}},
			"./aggregator", stale},
		{"aggregator/steals", "a close claims what another one has", []edit{{closing, `if !p.Exists() || p.Value.Plan != "" {`, "if !p.Exists() {"}}, "./aggregator", stale},
		{"aggregator/stays listed", "a claimed piece stays in the index", []edit{{closing, "p.Value.Plan = name\n\t\t\tp.Listing = store.Listing{}", "p.Value.Plan = name"}},
			"./aggregator", stale},
		{"aggregator/loses", "pieces of a close that came to nothing wait no more", []edit{without(closing, "p.Listing = p.Value.listing()\n")}, "./aggregator", stale},
		{"aggregator/underfull", "an aggregate is built of too little content", []edit{never(closing, "content < minimum(plan.DealSize)")}, "./aggregator", stale},
		{"aggregator/strangers", "anybody may offer pieces", []edit{{"aggregator/service.go", "s.Storefronts(invoker)\n\tif !ok {", "s.Storefronts(invoker)\n\tif false && !ok {"}},
			"./aggregator", "^TestOfferRefusals$"},
		{"aggregator/groups", "a storefront may offer in another's group", []edit{never("aggregator/service.go", `nb.Group != invoker && !strings.HasPrefix(nb.Group, invoker+"/")`)},
			"./aggregator", "^TestOfferRefusals$"},
		{"aggregator/other deal", "the deal of another aggregate is passed on as this one's",
			[]edit{never("aggregator/events.go", "result == nil && accepted.Aggregate != agg.Value.Aggregate")}, "./aggregator", "^TestDealOfAnotherAggregate$"},
		{"segment/order", "the pieces of an aggregate leave gaps", []edit{{"segment/place.go", "cmp.Or(cmp.Compare(b.Height(), a.Height()), a.Compare(b))", "cmp.Or(a.Compare(b), cmp.Compare(b.Height(), a.Height()))"}},
			"./segment", "^TestSortDescending$"},
		{"segment/aligned", "pieces do not begin at multiples of their size", []edit{{"segment/place.go", "offset := (end + size - 1) &^ (size - 1)", "offset := end"}},
			"./segment", "^Test(AgainstOracle|GoldenAggregate)$"},
	}
}

// dealing: an aggregate is what its list gives, the deal is what the chain says, and providers check both.
func dealing() []mutant {
	const events = "dealtracker/events.go"
	return []mutant{
		{"dealer/no recomputation", "an aggregate is published that its list of pieces does not give", []edit{{"dealer/service.go", "failure != nil {\n\t\ts.Log", "false && failure != nil {\n\t\ts.Log"}},
			"./dealer", "^TestRefusals$"},
		{"dealer/other list", "the list may give another aggregate", []edit{never("dealer/policy.go", "tree.Link() != offer.Aggregate")}, "./dealer", "^TestRefusals$"},
		{"dealer/half empty", "an aggregate may be mostly empty", []edit{never("dealer/policy.go", "content := contentOf(pieces); content < size/2")}, "./dealer", "^TestRefusals$"},
		{"dealer/strangers", "anybody may offer aggregates", []edit{never("dealer/service.go", "!s.Aggregators(invoker)")}, "./dealer", "^TestRefusals$"},
		{"dealer/not active", "a deal that was only published counts as a success", []edit{{"dealer/policy.go", "case deal.StatusActive, \"\":", "case deal.StatusActive, deal.StatusPublished, \"\":"}},
			"./dealer", "^TestJudge$"},
		{"dealer/second thoughts", "the receipt of an aggregate changes with its deals", []edit{{"dealer/events.go",
			"func(a *store.Record[Aggregate], fx *store.Effects) error {\n\t\tif a.Value.State == Dealt {\n\t\t\treturn store.ErrUnchanged", "func(a *store.Record[Aggregate], fx *store.Effects) error {\n\t\tif false {\n\t\t\treturn store.ErrUnchanged"},
			{"dealer/events.go", "if a.Value.State == Dealt || a.Value.Polls > msg.Try {\n\t\treturn nil", "if false {\n\t\treturn nil"}},
			"./dealer", "^Test(TwoPollsAtOnce|Polling|ReplayChangesNothing)$"},
		{"broker/second document", "an aggregate that was offered twice has two documents", []edit{{"broker/documents.go", "d.rows.Get(ctx, documentKey(aggregate))\n\tif !errors", "d.rows.Get(ctx, documentKey(key))\n\tif !errors"}},
			"./broker", "^TestReplicas$"},
		{"broker/another's key", "a document is served under any key of its aggregate", []edit{{"broker/documents.go", "err == nil && rec.Value.Key != key", "false && rec.Value.Key != key"}}, "./broker", "^TestBadRequests$"},
		{"broker/adopts anything", "a file of an earlier version is taken for the document that it is named after", []edit{{"broker/files.go", "err == nil && means != key", "false && means != key"}}, "./broker", "^TestAdopt$"},
		{"dealtracker/cursor", "the cursor moves although what was read was not kept", []edit{{events, "if err := s.take(ctx, c.Final+1, to, true); err != nil {", "if err := s.take(ctx, c.Final+1, to, true); err != nil && false {"}},
			"./dealtracker", "^Test(FailuresOfTheSource|FaultsOfTheStore|Reading)$"},
		{"dealtracker/not final", "what may be reverted is not read again", []edit{{events, "from := max(c.Final, c.Seen-recheck) + 1", "from := max(c.Final, c.Seen) + 1"}},
			"./dealtracker", "^Test(Reorganisation|Reading)$"},
		{"provider/flipped byte", "a storage provider seals what it was sent without a look", []edit{
			{"devnet/provider.go", "if got != want {", "if got = want; false {"}}, "./devnet", "^TestRefusals$"},
		{"provider/other list", "a storage provider seals an aggregate that the pieces named do not give",
			[]edit{ignore("devnet/provider.go", "err := rebuild(aggregate, pieces)"), ignore("devnet/provider.go", "err := rebuild(aggregate, received)")},
			"./devnet", "^TestRefusals$"},
	}
}

// engines: a commit is all or nothing, at the version that was read, and durable; a message is delivered until it is acknowledged.
func engines() []mutant {
	var all []mutant
	memory := func(name, breaks string, edits ...edit) {
		all = append(all, mutant{"memory/" + name, breaks, edits, "./store/memory", "^TestEngine$"})
	}
	const m = "store/memory/memory.go"
	memory("drops a message", "one of the messages of a commit is lost", edit{m, "for _, m := range c.Messages {", "for _, m := range c.Messages[min(len(c.Messages), 1):] {"})
	memory("no condition", "a commit overwrites what changed since it was read",
		edit{m, "if before.Version != c.Row.Version {", "if c.Row.Version = before.Version; false {"})
	memory("loses a blob", "the blobs of a commit are lost", edit{m, "for _, b := range c.Blobs {", "for _, b := range c.Blobs[:0] {"})
	memory("half a commit", "the messages of a refused commit are sent",
		edit{m, "return 0, store.ErrConflict", "for _, m := range c.Messages {\n\t\t\te.enqueue(m, e.options.Now())\n\t\t}\n\t\treturn 0, store.ErrConflict"})
	memory("no lease", "a message is delivered to two at a time", edit{m, "e.move(m, now.Add(lease))", "e.move(m, now)"})
	memory("stale lease", "who lost a lease can still acknowledge", without(m, " || strconv.Itoa(m.attempt) != d.Lease"))
	memory("due times", "messages are delivered before they are due", edit{m, "due := m.Due\n", "due := now\n"})

	aws := func(name, breaks, run string, edits ...edit) {
		all = append(all, mutant{"aws/" + name, breaks, edits, "./store/aws", run})
	}
	const (
		awsRows, awsBlobs, awsMessages = "store/aws/rows.go", "store/aws/blobs.go", "store/aws/messages.go"
		awsOutbox, onDouble            = "store/aws/outbox.go", "^TestEngineOnDouble$"
	)
	aws("drops a message", "one of the messages of a commit is lost", onDouble,
		edit{awsRows, "for _, m := range c.Messages {", "for _, m := range c.Messages[min(len(c.Messages), 1):] {"})
	aws("no condition", "a commit overwrites what changed since it was read", onDouble,
		edit{"store/aws/item.go", "at := u.equals(attrVersion, number(version))", "at := u.exists(attrPartition)"})
	aws("loses a blob", "the blobs of a commit are lost", onDouble, edit{awsBlobs, "for _, b := range c.Blobs {", "for _, b := range c.Blobs[:0] {"})
	aws("no lease", "a message is delivered to two at a time", onDouble, edit{awsMessages, "VisibilityTimeout: visibility,\n\t\tMessage", "VisibilityTimeout: min(visibility, 1),\n\t\tMessage"})
	aws("stale lease", "who lost a lease can still acknowledge", "^TestLeaseEnds$", without(awsMessages, " || !now.Before(v.until)"))
	aws("due times", "messages are delivered before they are due", onDouble,
		edit{awsOutbox, "return max(0, seconds(v.Due.Sub(now)))", "return min(0, seconds(v.Due.Sub(now)))"})
	aws("forgets what was not sent", "a message that SQS did not take is removed from its row", "^Test(WriterGone|PartialBatches)$",
		without(awsOutbox, "\t\t\tleft = append(left, sending[i])\n\t\t\tcontinue\n"))
	aws("forgets timers", "a message that is due later is not looked for again", "^TestTimers$",
		edit{awsOutbox, "if len(left) == 0 {\n\t\tu.remove(attrShard)", "if len(left) >= 0 {\n\t\tu.remove(attrShard)"})
	aws("does not know itself", "a commit whose answer was lost is reported as somebody else's", "^TestAnswerLost$",
		edit{awsRows, "!bytes.Equal(bytesOf(it, attrToken), token)", "!bytes.Equal(nil, token)"})
	aws("loses what was not processed", "blobs that DynamoDB left out of a batch are lost", "^TestPartialBatches$",
		edit{awsBlobs, "if batch = left; len(batch) > 0 {", "if batch = nil; len(batch) > 0 {"})
	aws("relays too early", "messages are taken from a writer that is sending them", "^TestWriterGone$",
		edit{awsOutbox, "sendGrace = time.Minute", "sendGrace = time.Second"})
	aws("keeps deleted rows", "what is left of a deleted row stays for ever", "^TestDeletedRowWithMessages$",
		edit{awsOutbox, "if len(left) == 0 && numberOf(it, attrVersion) == 0 {", "if len(left) == 0 && numberOf(it, attrVersion) < 0 {"})

	const t = "store/transfer/transfer.go"
	transfer := func(name, breaks, run string, edits ...edit) {
		all = append(all, mutant{"transfer/" + name, breaks, edits, "./store/transfer", run})
	}
	transfer("drops messages", "messages are not carried", "^TestRoundTrip$",
		edit{t, "store.Effects{Messages: []store.Message{message}}", "store.Effects{}"})
	transfer("due times", "timers are due at once", "^TestRoundTrip$", edit{t, "message.Due = d.Due\n", "_ = d.Due\n"})
	transfer("sends twice", "markers are removed before the sides were compared, and an interrupted copy sends again", "^TestInterrupted$",
		edit{t, "c.o.Say(\"reading the target\")", "if err := c.removeMarkers(ctx); err != nil {\n\t\treturn Report{}, err\n\t}\n\tc.o.Say(\"reading the target\")"})
	transfer("trusts the target", "rows that the target has are not compared", "^TestNotices$",
		without(t, " || !bytes.Equal(there.Value, row.Value)"), without(t, "there.Version != 1 || "), edit{t, "case pair.got != pair.want:", "case false:"})
	transfer("over other data", "a target that is not empty is written to", "^TestRefuses$",
		edit{t, "case len(page.Rows) > 0:", "case false:"})
	transfer("no second look", "a source that changes is not noticed", "^TestNotices$", edit{t, "if now != rows {", "if false {"})

	const w = "store/sqlite/writer.go"
	sqlite := func(name, breaks, run string, edits ...edit) {
		all = append(all, mutant{"sqlite/" + name, breaks, edits, "./store/sqlite", run})
	}
	const suite = "^TestEngine$"
	sqlite("drops a message", "one of the messages of a commit is lost", suite,
		edit{w, "for _, m := range c.Messages {", "for _, m := range c.Messages[min(len(c.Messages), 1):] {"})
	sqlite("no condition", "a commit overwrites what changed since it was read", suite,
		edit{w, "value = ? WHERE partition = ? AND sort = ? AND version = ?`", "value = ? WHERE partition = ? AND sort = ? AND version >= min(?, 0)`"})
	sqlite("creates twice", "a row is created over one that is there", suite,
		edit{w, "INSERT INTO row (partition, sort, version, list, list_sort, value) VALUES (?, ?, 1, ?, ?, ?) ON CONFLICT DO NOTHING",
			"INSERT OR REPLACE INTO row (partition, sort, version, list, list_sort, value) VALUES (?, ?, 1, ?, ?, ?)"})
	sqlite("deletes what changed", "a row is deleted that changed since it was read", suite,
		edit{w, "DELETE FROM row WHERE partition = ? AND sort = ? AND version = ?", "DELETE FROM row WHERE partition = ? AND sort = ? AND version >= min(?, 0)"})
	sqlite("loses a blob", "the blobs of a commit are lost", suite, edit{w, "for _, b := range c.Blobs {", "for _, b := range c.Blobs[:0] {"})
	sqlite("half a commit", "the messages of a refused commit are sent", suite,
		edit{w, "\tif n == 0 {\n\t\treturn store.ErrConflict\n\t}\n\tnow := w.options.Now()", "\tnow := w.options.Now()"},
		edit{w, "\t\tif err := (putBlob{b}).apply(w); err != nil {\n\t\t\treturn err\n\t\t}\n\t}\n\treturn nil\n}", "\t\tif err := (putBlob{b}).apply(w); err != nil {\n\t\t\treturn err\n\t\t}\n\t}\n\tif n == 0 {\n\t\treturn store.ErrConflict\n\t}\n\treturn nil\n}"})
	sqlite("no lease", "a message is delivered to two at a time", suite, edit{w, "until := now.Add(c.lease).UnixNano()", "until := now.UnixNano()"})
	sqlite("stale lease", "who lost a lease can still acknowledge", suite,
		edit{w, "DELETE FROM message WHERE id = ? AND attempt = ? AND leased = 1", "DELETE FROM message WHERE id = ? AND attempt >= min(?, 0)"})
	sqlite("due times", "messages are delivered before they are due", suite, edit{w, "if m.Due.After(now) {\n\t\t\tvisible = m.Due\n\t\t}", ""})
	sqlite("one for all", "a change that fails takes those with it that share its transaction", "^TestOneBatchManyFates$",
		edit{w, "if err != nil && len(batch) > 1 {", "if err != nil && len(batch) > 1 {\n\t\tfor _, r := range batch {\n\t\t\tr.result = err\n\t\t}\n\t} else if false {"})
	sqlite("answers early", "a commit is answered before it is durable", "^Test(Kill9|WriteErrors|FullDatabase|OneBatchManyFates)$",
		edit{w, "if _, err := w.exec(w.commitTransaction); err != nil {\n\t\tw.rollback()\n\t\treturn fmt.Errorf(\"committing transaction: %w\", err)", "if _, err := w.exec(w.commitTransaction); err != nil {\n\t\tw.rollback()\n\t\treturn nil"})
	sqlite("no fsync", "the log is not fsynced at each commit", "^TestPragmasAreChecked$",
		edit{"store/sqlite/sqlite.go", `{"synchronous", "FULL", "2"}`, `{"synchronous", "OFF", "0"}`})
	sqlite("forgets kinds", "rows of a kind that an earlier process wrote are not found", "^TestRowsOfAllKinds$",
		edit{w, "if err := w.kinds.read(ctx, w.conn); err != nil {", "if err := ctx.Err(); err != nil {"})
	sqlite("blob without fsync", "a blob has its name before its bytes are on disk", "^TestBlobFilesSurvivePowerLoss$",
		edit{"store/sqlite/blobdir.go", "return f.Sync()\n", "return nil\n"})
	sqlite("blob without a name", "a blob's name may be gone after a power failure", "^TestBlobFilesSurvivePowerLoss$",
		edit{"store/sqlite/blobdir.go", "return errors.Join(err, b.discard(temp))\n\t}\n\treturn b.dir.syncDir()", "return errors.Join(err, b.discard(temp))\n\t}\n\treturn nil"})

	const q = "store/queue.go"
	all = append(all, []mutant{
		{"queue/no dead letter", "a message that fails to the end is gone", []edit{{q, "created, err := c.dead.Create(ctx, &rec, Effects{})", "created, err := true, error(nil)"}}, "./store", "Dead|Bur"},
		{"queue/gone first", "a message is acknowledged although its dead letter could not be written",
			[]edit{{q, "return fmt.Errorf(\"writing dead letter: %w\", err)", "return nil"}}, "./store", "Dead|Bur"},
		{"queue/for ever", "a message that kills the process is delivered for ever", []edit{never(q, "d.Attempt > c.o.Attempts")}, "./store", "Kills"},
		{"queue/panic", "a handler that panics ends the process", []edit{never(q, "r := recover(); r != nil")}, "./store", "Panic"},
		{"queue/lost lease", "a handler goes on with work that is somebody else's by now", []edit{{q, "lose(ErrLeaseLost)\n", ""}}, "./store", "Lease"},
		{"dead/retry keeps", "a dead letter that is retried stays", []edit{{"store/dead.go", "fx.Delete = true", "fx.Delete = false"}}, "./store", "RetryAndDrop"},
		{"blob/unverified", "bytes that are not what their CID names are read", []edit{{"store/blobs.go", "if err == nil {\n\t\terr = verify(c, b)", "if false {\n\t\terr = verify(c, b)"}},
			"./store", "^TestReadBlob$"},
	}...)
	return all
}

// authority: who may invoke what.
func authority() []mutant {
	const (
		file   = "roles/authority.go"
		covers = "capabilities/covers.go"
	)
	var all []mutant
	add := func(name, breaks string, edits ...edit) {
		all = append(all, mutant{"authority/" + name, breaks, edits, "./roles", "^TestAuthorize"})
	}
	add("audience", "an invocation for another service is executed", never(file, "u.Audience != a.Self && !slices.Contains(a.Aliases, u.Audience)"))
	add("expired", "an invocation that has expired is executed", never(file, `reason := outOfTime(u, now); reason != ""`))
	add("expired proof", "a delegation that has expired gives authority", edit{file, "t.UCAN, t.unfit = u, outOfTime(u, s.now)", `t.UCAN, t.unfit = u, ""`})
	add("not before", "what is not valid yet is valid", never(file, "u.NotBefore > now"))
	add("signature", "an invocation that nobody signed is executed", never(file, "err := u.Verify(v); err != nil"))
	add("signature of a proof", "a delegation that nobody signed gives authority",
		edit{file, "if p.voucher == nil {\n\t\tif reason", "if false {\n\t\tif reason"})
	add("revoked", "an invocation that was revoked is executed",
		edit{file, "} else if revoked {\n\t\treturn capabilities.Fail", "} else if false && revoked {\n\t\treturn capabilities.Fail"})
	add("revoked proof", "a delegation that was revoked gives authority", edit{file, "if revoked {\n\t\ts.note(\"proof", "if false && revoked {\n\t\ts.note(\"proof"})
	add("revoked session", "a session that was revoked is honoured", edit{file, "return err == nil && !revoked, err", "return err == nil, err"})
	add("audience of a proof", "a delegation gives authority to others than it was made for", never(file, "p.Audience != p.citer.Issuer"))
	add("owner", "a chain need not begin at the owner of the resource", edit{file, "case t.Issuer.String() == s.claim.With:", "case true:"})
	add("attestors", "anybody's sessions are honoured", edit{file, "return d == a.Self || slices.Contains(a.Attestors, d)", "return true"})
	add("session of another", "a session vouches for any proof", edit{file, "for _, v := range p.citer.vouchers[p.Link()] {",
		"var any []*token\n\t\tfor _, v := range p.citer.vouchers {\n\t\t\tany = append(any, v...)\n\t\t}\n\t\tfor _, v := range any {"})
	add("depth", "a chain of proofs may have any length", edit{file, "if at.depth == maxDepth {", "if false {"})
	add("count", "a message may have any number of proofs", edit{file, "if len(s.tokens) == maxProofs {", "if false {"})
	add("second judge", "nobody looks at a chain a second time", edit{file, "if err := s.judge(ctx, last); err != nil {", "if err := error(nil); err != nil {"})
	cover := func(name, breaks string, edits ...edit) {
		all = append(all, mutant{"authority/" + name, breaks, edits, "./capabilities", "^TestCovers"})
	}
	cover("ability", "a delegation gives authority for other abilities", never(covers, "!abilityCovers(delegated.Can, claimed.Can)"))
	cover("resource", "a delegation gives authority over other resources", never(covers, `delegated.With != claimed.With && delegated.With != "ucan:*"`))
	cover("caveats", "what a delegation fixes need not be repeated", never(covers, "!bytes.Equal(got.find(key), value)"))
	cover("namespace", "a delegation of a/* covers ab/c", edit{covers, `strings.HasPrefix(claimed, namespace+"/")`, "strings.HasPrefix(claimed, namespace)"})

	const revocations = "roles/revocations.go"
	all = append(all,
		mutant{"revocation/anybody", "anybody may revoke anything", []edit{{revocations, "if at.Issuer.String() == revoker || at.Audience.String() == revoker {", "if true {"}},
			"./roles", "^TestRevoke"},
		mutant{"revocation/forged", "whoever makes up a delegation of somebody's may revoke it", []edit{{revocations, "if u.Verify(v) != nil {", "if u.Verify(v) != nil && false {"}}, "./roles", "^TestRevoke"},
		mutant{"revocation/forgotten", "nothing is ever revoked", []edit{{revocations, "return err == nil, err\n", "return false, err\n"}}, "./roles", "^TestRevoke"},
		mutant{"keys/domain", "did:web keys of any domain are looked up", []edit{{"roles/keys.go", "if domain == allowed || glob", "if true || domain == allowed || glob"}}, "./roles", "^TestKeys"},
		mutant{"keys/private", "did:web keys are looked up in private networks", []edit{{"roles/keys.go", "if isPublic(addr) ||", "if true || isPublic(addr) ||"}}, "./roles", "^TestKeys|^TestPublic"},
		mutant{"keys/document", "the document of another DID is taken", []edit{never("roles/keys.go", "d.ID != did.String()")}, "./roles", "^TestKey"})
	return all
}

// edges: nothing that comes in ends the process, and all of it is bounded.
func edges() []mutant {
	const (
		http    = "roles/http.go"
		server  = "roles/server.go"
		hostile = "./roles/rolestest"
	)
	return []mutant{
		{"wire/hash", "a block need not have the hash of its CID", []edit{{"wire/car.go", "ok = bytes.Equal(sum[:], digest)", "ok = sum != [32]byte{} || len(digest) > 0"}}, "./wire", "^TestMalformedCAR$"},
		{"wire/identity", "a block need not be what its identity CID says", []edit{{"wire/car.go", "ok = bytes.Equal(data, digest)", "ok = true"}}, "./wire", "^Test(MalformedCAR|CAR)$"},
		{"wire/block size", "a block may have any size", []edit{never("wire/car.go", "len(data) > maxSize")}, "./wire", "^TestLimits$"},
		{"wire/blocks", "a message may have any number of blocks", []edit{{"wire/car.go", "if n == limits.Blocks {", "if false {"}}, "./wire", "^TestLimits$"},
		{"wire/invocations", "a message may have any number of invocations", []edit{never("wire/message.go", "n > limits.Invocations")}, "./wire", "^TestLimits$"},
		{"wire/receipts", "a message may have any number of receipts", []edit{never("wire/message.go", "n > limits.Receipts")}, "./wire", "^TestLimits$"},
		{"wire/proofs", "an invocation may have any number of proofs", []edit{never("wire/message.go", "len(heights) == limits.Proofs")}, "./wire", "^TestLimits$"},
		{"wire/depth", "proofs may follow one another without end", []edit{never("wire/message.go", "depth+height-1 > limits.ProofDepth")}, "./wire", "^TestLimits$"},
		{"wire/signature of a UCAN", "signatures of UCANs are not verified", []edit{{"wire/key.go", "func (v Verifier) Verify(payload []byte, sig Signature) bool {", "func (v Verifier) Verify(payload []byte, sig Signature) bool {\n\tif true {\n\t\treturn true\n\t}"}},
			"./wire", "^Test(Signature|TamperedUCAN)$"},
		{"server/panic", "a method that panics ends the process", []edit{never(server, "p := recover(); p != nil")}, hostile, "^TestFaultsInside$"},
		{"server/replay", "an acknowledged invocation that is repeated after it has expired gets no receipt", []edit{never(server, "kept, found := s.concluded(ctx, u); found")},
			hostile, "^TestAuthorisation$"},
		{"server/not asked", "nobody asks who may invoke", []edit{ignore(server, "err := s.Authority.Authorize(ctx, m, u)")}, hostile, "^TestAuthorisation$"},
		{"server/signs faults", "a fault of the role's own is signed as the task's failure", []edit{{server, "if err != nil && unavailable == nil {", "if err != nil && unavailable == nil {\n\t\tr, _ = capabilities.IssueFailure(s.Signer, u.Link(), capabilities.Fail(\"Fault\", \"%v\", err), capabilities.Effects{})\n\t\treturn r, nil\n\t}\n\tif false {"}},
			hostile, "^TestFaultsInside$"},
		{"http/body", "a body may have any size", []edit{{http, "http.MaxBytesReader(w, r.Body, h.MaxBody)", "r.Body"}, never(http, "r.ContentLength > h.MaxBody")},
			hostile, "^TestBodyTooLarge$"},
		{"http/decoding", "any number of large bodies is decoded at a time", []edit{{http, "if size > smallBody {", "if false {"}}, hostile, "^TestSlowBodies$"},
		{"fetch/private", "content is fetched from private networks", []edit{{"source/address.go", "if public(addr) {", "if true || public(addr) {"}}, "./source", "^Test(FetchForbidden|Networks|FetchRebinding)$"},
		{"fetch/redirects", "redirects are followed without end", []edit{{"source/http.go", "if err == nil && hop == maxRedirects {", "if err == nil && hop == 100 {"}}, "./source", "^TestFetchRedirects$"},
		{"fetch/size", "content of any size is fetched", []edit{never("source/http.go", "resp.ContentLength > h.cfg.MaxBytes-off")}, "./source", "^TestFetchBadResponses$"},
		{"chain/storage node: issuer", "the word of a storage node that somebody else asked for is taken",
			[]edit{{"roles/client/chain.go", "t.Issuer != storefront || !bytes.Equal", "!bytes.Equal"}}, "./roles/client", "^TestValidators$"},
		{"chain/storage node: content", "the word of a storage node about another content is taken",
			[]edit{{"roles/client/chain.go", "!bytes.Equal(nb.Blob, offer.Content.Hash())", "len(bytes.TrimSpace(nil)) > 0"}}, "./roles/client", "^TestValidators$"},
		{"chain/storage node: piece", "the storage node named another piece",
			[]edit{{"roles/client/chain.go", "offer.Content.Hash()) || ok.Piece != offer.Piece", "offer.Content.Hash())"}}, "./roles/client", "^TestValidators$"},
		{"upload/token", "anybody may upload", []edit{{"source/upload.go", "return t, v.Verify(t.payload(), wire.NewSignature(wire.SigEdDSA, sig))",
			"return t, v.Verify(t.payload(), wire.NewSignature(wire.SigEdDSA, sig)) || true"}}, "./source", "^TestUploadRefuses$"},
		{"fetch/resume", "a broken download goes on with whatever bytes come", []edit{{"source/http.go", "resp.StatusCode != http.StatusPartialContent || resp.ContentLength != b.total-at ||", "false &&"}}, "./source", "^TestFetchResumes$"},
		{"import/length", "content of any length is copied into custody", []edit{never("source/sources.go", "other = fits(length); other != nil")}, "./source", "^TestImport$"},
		{"import/lies", "a source that has other bytes is asked by everybody for ever", []edit{never("source/guard.go", "now.Before(h.until)")}, "./source", "^Test(ImportRests|Health)$"},
		{"bucket/parts", "what was sent in parts gets its name whatever it is", []edit{{"source/s3/write.go", "if err := source.CopyVerified(ctx, u, r, content, maxBytes); err != nil {", "if err := source.CopyVerified(ctx, u, r, content, maxBytes); err != nil && !errors.Is(err, source.ErrMismatch) {"}}, "./source/s3", "^TestFake$"},
		{"bucket/impatient", "a bucket that fails for a moment is given up",
			[]edit{{"source/s3/bucket.go", "o.MaxAttempts, o.MaxBackoff = maxAttempts, maxRetryPause", "o.MaxAttempts, o.MaxBackoff = maxAttempts/2, maxRetryPause"}},
			"./source/s3", "^TestFailsForAMoment$"},
		{"bucket/changed", "a download from a bucket goes on with another object", []edit{never("source/s3/read.go", "out.ContentLength == nil || *out.ContentLength != r.object.length-r.off")}, "./source/s3", "^TestReadBreaks$"},
		{"bucket/vouched", "a bucket vouches for what somebody put there otherwise", []edit{never("source/s3/presign.go", "aws.ToString(out.ChecksumSHA256) != checksum && out.Metadata[verifiedKey] != checksum")}, "./source/s3", "^TestFake$"},
		{"source/another part", "bytes are taken for the part that was asked for, whatever their source says they are",
			[]edit{{"source/http.go", "whole != (off == 0) ||", "false && whole != (off == 0) ||"}}, "./source", "^TestFetchFrom$"},
		{"resolver/aggregate", "an aggregate is served by pieces that do not make it", []edit{never("resolver/aggregate.go", "a.Link() != link")}, "./resolver", "^TestAggregateRefuses$"},
		{"upload/word", "whoever says that a blob was delivered is believed", []edit{{"uploads/events.go", "if err == nil && stored.Size == nb.Blob.Size {",
			"if err == nil || errors.Is(err, ErrNoBlob) {"}}, "./uploads", "^TestNeverCame$"},
		{"upload/many times over", "one address takes room for its content as often as somebody asks", []edit{never("source/upload.go", "h.underWay[hash] == uploadsOfOne")},
			"./source", "^TestUploadBusyContent$"},
		{"upload/unlimited", "whoever may upload may fill the disk", []edit{{"uploads/admission.go", "if limits == (standing.Limits{}) {", "if true {"}}, "./uploads", "^TestLimits$"},
		{"upload/larger", "a blob that was charged with a byte gets an address for any size", []edit{without("uploads/admission.go", "charged.Value.Size == b.Size && ")},
			"./uploads", "^TestAddedAgain$"},
		{"claims/revoked", "claims are shown after they were revoked", []edit{{"claims/claims.go", "if err != nil || revoked {", "if err != nil || revoked && false {"}},
			"./claims", "^TestProofsTravel$"},
		{"ingest/name", "an object is offered by the name in its key, whatever its bytes are", []edit{never("ingest/ingest.go", "string(named.Hash()) != string(hash)")}, "./ingest", "^TestIngestPoison$"},
		{"ingest/early", "a message of events is done with although an offer failed", []edit{{"ingest/ingest.go", "failed = errors.Join(failed, err)\n\t\t\tcontinue", "continue"}}, "./ingest", "^TestIngestFaults$"},
		{"ingest/custody", "objects are offered that the storefront cannot find", []edit{{"ingest/ingest.go", "return content, found.Piece, i.keep(ctx, b, e, o, content)", "return content, found.Piece, nil"}}, "./ingest", "^TestIngest(Poison)?$"},
		{"backfill/torn", "what a crash left at the end of a backfill's state is taken for a line", []edit{never("cmd/w3filecoin/backfillstate.go", "_, err := dec.Token(); err != io.EOF")}, "./cmd/w3filecoin", "^TestBackfillStateTorn$"},
		{"serve/key of its own", "each process on a shared store is somebody else", []edit{{"cmd/w3filecoin/config.go", "ours && c.Store != \"\"", "ours && false"}}, "./cmd/w3filecoin", "^TestNoKeyOfItsOwn$"},
		{"uploads/left behind", "what was uploaded before there was a store is not read any more", []edit{{"cmd/w3filecoin/uploads.go", "return append(places, earlier), nil", "return places, nil"}},
			"./cmd/w3filecoin", "^TestEarlierUploads$"},
		{"uploads/carried blindly", "content is carried to another place that does not have the bytes that it names", []edit{{"cmd/w3filecoin/copyuploads.go", "there, err = to.Verified(ctx, content)\n\t}", "there, err = length, nil\n\t}"},
			{"source/dir.go", "if err := CopyVerified(ctx, tmp, r, content, maxBytes); err != nil {", "if _, err := io.Copy(tmp, r); err != nil {"}}, "./cmd/w3filecoin", "^TestScripts$/^copy$"},
		{"admin/token", "anybody on the machine may drop dead letters", []edit{never("cmd/w3filecoin/adminhttp.go", "subtle.ConstantTimeCompare(want[:], got[:]) != 1")}, "./cmd/w3filecoin", "^TestAdminIsClosed$"},
	}
}
