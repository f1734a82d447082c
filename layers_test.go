package w3filecoin_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"sort"
	"strings"
	"testing"
)

const module = "github.com/storacha/w3filecoin/"

// layer is one row of the import table in docs/design.md.
type layer struct {
	// may lists our packages that may be reached, transitively; "x/..." covers x and everything below it.
	may []string
	// network permits packages that open connections, transitively.
	network bool
	// never lists foreign or standard packages that may not be imported directly; a trailing "/..." covers a tree.
	never []string
	// why ends the sentence "... because".
	why string
}

var (
	sdks    = []string{"github.com/aws/...", "database/sql", "modernc.org/...", "net/http"}
	servers = []string{"github.com/aws/...", "database/sql", "modernc.org/..."}
)

var layers = map[string]layer{
	"piece":   {why: "it is a library for others: no package of ours, no network"},
	"segment": {may: []string{"piece"}, why: "it is a library for others: piece only, no network"},
	"wire/...": {may: []string{"wire/..."}, never: []string{"github.com/storacha/...", "github.com/aws/...", "database/sql"},
		why: "it is the guard at the edge: bytes in, bytes out"},
	"capabilities/...": {may: []string{"capabilities/...", "piece", "segment", "wire/..."}, network: true, never: sdks,
		why: "the contract is pure data"},
	"store":           {why: "state is an interface and typed views of it", never: []string{"database/sql", "modernc.org/...", "github.com/aws/..."}},
	"store/storetest": {may: []string{"store"}, why: "the suite is handed the engine it tests", never: sdks},
	"store/memory":    {may: []string{"store"}, why: "an engine knows the contract and nothing above it"},
	"store/sqlite":    {may: []string{"store"}, why: "an engine knows the contract and nothing above it", network: true},
	"store/aws/awstest": {may: []string{"store", "store/storetest", "store/aws"}, network: true, never: []string{"database/sql", "modernc.org/..."},
		why: "it is a double of the services of that engine"},
	"store/enginetest": {may: []string{"store", "store/..."}, network: true, why: "it picks an engine for tests, as cmd does for processes"},
	"store/transfer":   {may: []string{"store"}, never: sdks, why: "it carries state between engines that it does not know"},
	"store/aws":        {may: []string{"store"}, why: "an engine knows the contract and nothing above it", network: true},
	"tasks": {may: []string{"capabilities/...", "store", "piece", "segment", "wire/..."}, network: true, never: sdks,
		why: "a role's tasks and receipts are domain logic over the store"},
	"standing":    {may: []string{"store"}, never: sdks, why: "limits and reputation are domain logic over the store"},
	"storefront":  role,
	"aggregator":  role,
	"dealer":      role,
	"dealtracker": role,
	"compute":     role,
	"uploads":     role,
	"claims":      role,
	"roles/client": {may: []string{"capabilities/...", "piece", "segment", "wire/..."}, network: true, never: servers,
		why: "a client links no server"},
	"roles": {may: []string{"capabilities/...", "piece", "segment", "wire/...", "roles/client", "store", "tasks"}, network: true, never: servers,
		why: "the runtime serves any role on any engine"},
	"source": {may: []string{"compute", "storefront", "uploads", "standing", "capabilities/...", "store", "tasks", "piece", "segment", "wire/..."}, network: true, never: servers,
		why: "it reads bytes for the roles that say what they need"},
	"source/s3": {may: []string{"source", "compute", "storefront", "uploads", "standing", "capabilities/...", "store", "tasks", "piece", "segment", "wire/..."},
		network: true, never: []string{"database/sql", "modernc.org/..."}, why: "it is a place of content, and alone in knowing the store's SDK"},
	"ingest": role,
	"ingest/sqs": {may: []string{"store"}, network: true, never: []string{"database/sql", "modernc.org/..."},
		why: "it is a queue, and beside the engine alone in knowing its SDK"},
	"resolver": {may: []string{"piece", "segment", "source", "compute", "storefront", "uploads", "standing", "capabilities/...", "store", "tasks", "wire/..."},
		network: true, never: servers, why: "it says where content is"},
	"chain": {may: []string{"dealtracker", "capabilities/...", "store", "tasks", "piece", "segment", "wire/..."}, network: true, never: servers,
		why: "it implements what the deal tracker asks for"},
	"broker": {may: []string{"dealer", "capabilities/...", "store", "tasks", "piece", "segment", "wire/..."}, network: true, never: servers,
		why: "it implements what the dealer asks for"},
	"devnet": {may: []string{"piece", "segment", "chain", "capabilities/...", "wire/...", "store", "dealtracker", "tasks"}, network: true, never: servers,
		why: "the simulated world does over HTTP what the real one does"},
	"interop": {why: "it holds tests against the published packages, and no code"},
	"web":     {network: true, why: "the pages use the HTTP interface like anybody else"},
}

var role = layer{may: []string{"capabilities/...", "piece", "segment", "standing", "store", "tasks", "wire/..."}, network: true,
	never: append([]string{"github.com/storacha/go-ucanto/..."}, sdks...),
	why:   "a role is plain domain logic: no other role, no runtime, no engine, no HTTP"}

// TestLayers enforces who may import whom: our own packages transitively, foreign ones by direct import. Packages under cmd and
// roles/rolestest may import everything.
func TestLayers(t *testing.T) {
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		l, ok := layerOf(name)
		if !ok {
			if name != "roles/rolestest" && !strings.HasPrefix(name, "cmd/") && !strings.HasPrefix(name, "internal/") &&
				p.ImportPath+"/" != module {
				t.Errorf("package %s has no row in the table of layers", name)
			}
			continue
		}
		for _, dep := range p.Deps {
			switch own, ours := strings.CutPrefix(dep, module); {
			case ours && own != name && !covers(l.may, own):
				t.Errorf("%s reaches %s, but %s", name, own, l.why)
			case !ours && !l.network && (dep == "net" || dep == "net/http"):
				t.Errorf("%s reaches %s, but %s", name, dep, l.why)
			}
		}
		for _, dep := range p.Imports {
			if !strings.HasPrefix(dep, module) && covers(l.never, dep) {
				t.Errorf("%s imports %s, but %s", name, dep, l.why)
			}
		}
	}
}

// TestEnginesKeepApart: no engine imports another, nothing below cmd imports one but what serves tests.
func TestEnginesKeepApart(t *testing.T) {
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if strings.HasPrefix(name, "cmd/") || slices.Contains([]string{"roles/rolestest", "store/enginetest", "store/aws/awstest"}, name) {
			continue
		}
		for _, dep := range p.Deps {
			for _, engine := range []string{"store/memory", "store/sqlite", "store/aws"} {
				if dep == module+engine && name != engine {
					t.Errorf("%s reaches %s: only cmd picks an engine", name, engine)
				}
			}
		}
	}
}

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func listPackages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps=false", "-json=ImportPath,Imports,Deps", "./...").Output()
	if err != nil {
		t.Fatalf("listing packages: %v", err)
	}
	var pkgs []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p listed
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatal("no packages listed")
	}
	return pkgs
}

func layerOf(name string) (layer, bool) {
	if l, ok := layers[name]; ok {
		return l, true
	}
	keys := make([]string, 0, len(layers))
	for k := range layers {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		if covers([]string{k}, name) {
			return layers[k], true
		}
	}
	return layer{}, false
}

// covers reports whether name matches one of the patterns: itself, or "x/..." for x and everything below it.
func covers(patterns []string, name string) bool {
	for _, p := range patterns {
		if tree, ok := strings.CutSuffix(p, "/..."); ok {
			if name == tree || strings.HasPrefix(name, tree+"/") {
				return true
			}
		} else if name == p {
			return true
		}
	}
	return false
}

// TestClocks: the pure packages take time from their callers.
func TestClocks(t *testing.T) {
	for _, dir := range []string{"piece", "segment", "wire", "store"} {
		out, err := exec.Command("grep", "-rnE", "--include=*.go", "--exclude=*_test.go", `time\.(Now|After|Sleep|Tick|NewTimer)\(`, dir).Output()
		if len(out) > 0 {
			t.Errorf("%s reads the clock itself; pass the time in:\n%s", dir, out)
		}
		// grep exits with 1 if it finds nothing.
		if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
			t.Fatalf("searching %s: %v", dir, err)
		}
	}
}
