// Package enginetest picks the engine that the suites of the roles, and of whole networks, run on. W3FILECOIN_TEST_ENGINE says which:
//
//   - "memory", the default;
//   - "double": the engine of store/aws on a double of its services that fail now and then, see store/aws/awstest;
//   - "services": that engine on real services, or substitutes, which W3FILECOIN_TEST_AWS names, in tables, queues and below a prefix of its own, which are
//     removed when the test ends.
//
// The suites are the same on all of them. A test of what is special in one engine opens that one itself.
package enginetest

import (
	"flag"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/store/aws/awstest"
	"github.com/storacha/w3filecoin/store/memory"
	"github.com/storacha/w3filecoin/store/storetest"
)

// Engine is an engine that a test can look into, and end as a crash does.
type Engine interface {
	storetest.Simulated
	// Reopen ends this opening, whose calls fail from then on, and returns a new one with everything that was committed.
	Reopen() Engine
	// Interrupt lets n more requests of the engine to its services through, and none after them until it is opened again: a process that is killed in the
	// middle of a call. It is false, and nothing happens, if the engine has no services.
	Interrupt(n int) bool
}

// Options describe an engine. Now is required.
type Options struct {
	// Now is the clock, which moves only when the test moves it.
	Now func() time.Time
	// IndexLag and IndexLagCommits are those of [memory.Options]: 0 stands for the defaults, negative for indexes that are not late.
	IndexLag        time.Duration
	IndexLagCommits int
	// Rand, if set, chooses which of the messages that are due is delivered next, where the engine leaves the choice.
	Rand *rand.Rand
	// Seed is where everything else that may vary comes from, together with the test's name.
	Seed uint64
	// Late: the test can do with messages that come a minute or two late because a request failed.
	Late bool
}

// Kinds of engines.
const (
	Memory   = "memory"
	Double   = "double"
	Services = "services"
)

const kindVar = "W3FILECOIN_TEST_ENGINE"

// Kind is the engine that tests run on.
func Kind() string {
	if kind := os.Getenv(kindVar); kind != "" {
		return kind
	}
	return Memory
}

// faults is the probability that a request to services fails in a way that the SDK gets over.
const faults = 0.05

// New returns an engine that has nothing and goes with the test.
func New(t testing.TB, o Options) Engine {
	t.Helper()
	if o.IndexLag == 0 {
		o.IndexLag = memory.DefaultIndexLag
	}
	if o.IndexLagCommits == 0 {
		o.IndexLagCommits = memory.DefaultIndexLagCommits
	}
	switch kind := Kind(); kind {
	case Memory:
		return inMemory{memory.New(memory.Options{Now: o.Now, IndexLag: o.IndexLag, IndexLagCommits: o.IndexLagCommits, Rand: o.Rand})}
	case Double:
		h := fnv.New64a()
		_, _ = h.Write([]byte(t.Name())) // never fails
		return onDouble{awstest.Open(t, awstest.Simulation{
			Options: awstest.Options{Now: o.Now, IndexLag: o.IndexLag, IndexLagCommits: o.IndexLagCommits, Rand: o.Rand}, Seed: o.Seed ^ h.Sum64(), Faults: faults, Late: o.Late,
		})}
	case Services:
		return newServices(t, o)
	default:
		t.Fatalf("%s=%s: there is no such engine", kindVar, kind)
		return nil
	}
}

type inMemory struct{ *memory.Engine }

func (e inMemory) Reopen() Engine { return inMemory{e.Engine.Reopen()} }

func (inMemory) Interrupt(int) bool { return false }

type onDouble struct{ *awstest.Engine }

func (e onDouble) Reopen() Engine { return onDouble{e.Engine.Reopen()} }

func (e onDouble) Interrupt(n int) bool {
	e.Engine.Interrupt(n)
	return true
}

// Again runs the package's tests once more, in short mode, in a process of its own, on an engine of a kind. Tests and skipped are regular expressions as of
// go test -run and -skip. In short mode, as under the race detector, it does nothing: the tests have run on one engine then.
func Again(t *testing.T, kind, tests, skipped string) {
	t.Helper()
	if testing.Short() {
		t.Skip("short mode")
	}
	if Kind() != Memory {
		t.Skipf("the tests run on %s already", Kind())
	}
	args := []string{"-test.run=" + tests, "-test.skip=^" + t.Name() + "$", "-test.count=1", "-test.short"}
	if skipped != "" {
		args[1] += "|" + skipped
	}
	if f := flag.Lookup("test.timeout"); f != nil {
		args = append(args, "-test.timeout="+f.Value.String())
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), kindVar+"="+kind, "GOGC=400") // the SDK leaves much behind
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "no tests to run") {
		t.Fatalf("on %s: %v\n%s", kind, err, out)
	}
}
