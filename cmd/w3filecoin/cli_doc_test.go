package main

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestCLIDoc: docs/cli.md has a section for every command, with every flag of it and no other, and every exit code.
func TestCLIDoc(t *testing.T) {
	b, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	section := func(title string) (string, bool) {
		_, rest, ok := strings.Cut(doc, "\n## "+title+"\n")
		text, _, _ := strings.Cut(rest, "\n## ")
		return text, ok
	}
	flag := regexp.MustCompile("(?m)^\\| `(?:-[a-z], )?--([a-z-]+)")
	seen := map[string]bool{}
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
		if !cmd.HasParent() || cmd.Hidden || cmd.Name() == "help" || cmd.Name() == "completion" {
			return
		}
		name := strings.TrimPrefix(cmd.CommandPath(), "w3filecoin ")
		seen[name] = true
		text, ok := section(name)
		if !ok {
			t.Errorf("no section for %s", name)
			return
		}
		want := map[string]bool{}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" {
				want[f.Name] = true
			}
		})
		for _, m := range flag.FindAllStringSubmatch(text, -1) {
			if !want[m[1]] {
				t.Errorf("%s: --%s is described and does not exist", name, m[1])
			}
			delete(want, m[1])
		}
		for name := range want {
			t.Errorf("%s: --%s is not described", cmd.CommandPath(), name)
		}
	}
	visit(newRoot(newApp(os.Stdin, os.Stdout, os.Stderr)))
	if len(seen) < 10 {
		t.Errorf("only %d commands were found", len(seen))
	}
	codes, _ := section("Exit codes")
	for _, code := range []int{exitOK, exitFailure, exitUsage, exitUnproven, exitUnknown, exitRefused, exitUnfinished, exitPartly, exitInterrupted} {
		if !strings.Contains(codes, "| "+strconv.Itoa(code)+" |") {
			t.Errorf("exit code %d is not in the table", code)
		}
	}
}
