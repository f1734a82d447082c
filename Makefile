GO ?= go
GOLANGCI_LINT = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.1.6
HCLFMT = github.com/hashicorp/hcl/v2/cmd/hclfmt@v2.20.1

.PHONY: help build demo test race soak test-s3 test-aws interop mutants lint fuzz bench bench-code bench-peers ci
help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

build: ## build ./bin/w3filecoin
	$(GO) build -trimpath -o bin/w3filecoin ./cmd/w3filecoin

demo: ## the whole pipeline on one machine, with a simulated chain and provider
	$(GO) run ./cmd/w3filecoin demo

test: ## all tests that need Go alone
	$(GO) test ./...

REPLICATED ?= 500
# The suites of the roles without what takes minutes where each request goes over HTTP, or needs an index that is an hour late; whole networks.
SUITES = ./store/enginetest ./tasks ./standing ./claims ./compute ./uploads ./ingest ./dealer ./dealtracker ./aggregator ./storefront
NOT_ON_AWS = ^(TestBlameFaults|TestQuarantineFaults|TestCloseByAStaleIndex|TestReceiptComesBetween|TestLimitOfAStorefront|TestTinyPiecesFlood|TestChecksAreDrawn|TestOfferedByManyMore|TestWorkSpreads)$$
NETWORK_TESTS = ^Test(OfferToDeal|RolesAway|SameOfferTwice|TwoStorefrontsShareAnAggregator|WrongPieceIsRefusedAndHoldsUpNobody)$$

test-aws: ## the distributed engine, and all roles on it, with substitutes of DynamoDB, SQS and S3; needs Node 20
	.ci/aws/with $(GO) test -count=1 -parallel 16 -run '^(TestEngine|TestInitAndCheck|TestTransferServices|TestServerQueue|TestServicesRemoved)$$' ./store/aws ./store/aws/awstest ./ingest/sqs
	W3FILECOIN_TEST_ENGINE=services .ci/aws/with $(GO) test -count=1 -short -timeout 30m -skip '$(NOT_ON_AWS)' $(SUITES)
	W3FILECOIN_TEST_ENGINE=services .ci/aws/with $(GO) test -count=1 -short -timeout 30m -run '$(NETWORK_TESTS)' ./roles/rolestest
	.ci/aws/with $(GO) test -count=1 -run '^(TestCopyOnAWS|TestNothingOnDisk)$$' ./cmd/w3filecoin
	W3FILECOIN_PIECES=12 .ci/aws/with $(GO) test -count=1 -run '^TestRolesApart$$' ./cmd/w3filecoin
	W3FILECOIN_VERSITYGW=$(VERSITYGW) .ci/aws/with $(GO) test -count=1 -run '^TestServerIngest$$' ./cmd/w3filecoin
	W3FILECOIN_PIECES=$(REPLICATED) .ci/aws/with $(GO) test -count=1 -v -timeout 30m -parallel 1 -run '^(TestRollingRestart|TestReplicas)$$' ./cmd/w3filecoin

race: ## the same under the race detector
	$(GO) test -race ./...

soak: ## what takes too long for the gate: 10,000 simulated networks, 10,000 pieces through replicas that are killed, 100 crashes, a full disk, fuzzing, mutants; over an hour
	bash .ci/soak

VERSITYGW = $(CURDIR)/run/bin/versitygw
$(VERSITYGW):
	GOBIN=$(dir $(VERSITYGW)) GOFLAGS= $(GO) install github.com/versity/versitygw/cmd/versitygw@v1.8.0

.PHONY: versitygw
versitygw: $(VERSITYGW)

test-s3: $(VERSITYGW) ## sources, custody, validation, resolver and provider with a real S3-compatible server, installed into run/bin
	W3FILECOIN_VERSITYGW=$(VERSITYGW) $(GO) test -count=1 -timeout 5m -v -run '^(TestServer|TestServerObjects|TestBuckets)$$' ./source/s3 ./cmd/w3filecoin

interop: build ## with the published JavaScript packages, both ways; needs Node 20
	cd interop && npm ci --ignore-scripts --no-progress && npm test
	W3FILECOIN_INTEROP_NODE=1 $(GO) test -count=1 ./interop

mutants: ## break the system on purpose, one way at a time, and see which test notices; some minutes
	$(GO) run ./internal/mutants

lint: ## format, vet, static analysis
	@test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) run $(GOLANGCI_LINT) run ./...
	$(GO) run $(HCLFMT) -check -require-no-change deploy/terraform/*.tf >/dev/null

FUZZTIME ?= 30s
fuzz: ## every fuzz target, FUZZTIME each (default 30s)
	@grep -rlE '^func Fuzz' --include=*_test.go . | xargs -n1 dirname | sort -u | while read d; do \
	  for f in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$d/*_test.go | cut -c6-); do \
	    echo "fuzz $$d $$f $(FUZZTIME)"; $(GO) test $$d -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) || exit 1; done; done

bench: ## the built program under load, beside the published JavaScript storefront; needs Node 20, about 5 minutes
	cd interop && npm ci --ignore-scripts --no-progress
	$(GO) run ./internal/bench

bench-code: ## benchmarks beside the code, one short run
	$(GO) test -run '^$$' -bench . -benchtime 200ms ./...

BENCHFLAGS ?=
bench-peers: ## beside the other implementations, Go and JavaScript; half an hour, see BENCHFLAGS
	cd interop && npm ci --ignore-scripts --no-progress
	$(GO) run ./internal/benchpeers $(BENCHFLAGS)

ci: ## the whole gate
	bash .ci/run
