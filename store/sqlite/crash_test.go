package sqlite_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/sqlite"
)

const crashDirVar = "SQLITE_CRASH_DIR"

// The process that is killed: it commits under load and says what was acknowledged, a line each.
func TestCrashingProcess(t *testing.T) {
	dir := os.Getenv(crashDirVar)
	if dir == "" {
		t.Skip("run by TestKill9")
	}
	e, err := sqlite.Open(dir, sqlite.Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	run := strconv.Itoa(os.Getpid())
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", args...) // one write each: a line is there or not
	}
	var wg sync.WaitGroup
	for g := range committers {
		wg.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%s-%d-%d", run, g, i)
				c := crashChange(id)
				if _, err := e.Commit(ctx, c); err != nil {
					panic(err)
				}
				say("row %s", id)
				if deletable(id) {
					c = store.Change{Row: store.Row{Key: c.Row.Key, Version: 1}, Delete: true}
					if _, err := e.Commit(ctx, c); err != nil {
						panic(err)
					}
					say("deleted %s", id)
				}
				if i%20 == 7 {
					if err := store.PutBlob(ctx, e, largeBlob(id)); err != nil {
						panic(err)
					}
					say("blob %s", id)
				}
			}
		})
	}
	for range consumers {
		wg.Go(func() {
			for {
				ds, err := e.Receive(ctx, "q", receiveAtOnce, time.Hour)
				if err != nil {
					panic(err)
				}
				for _, d := range ds {
					if err := e.Ack(ctx, d); err != nil {
						panic(err)
					}
					say("acked %s", d.Body)
				}
			}
		})
	}
	wg.Wait()
}

// What the process does at once.
const (
	committers    = 16
	consumers     = 2
	receiveAtOnce = 1
)

// deletable tells the rows that go again.
func deletable(id string) bool { return strings.HasSuffix(id, "3") }

func crashChange(id string) store.Change {
	return store.Change{
		Row: store.Row{
			Key:     store.Key{Partition: "p", Sort: id},
			Value:   []byte("value of " + id),
			Listing: store.Listing{Index: "x", Sort: id},
		},
		Messages: []store.Message{{Queue: "q", Body: []byte(id)}},
		Blobs:    []store.Blob{store.RawBlob([]byte("blob of " + id))},
	}
}

func largeBlob(id string) store.Blob { return store.RawBlob(bytes.Repeat([]byte(id), 10<<10)) }

// TestKill9 kills a process under load, several times over the same directory. Whatever was acknowledged is there, and
// commits are there with all of their parts.
func TestKill9(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(9, 9))
	rows, deleted, blobs, acked := make(map[string]bool), make(map[string]bool), make(map[string]bool), make(map[string]bool)
	for round := range 3 {
		killAfter(t, dir, 300+r.IntN(1500), func(what, id string) {
			map[string]map[string]bool{"row": rows, "deleted": deleted, "blob": blobs, "acked": acked}[what][id] = true
		})
		if len(rows) == 0 || len(acked) == 0 || len(blobs) == 0 || len(deleted) == 0 {
			t.Fatalf("round %d: %d rows, %d acknowledged messages, %d large blobs, %d deletions", round, len(rows), len(acked), len(blobs), len(deleted))
		}

		// All leases have ended by this clock, and it stands still.
		later := time.Now().Add(time.Duration(round+1) * 24 * time.Hour)
		e, err := sqlite.Open(dir, sqlite.Options{Now: func() time.Time { return later }})
		if err != nil {
			t.Fatal(err)
		}
		there := make(map[string]bool)
		for cursor := ""; ; {
			page, err := e.Query(ctx, "p", "", cursor, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range page.Rows {
				there[row.Sort] = true
			}
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		listed := make(map[string]bool)
		for cursor := ""; ; {
			page, err := e.Scan(ctx, "x", "", cursor, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range page.Rows {
				listed[row.Sort] = true
			}
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		waiting := make(map[string]bool)
		for {
			ds, err := e.Receive(ctx, "q", 1000, time.Nanosecond)
			if err != nil {
				t.Fatal(err)
			}
			if len(ds) == 0 {
				break
			}
			for _, d := range ds {
				waiting[string(d.Body)] = true
			}
		}
		for id := range there {
			rows[id] = true // acknowledged or not, it has to be whole from now on
		}
		var missingRows, missingMessages []string
		for id := range rows {
			// A process may be killed between a deletion, or an acknowledgement, and saying so: that many at most are missing.
			if !there[id] && !deleted[id] {
				missingRows = append(missingRows, id)
			}
			if !waiting[id] && !acked[id] {
				missingMessages = append(missingMessages, id)
			}
		}
		for _, id := range missingRows {
			if !deletable(id) {
				t.Errorf("row %s was acknowledged and is gone", id)
			}
			deleted[id] = true
		}
		if len(missingRows) > committers {
			t.Errorf("%d rows are gone, %s for one", len(missingRows), missingRows[0])
		}
		if len(missingMessages) > consumers*receiveAtOnce {
			t.Errorf("%d messages were committed and are gone, %s for one", len(missingMessages), missingMessages[0])
		}
		for _, id := range missingMessages {
			acked[id] = true
		}
		for id := range there {
			c := crashChange(id)
			if row, err := e.Get(ctx, c.Row.Key); err != nil || !bytes.Equal(row.Value, c.Row.Value) || !listed[id] {
				t.Errorf("row %s: %q, %v, listed: %v", id, row.Value, err, listed[id])
			}
			if b, err := store.ReadBlob(ctx, e, c.Blobs[0].CID, 1<<10); err != nil || !bytes.Equal(b, c.Blobs[0].Bytes) {
				t.Errorf("blob of row %s: %q, %v", id, b, err)
			}
		}
		for id := range deleted {
			if there[id] {
				t.Errorf("row %s was deleted and is there", id)
			}
		}
		for id := range acked {
			if waiting[id] {
				t.Errorf("message %s was acknowledged and is there", id)
			}
		}
		for id := range blobs {
			b := largeBlob(id)
			if got, err := store.ReadBlob(ctx, e, b.CID, 1<<20); err != nil || !bytes.Equal(got, b.Bytes) {
				t.Errorf("large blob %s: %d bytes, %v", id, len(got), err)
			}
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: %d rows (%d acknowledged), %d messages waiting, %d acknowledged, %d large blobs", round, len(there), len(rows), len(waiting), len(acked), len(blobs))
	}
}

// killAfter runs the process and kills it after so many acknowledgements.
func killAfter(t *testing.T, dir string, lines int, heard func(what, id string)) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashingProcess$", "-test.timeout=1m")
	cmd.Env = append(os.Environ(), crashDirVar+"="+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(out)
	for n := 0; ; n++ {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) { // what was said and not heard in full was not said
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		what, id, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			t.Fatalf("heard %q\n%s", line, stderr.String())
		}
		heard(what, id)
		if n == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the process ended by itself: %v\n%s", err, stderr.String())
	}
}

const fileLimitVar = "SQLITE_FILE_LIMIT_DIR"

// A disk without room for the log: the limit on the size of files makes writes fail in the middle of a commit. It is set for
// a process of its own.
func TestWriteErrors(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestWriteErrorsProcess$", "-test.v", "-test.timeout=1m")
	cmd.Env = append(os.Environ(), fileLimitVar+"="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestWriteErrorsProcess") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestWriteErrorsProcess(t *testing.T) {
	dir := os.Getenv(fileLimitVar)
	if dir == "" {
		t.Skip("run by TestWriteErrors")
	}
	signal.Ignore(unix.SIGXFSZ)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := func(bytes uint64) {
		t.Helper()
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: old.Max}); err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	e, err := sqlite.Open(dir, sqlite.Options{Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var kept []string
	fill := func(round string) (failed int) {
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 40 {
					id := fmt.Sprintf("%s-%d-%d", round, g, i)
					c := crashChange(id)
					c.Row.Value = bytes.Repeat([]byte(id), 200)
					_, err := e.Commit(ctx, c)
					mu.Lock()
					switch {
					case err == nil:
						kept = append(kept, id)
					case errors.Is(err, store.ErrConflict):
						t.Errorf("commit %s: %v", id, err)
					default:
						failed++
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		return failed
	}
	limit(200 << 10)
	if failed := fill("limited"); failed == 0 || len(kept) == 0 {
		t.Errorf("%d commits failed, %d succeeded", failed, len(kept))
	}
	big := store.RawBlob(make([]byte, 1<<20))
	if err := store.PutBlob(ctx, e, big); err == nil {
		t.Error("put a blob that does not fit")
	}
	limit(old.Cur)
	if failed := fill("free"); failed != 0 {
		t.Errorf("%d commits failed once there was room", failed)
	}
	if err := store.PutBlob(ctx, e, big); err != nil {
		t.Errorf("putting a blob once there was room: %v", err)
	}
	check := func(when string) {
		t.Helper()
		for _, id := range kept {
			c := crashChange(id)
			row, err := e.Get(ctx, c.Row.Key)
			if err != nil || !bytes.Equal(row.Value, bytes.Repeat([]byte(id), 200)) {
				t.Errorf("%s: row %s: %d bytes, %v", when, id, len(row.Value), err)
			}
			if _, err := store.ReadBlob(ctx, e, c.Blobs[0].CID, 1<<10); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	check("running")
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if e, err = sqlite.Open(dir, sqlite.Options{Now: time.Now}); err != nil {
		t.Fatal(err)
	}
	check("opened again")
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}
