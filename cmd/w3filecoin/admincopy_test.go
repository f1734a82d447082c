package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/storacha/w3filecoin/store"
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
	where := services(t)
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
	first, last := sqliteScheme+filepath.Join(dir, "first"), sqliteScheme+filepath.Join(dir, "last")

	var out, errs strings.Builder
	if code := run(ctx, newApp(strings.NewReader(""), &out, &errs), []string{"admin", "copy", "--from", first, "--to", where.String()}); code != exitFailure {
		t.Errorf("to tables that are not there: exit code %d\n%s", code, &errs)
	}
	cli(t, "admin", "init", "--store", where.String(), "--role", dealerRole)
	there := cli(t, "admin", "copy", "--from", first, "--to", where.String(), "--json")
	back := cli(t, "admin", "copy", "--from", where.String(), "--to", last, "--json")
	if there != back || !strings.Contains(there, `"count": 21`) {
		t.Errorf("there\n%s\nand back\n%s", there, back)
	}
	if again := cli(t, "admin", "copy", "--from", first, "--to", sqliteScheme+filepath.Join(dir, "direct"), "--json"); again != back {
		t.Errorf("without AWS\n%s\nwith\n%s", again, back)
	}
}
