// Command mutants breaks the system on purpose, one way at a time, and checks that the tests notice: a test that cannot fail shows nothing.
//
//	go run ./internal/mutants              all of them: a table of what each breaks and which test caught it
//	go run ./internal/mutants -run chain/  those whose names match
//	go run ./internal/mutants -list        what there is
//
// A mutant is a change of source text, put over the real file for one `go test` (its -overlay flag): nothing in the tree is touched. Tests that
// fail for another reason show nothing either, so the same tests run without the change first, and a mutant that does not compile, or whose
// text is not found, is an error.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// mutant is one way in which the system can be wrong.
type mutant struct {
	name   string // "area/what"
	breaks string // in words
	edits  []edit
	// pkg and run say which tests have to notice: a package, and the pattern of -run.
	pkg, run string
}

// edit replaces a text of a file, which is there exactly once.
type edit struct{ file, old, new string }

// patch returns the changed text of every file of a mutant, by its path from root.
func (m mutant) patch(root string) (map[string][]byte, error) {
	texts := map[string][]byte{}
	for _, e := range m.edits {
		text, ok := texts[e.file]
		if !ok {
			var err error
			if text, err = os.ReadFile(filepath.Join(root, e.file)); err != nil {
				return nil, fmt.Errorf("%s: %w", m.name, err)
			}
		}
		if n := bytes.Count(text, []byte(e.old)); n != 1 {
			return nil, fmt.Errorf("%s: %s has %d times, not once:\n%s", m.name, e.file, n, e.old)
		}
		texts[e.file] = bytes.Replace(text, []byte(e.old), []byte(e.new), 1)
	}
	return texts, nil
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("mutants: ")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	pattern := flag.String("run", "", "only mutants whose names match this regular expression")
	list := flag.Bool("list", false, "list the mutants and end")
	verbose := flag.Bool("v", false, "show the output of the tests that each mutant fails")
	timeout := flag.Duration("timeout", 2*time.Minute, "how long the tests of one mutant may take, building aside")
	parallel := flag.Int("j", 2, "how many mutants run at a time")
	flag.Parse()
	only, err := regexp.Compile(*pattern)
	if err != nil {
		return err
	}
	chosen := slices.DeleteFunc(mutants(), func(m mutant) bool { return !only.MatchString(m.name) })
	if len(chosen) == 0 {
		return fmt.Errorf("no mutant's name matches %q", *pattern)
	}
	width := 0
	for _, m := range chosen {
		width = max(width, len(m.name))
	}
	if *list {
		for _, m := range chosen {
			fmt.Printf("%-*s  %s\n", width, m.name, m.breaks)
		}
		return nil
	}
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("finding the module: %w", err)
	}
	t := tester{root: strings.TrimSpace(string(out)), timeout: *timeout, verbose: *verbose, width: width}

	began := time.Now()
	// Nothing is run before every text was found.
	var stale []error
	for _, m := range chosen {
		_, err := m.patch(t.root)
		stale = append(stale, err)
	}
	if err := errors.Join(stale...); err != nil {
		return fmt.Errorf("the code has changed, change the mutants too:\n%w", err)
	}
	if err := t.baseline(ctx, chosen); err != nil {
		return err
	}
	fmt.Printf("the tests pass without mutants, %.0f s\n", time.Since(began).Seconds())
	var group errgroup.Group
	group.SetLimit(max(*parallel, 1))
	for _, m := range chosen {
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return t.try(ctx, m)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	fmt.Printf("%d mutants, %d caught, %d SURVIVED, in %.0f s\n", len(chosen), len(chosen)-len(t.survivors), len(t.survivors), time.Since(began).Seconds())
	if len(t.survivors) > 0 {
		slices.Sort(t.survivors)
		return fmt.Errorf("no test noticed %s", strings.Join(t.survivors, ", "))
	}
	return nil
}

// tester runs tests with mutants and without.
type tester struct {
	root    string
	timeout time.Duration
	verbose bool
	width   int // of names

	mu        sync.Mutex // of what follows, and of the output
	survivors []string
}

// outcome is how one `go test` ended.
type outcome struct {
	ran      int // tests
	failed   []string
	passed   bool
	built    bool
	timedOut bool
	output   string
}

// baseline runs the tests of all mutants without any of them.
func (t *tester) baseline(ctx context.Context, chosen []mutant) error {
	seen := map[[2]string]bool{}
	for _, m := range chosen {
		tests := [2]string{m.pkg, m.run}
		if seen[tests] {
			continue
		}
		seen[tests] = true
		o, err := t.test(ctx, m, "")
		switch {
		case err != nil:
			return err
		case !o.passed:
			return fmt.Errorf("go test %s -run %q fails without a mutant:\n%s", m.pkg, m.run, o.output)
		case o.ran == 0:
			return fmt.Errorf("go test %s -run %q runs no test", m.pkg, m.run)
		}
	}
	return nil
}

// try runs the tests of a mutant with it and prints its line of the table.
func (t *tester) try(ctx context.Context, m mutant) error {
	dir, err := os.MkdirTemp("", "mutant-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	overlay, err := t.overlay(m, dir)
	if err != nil {
		return err
	}
	began := time.Now()
	o, err := t.test(ctx, m, overlay)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	by := strings.Join(o.failed, ", ")
	switch {
	case !o.built:
		return fmt.Errorf("%s does not compile:\n%s", m.name, o.output)
	case o.passed:
		by = "SURVIVED " + m.pkg + " -run " + m.run
		t.survivors = append(t.survivors, m.name)
	case by == "":
		by = "the end of the test's process"
	}
	if o.timedOut {
		by += " (never ended)"
	}
	fmt.Printf("%-*s  %5.1f s  %-50s  %s\n", t.width, m.name, time.Since(began).Seconds(), by, m.breaks)
	if t.verbose && !o.passed {
		fmt.Println(o.output)
	}
	return nil
}

// overlay writes the changed files of a mutant, and the file that puts them in the place of the real ones.
func (t *tester) overlay(m mutant, dir string) (string, error) {
	texts, err := m.patch(t.root)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for file, text := range texts {
		name := filepath.Join(dir, fmt.Sprintf("%d-%s", len(replace), filepath.Base(file)))
		if err := os.WriteFile(name, text, 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(t.root, file)] = name
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "overlay.json")
	return name, os.WriteFile(name, b, 0o600)
}

// test runs the tests of a mutant, with an overlay if one is given. Without one the result may be remembered from earlier.
func (t *tester) test(ctx context.Context, m mutant, overlay string) (o outcome, err error) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout+5*time.Minute) // the rest is for building
	defer cancel()
	args := []string{"test", "-json", "-short", "-vet=off", "-timeout", t.timeout.String(), "-run", m.run}
	if overlay != "" {
		args = append(args, "-count=1", "-failfast", "-overlay", overlay)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, m.pkg)...)
	cmd.Dir = t.root
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if ctx.Err() != nil {
		return o, fmt.Errorf("%s: %w", m.name, context.Cause(ctx))
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return o, err
	}
	o.passed, o.built = err == nil, true
	text := new(strings.Builder)
	failed := map[string]bool{}
	lines := bufio.NewScanner(&stdout)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e struct{ Action, Test, Output, FailedBuild string }
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		text.WriteString(e.Output)
		o.timedOut = o.timedOut || strings.HasPrefix(e.Output, "panic: test timed out")
		o.built = o.built && e.FailedBuild == "" && e.Action != "build-fail"
		top, _, sub := strings.Cut(e.Test, "/")
		switch {
		case e.Test == "" || sub:
		case e.Action == "run":
			o.ran++
		case e.Action == "fail":
			failed[top] = true
		}
	}
	if err := lines.Err(); err != nil {
		return o, fmt.Errorf("reading the output of go test: %w", err)
	}
	for name := range failed {
		o.failed = append(o.failed, name)
	}
	slices.Sort(o.failed)
	o.output = text.String() + stderr.String()
	// Where go test itself fails, nothing was tested.
	o.built = o.built && (o.passed || o.ran > 0)
	return o, nil
}
