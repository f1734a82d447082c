package main

import (
	"io"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"
)

// TestRoleQueues: what is created on AWS are the queues that the roles work on, no more and no less.
func TestRoleQueues(t *testing.T) {
	cfg := defaultConfig()
	cfg.Data, cfg.Devnet.Enabled, cfg.Devnet.Listen = t.TempDir(), true, "127.0.0.1:0"
	for _, name := range allRoles {
		cfg.identity(name).Listen = "127.0.0.1:0"
	}
	n, err := build(cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	layout := roleQueues()
	for _, name := range allRoles {
		want := slices.Sorted(maps.Keys(n.roles[name].workers.Handlers))
		if got := slices.Sorted(slices.Values(layout[name])); !slices.Equal(got, want) {
			t.Errorf("%s: roleQueues in store.go names %q, it works on %q", name, got, want)
		}
	}
}

// TestTerraformQueues: deploy/terraform creates the same queues.
func TestTerraformQueues(t *testing.T) {
	b, err := os.ReadFile("../../deploy/terraform/main.tf")
	if err != nil {
		t.Fatal(err)
	}
	word := regexp.MustCompile(`"([a-z-]+)"`)
	for role, names := range roleQueues() {
		list := regexp.MustCompile(`(?s)\n    ` + role + ` += \[(.*?)\]`).FindStringSubmatch(string(b))
		if list == nil {
			t.Errorf("no queues of the %s", role)
			continue
		}
		var got []string
		for _, m := range word.FindAllStringSubmatch(list[1], -1) {
			got = append(got, m[1])
		}
		slices.Sort(got)
		if want := slices.Sorted(slices.Values(names)); !slices.Equal(got, want) {
			t.Errorf("%s: deploy/terraform creates %q, the program wants %q", role, got, want)
		}
	}
}
