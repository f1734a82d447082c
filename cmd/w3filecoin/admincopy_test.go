package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/storacha/w3filecoin/broker"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/aws/awstest"
	"github.com/storacha/w3filecoin/store/sqlite"
	"github.com/storacha/w3filecoin/store/transfer"
)

// halfcopied is a command of scripts: halfcopied FROM TO ROLE. A copy of the role's state was interrupted.
func halfcopied(ts *testscript.TestScript, _ bool, args []string) {
	source, err := parsePlace("from", sqliteScheme+ts.MkAbs(args[0]))
	ts.Check(err)
	target, err := parsePlace("to", sqliteScheme+ts.MkAbs(args[1]))
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	from, err := source.open(ctx, args[2])
	ts.Check(err)
	to, err := target.open(ctx, args[2])
	ts.Check(err)
	_, err = transfer.Copy(ctx, from, to, transfer.Options{Now: time.Now, Say: func(step string) {
		if step == "rows" {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		ts.Fatalf("interrupted: %v", err)
	}
	ts.Check(errors.Join(from.Close(), to.Close()))
}

// TestCopyOnAWS: a database goes to AWS and back, and is what it was.
func TestCopyOnAWS(t *testing.T) {
	where := awstest.Services(t)
	if where == nil {
		t.Skip("W3FILECOIN_TEST_AWS does not say where DynamoDB, SQS and S3 are: make test-aws does")
	}
	dir := t.TempDir()
	engine, err := sqlite.Open(filepath.Join(dir, "first", dealerRole), sqlite.Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := bury(ctx, engine, "publish", "no broker", 3); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		c := store.Change{Row: store.Row{Key: store.Key{Partition: "p", Sort: fmt.Sprint(i)}, Value: []byte(fmt.Sprint(i)), Listing: store.Listing{Index: "i"}},
			Messages: []store.Message{{Queue: "poll", Body: []byte{byte(i)}}, {Queue: "publish", Body: []byte{byte(i)}, Due: time.Now().Add(24 * time.Hour)}},
			Blobs:    []store.Blob{store.RawBlob(bytes.Repeat([]byte{byte(i)}, 1+i*1500))}}
		if _, err := engine.Commit(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(store.PutBlob(ctx, engine, store.RawBlob(make([]byte, 300<<10))), engine.Close()); err != nil {
		t.Fatal(err)
	}
	// A document that an earlier version kept beside the database goes too.
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "first", offersName), 0o700),
		os.WriteFile(filepath.Join(dir, "first", offersName, documentKey), []byte(documentText), 0o600)); err != nil {
		t.Fatal(err)
	}
	first, last := sqliteScheme+filepath.Join(dir, "first"), sqliteScheme+filepath.Join(dir, "last")

	var out, errs strings.Builder
	if code := run(ctx, newApp(strings.NewReader(""), &out, &errs), []string{"admin", "copy", "--from", first, "--to", where.String()}); code != exitFailure {
		t.Errorf("to tables that are not there: exit code %d\n%s", code, &errs)
	}
	cli(t, "admin", "init", "--store", where.String(), "--role", dealerRole)
	there := cli(t, "admin", "copy", "--from", first, "--to", where.String(), "--json")
	back := cli(t, "admin", "copy", "--from", where.String(), "--to", last, "--json")
	if there != back || !strings.Contains(there, `"count": 22`) {
		t.Errorf("there\n%s\nand back\n%s", there, back)
	}
	if again := cli(t, "admin", "copy", "--from", first, "--to", sqliteScheme+filepath.Join(dir, "direct"), "--json"); again != back {
		t.Errorf("without AWS\n%s\nwith\n%s", again, back)
	}
	if engine, err = sqlite.Open(filepath.Join(dir, "last", dealerRole), sqlite.Options{Now: time.Now}); err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	documents, err := broker.OpenDocuments(broker.DocumentsConfig{Store: engine})
	if err != nil {
		t.Fatal(err)
	}
	answer := httptest.NewRecorder()
	documents.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/offers/"+documentKey, nil))
	if answer.Body.String() != documentText {
		t.Errorf("the document is %s", answer.Body)
	}
}

// An offer document, as it lies in the directory of an earlier version.
const (
	documentKey  = "2026-08-01T12:30:05.067Z_bafkzcibcaahsius2bus7uty4jwbehdzioqqdhd3udqmaqqgfmwkegawan7mvaiq.json"
	documentText = `{"aggregate":"bafkzcibcaahsius2bus7uty4jwbehdzioqqdhd3udqmaqqgfmwkegawan7mvaiq","pieces":[` +
		`"bafkzcibcbaclqmjihrn77x7qjo3m5zmdbpfuiqcwbcj76o5aocs6ewukzmzpkpq",` +
		`"bafkzcibccacs6xworhegwgr73wsnj2ngsic3lt4he72bnmekon35wvmn6ducmpy",` +
		`"bafkzcibdsqcammzcfucufyigeep4mxfoyjcau4da5of4gaihctejz55g5kz27fqh",` +
		`"bafkzcibceaddc2lvqyf4sg7ysvfettlrfm7bblbxhrcy6fmihjlzcq5kkaznkby",` +
		`"bafkzcibdtqgaorcvtcfyzyakvmrh5ajg22e2e3fh77h2vzqeyul3o5rbvbz73azn"],` +
		`"collection":"did:key:z6Mko9hTggMwjSTEaJaPUfE6tqcy2xvU6BnNq3e3o8qVBiyH","orderID":1785587405067}`
)

// TestEarlierDocuments: a dealer that starts beside documents of an earlier version serves them from then on, without them too; one that it cannot read it does not
// pass over.
func TestEarlierDocuments(t *testing.T) {
	data := t.TempDir()
	offers := filepath.Join(data, offersName)
	if err := errors.Join(os.Mkdir(offers, 0o700), os.WriteFile(filepath.Join(offers, documentKey), []byte(documentText), 0o600)); err != nil {
		t.Fatal(err)
	}
	cfg := defaultConfig()
	cfg.Data, cfg.Roles = data, []string{dealerRole}
	cfg.Dealer.Listen, cfg.Dealer.DealTracker = "127.0.0.1:0", Neighbour{DID: "did:web:tracker.example", URL: "http://127.0.0.1:1"}
	cfg.Dealer.Aggregators = []Registered{{DID: "did:web:aggregator.example"}}
	for _, again := range []bool{false, true} {
		n, err := build(cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		answer := httptest.NewRecorder()
		n.roles[dealerRole].handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/offers/"+documentKey, nil))
		if answer.Body.String() != documentText {
			t.Errorf("again: %t; the document is %s", again, answer.Body)
		}
		if err := errors.Join(n.close(), os.RemoveAll(offers)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(offers, 0o700), os.WriteFile(filepath.Join(offers, strings.Replace(documentKey, "2026", "2025", 1)), []byte("{}"), 0o600)); err != nil {
		t.Fatal(err)
	}
	// Its aggregate has a document already: this one was never served.
	n, err := build(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.close(), os.RemoveAll(filepath.Join(data, dealerRole))); err != nil {
		t.Fatal(err)
	}
	if n, err = build(cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("a document that is none: %v", err)
	}
	if n != nil {
		if err := n.close(); err != nil {
			t.Fatal(err)
		}
	}
}
