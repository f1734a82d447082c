package source

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/ipfs/go-cid"
)

const noLimit = 1 << 40

func newDir(t testing.TB) *Dir {
	t.Helper()
	d, err := OpenDir(filepath.Join(t.TempDir(), "uploads"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func put(t testing.TB, d *Dir, b []byte) cid.Cid {
	t.Helper()
	c := contentOf(t, Raw, b)
	if _, err := d.Put(t.Context(), c, bytes.NewReader(b), int64(len(b))); err != nil {
		t.Fatal(err)
	}
	return c
}

// wantContent fails the test unless the directory has exactly b as the content.
func wantContent(t testing.TB, d *Dir, c cid.Cid, b []byte) {
	t.Helper()
	length, err := d.Stat(t.Context(), c)
	if err != nil || length != int64(len(b)) {
		t.Errorf("Stat: %d, %v; want %d bytes", length, err, len(b))
	}
	f, length, err := d.Open(t.Context(), c)
	if err != nil {
		t.Errorf("Open: %v", err)
		return
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, b) || length != int64(len(b)) {
		t.Errorf("Open: %d bytes, length %d, %v; want the %d bytes put", len(got), length, err, len(b))
	}
}

func wantNothing(t testing.TB, d *Dir, c cid.Cid) {
	t.Helper()
	if _, err := d.Stat(t.Context(), c); !errors.Is(err, ErrNoContent) {
		t.Errorf("Stat: %v, want ErrNoContent", err)
	}
	if _, _, err := d.Open(t.Context(), c); !errors.Is(err, ErrNoContent) {
		t.Errorf("Open: %v, want ErrNoContent", err)
	}
}

// files lists the regular files below a directory.
func files(t testing.TB, root string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			name, err = filepath.Rel(root, name)
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestPut(t *testing.T) {
	d := newDir(t)
	big := make([]byte, 3<<20+17)
	rand.Read(big)
	for _, b := range [][]byte{{}, pattern(500, 0), big} {
		c := contentOf(t, Raw, b)
		wantNothing(t, d, c)
		created, err := d.Put(t.Context(), c, iotest.HalfReader(bytes.NewReader(b)), int64(len(b)))
		if err != nil || !created {
			t.Fatalf("Put %d bytes: created %t, %v", len(b), created, err)
		}
		wantContent(t, d, c, b)
		// The codec is no part of the identity.
		wantContent(t, d, contentOf(t, CAR, b), b)

		created, err = d.Put(t.Context(), c, iotest.ErrReader(errors.New("read again")), noLimit)
		if err != nil || created {
			t.Errorf("Put again: created %t, %v", created, err)
		}
	}

	const name = "5u/bciqlrloebubga5e5fqfefxtp2eexetbupfzkpeqqnx7ue64jbfu65uy" // of the vector of 500 bytes
	info, err := os.Stat(filepath.Join(d.path, filepath.FromSlash(name)))
	if err != nil || info.Mode() != 0o444 {
		t.Errorf("stored file: %v, %v; want mode 0444", info, err)
	}
	if got := files(t, d.path); len(got) != 3 {
		t.Errorf("files after three contents: %q", got)
	}
}

func TestPutRefuses(t *testing.T) {
	b := pattern(500, 0)
	c := contentOf(t, Raw, b)
	broken := errors.New("broken reader")
	cancelled, cancel := context.WithCancelCause(t.Context())
	for _, tt := range []struct {
		name string
		ctx  context.Context
		c    cid.Cid
		r    io.Reader
		max  int64
		want error
	}{
		{name: "other bytes", r: bytes.NewReader(pattern(500, 1)), want: ErrMismatch},
		{name: "one byte short", r: bytes.NewReader(b[:499]), want: ErrMismatch},
		{name: "one byte more", r: io.MultiReader(bytes.NewReader(b), strings.NewReader("x")), want: ErrMismatch},
		{name: "nothing", r: strings.NewReader(""), want: ErrMismatch},
		{name: "over the limit", r: bytes.NewReader(b), max: 499, want: ErrTooLarge},
		{name: "endless", r: endless{}, max: 1 << 20, want: ErrTooLarge},
		{name: "reader fails", r: io.MultiReader(bytes.NewReader(b), iotest.ErrReader(broken)), want: broken},
		{name: "cancelled while reading", ctx: cancelled, r: io.MultiReader(bytes.NewReader(b[:100]), readFunc(func([]byte) (int, error) {
			cancel(broken)
			return 1, nil
		})), want: broken},
		{name: "unsupported", c: cid.NewCidV1(cid.DagProtobuf, c.Hash()), r: bytes.NewReader(b), want: ErrUnsupported},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDir(t)
			created, err := d.Put(or(tt.ctx, t.Context()), or(tt.c, c), tt.r, or(tt.max, noLimit))
			if created || !errors.Is(err, tt.want) {
				t.Errorf("created %t, %v; want %v", created, err, tt.want)
			}
			wantNothing(t, d, c)
			if got := files(t, d.path); len(got) != 0 {
				t.Errorf("left behind: %q", got)
			}
		})
	}

	t.Run("read-only", func(t *testing.T) {
		d, err := OpenReadOnlyDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Put(t.Context(), c, bytes.NewReader(b), noLimit); !errors.Is(err, ErrReadOnly) {
			t.Errorf("got %v, want ErrReadOnly", err)
		}
		if got := files(t, d.path); len(got) != 0 {
			t.Errorf("written: %q", got)
		}
	})
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func TestOpenDirRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(file); err == nil {
		t.Error("OpenDir of a file succeeded")
	}
	if _, err := OpenReadOnlyDir(file); err == nil {
		t.Error("OpenReadOnlyDir of a file succeeded")
	}
	missing := filepath.Join(t.TempDir(), "missing")
	if _, err := OpenReadOnlyDir(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenReadOnlyDir of a missing directory: %v", err)
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("OpenReadOnlyDir created it")
	}
}

func TestOperatorNames(t *testing.T) {
	b := pattern(1000, 1)
	raw, car := contentOf(t, Raw, b), contentOf(t, CAR, b)
	for _, name := range []string{raw.String(), car.String(), raw.String() + ".car", car.String() + ".car"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
			d, err := OpenReadOnlyDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			wantContent(t, d, raw, b)
			wantContent(t, d, car, b)
			if got := files(t, dir); !cmp.Equal(got, []string{name}) {
				t.Errorf("reading changed the directory: %q", got)
			}
		})
	}

	t.Run("link to another disk", func(t *testing.T) {
		target := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(target, b, 0o600); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := os.Symlink(target, filepath.Join(dir, raw.String())); err != nil {
			t.Fatal(err)
		}
		d, err := OpenReadOnlyDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		wantContent(t, d, raw, b)
	})

	t.Run("not a file", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, raw.String()), 0o700); err != nil {
			t.Fatal(err)
		}
		// Opening a pipe that nobody writes to would block for ever.
		if err := syscall.Mkfifo(filepath.Join(dir, car.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("gone", filepath.Join(dir, raw.String()+".car")); err != nil {
			t.Fatal(err)
		}
		d, err := OpenReadOnlyDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		wantNothing(t, d, raw)
	})

	t.Run("a wrong file does not stand in the way of an upload", func(t *testing.T) {
		d := newDir(t)
		if err := os.WriteFile(filepath.Join(d.path, raw.String()), []byte("wrong"), 0o600); err != nil {
			t.Fatal(err)
		}
		created, err := d.Put(t.Context(), raw, bytes.NewReader(b), noLimit)
		if err != nil || !created {
			t.Fatalf("created %t, %v", created, err)
		}
		wantContent(t, d, raw, b)
	})
}

// TestContents: what Put wrote is listed once, and nothing else.
func TestContents(t *testing.T) {
	d := newDir(t)
	want := map[cid.Cid]bool{}
	for i := range 50 {
		want[put(t, d, fmt.Appendf(nil, "content %d", i))] = true
	}
	strange := contentOf(t, Raw, []byte("in no folder of its own"))
	for _, name := range []string{strange.String(), MultihashName(strange), "xy/" + MultihashName(strange), "xy/notes.txt"} {
		path := filepath.Join(d.path, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for c, err := range d.Contents(t.Context()) {
		if err != nil || !want[c] {
			t.Errorf("listed %s, %v", c, err)
		}
		delete(want, c)
	}
	if len(want) > 0 {
		t.Errorf("not listed: %v", want)
	}
	for range d.Contents(t.Context()) { // it may be left at any time
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for c, err := range d.Contents(ctx) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %s, %v", c, err)
		}
	}
}

func TestPutConcurrently(t *testing.T) {
	first := newDir(t)
	b := make([]byte, 1<<20)
	rand.Read(b)
	c := contentOf(t, Raw, b)

	var created atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			ok, err := first.Put(t.Context(), c, bytes.NewReader(b), noLimit)
			if err != nil {
				t.Error(err)
			}
			if ok {
				created.Add(1)
			}
			wantContent(t, first, c, b)
		})
		// As a process that starts in between does it.
		wg.Go(func() {
			other, err := OpenDir(first.path)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := other.Put(t.Context(), contentOf(t, Raw, b[1:]), bytes.NewReader(b[1:]), noLimit); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if created.Load() != 1 {
		t.Errorf("%d of 16 were told that they created the content", created.Load())
	}
	if got := files(t, first.path); len(got) != 2 {
		t.Errorf("files: %q", got)
	}
}

func TestUnfinishedIsInvisible(t *testing.T) {
	d := newDir(t)
	b := pattern(2000, 3)
	c := contentOf(t, Raw, b)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := d.Put(t.Context(), c, r, noLimit)
		done <- err
	}()
	if _, err := w.Write(b); err != nil { // returns when Put has read it
		t.Fatal(err)
	}
	wantNothing(t, d, c)
	if got := files(t, d.path); len(got) != 1 || filepath.Dir(got[0]) != incoming {
		t.Errorf("files: %q", got)
	}

	// A second process opens the directory: it clears what is stale, and only that.
	stale := filepath.Join(d.path, incoming, "stale")
	if err := os.WriteFile(stale, b, 0o444); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(d.path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stale file: %v", err)
	}
	w.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantContent(t, d, c, b)
}

const killEnv = "SOURCE_TEST_PUT_AND_WAIT"

// TestKilled ends a process in the middle of a Put.
func TestKilled(t *testing.T) {
	b := pattern(2000, 4)
	c := contentOf(t, Raw, b)
	if path := os.Getenv(killEnv); path != "" {
		d, err := OpenDir(path)
		if err != nil {
			t.Fatal(err)
		}
		waiting := readFunc(func([]byte) (int, error) {
			fmt.Println("waiting")
			select {}
		})
		_, err = d.Put(t.Context(), c, io.MultiReader(bytes.NewReader(b[:1000]), waiting), noLimit)
		t.Fatalf("Put returned %v", err)
	}

	path := filepath.Join(t.TempDir(), "uploads")
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$")
	child.Env = append(os.Environ(), killEnv+"="+path)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "waiting" {
	}
	if got := files(t, path); len(got) != 1 {
		t.Errorf("files while the process lives: %q", got)
	}
	if _, err := OpenDir(path); err != nil {
		t.Fatal(err)
	}
	if got := files(t, path); len(got) != 1 {
		t.Errorf("files of a living process after OpenDir: %q", got)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	child.Wait() // the error says that it was killed

	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := files(t, path); len(got) != 0 {
		t.Errorf("files after OpenDir: %q", got)
	}
	wantNothing(t, d, c)
	put(t, d, b)
	wantContent(t, d, c, b)
}
