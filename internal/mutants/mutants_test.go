package main

import (
	"go/parser"
	"go/token"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestMutants: every mutant changes code that is there, into other code that is well formed. Whether it is caught is for `make mutants`.
func TestMutants(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatal(err)
	}
	root := strings.TrimSpace(string(out))
	names := map[string]bool{}
	for _, m := range mutants() {
		if names[m.name] || m.name == "" || m.breaks == "" || !strings.HasPrefix(m.pkg, "./") || m.run == "" {
			t.Errorf("mutant %q is incomplete, or there are two of that name", m.name)
		}
		names[m.name] = true
		if _, err := regexp.Compile(m.run); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		texts, err := m.patch(root)
		if err != nil {
			t.Errorf("the code has changed, change the mutant too: %v", err)
			continue
		}
		if len(texts) == 0 {
			t.Errorf("%s changes nothing", m.name)
		}
		for _, e := range m.edits {
			if e.old == e.new {
				t.Errorf("%s changes nothing in %s", m.name, e.file)
			}
		}
		for file, text := range texts {
			if _, err := parser.ParseFile(token.NewFileSet(), file, text, 0); err != nil {
				t.Errorf("%s: %v", m.name, err)
			}
		}
	}
}

func TestPatch(t *testing.T) {
	root := t.TempDir()
	for _, edits := range [][]edit{{{"absent.go", "a", "b"}}, {{"../mutants.go", "a", "b"}}} {
		if texts, err := (mutant{edits: edits}).patch(root); err == nil {
			t.Errorf("%v gives %q", edits, texts)
		}
	}
	own := func(edits ...edit) (map[string][]byte, error) { return mutant{edits: edits}.patch(".") }
	if _, err := own(edit{"main.go", "package nobody", ""}); err == nil {
		t.Error("a text that is not there was replaced")
	}
	if _, err := own(edit{"main.go", "return", ""}); err == nil {
		t.Error("a text that is there many times was replaced")
	}
	texts, err := own(edit{"main.go", "package main", "package one"}, edit{"main.go", "package one", "package two"})
	if err != nil || !strings.Contains(string(texts["main.go"]), "package two\n") {
		t.Errorf("two changes of one file: %v", err)
	}
}
