package segment_test

import (
	"os"
	"strings"
	"testing"
)

// TestReadme checks that the README shows Example as it is.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "```go\n")
	block, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("no Go block in README.md")
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(example), block) {
		t.Error("the Go block of README.md is not in example_test.go")
	}
}
