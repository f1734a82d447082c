package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/roles/client"
)

// TestReadme runs the commands of the README's consoles, in order, in a copy of nothing: what a newcomer types has to work. `go test ./...` is
// what runs this test.
func TestReadme(t *testing.T) {
	commands := consoleCommands(t, "../../README.md")
	if len(commands) < 5 {
		t.Fatalf("only %d commands found in the README: %q", len(commands), commands)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	for _, command := range commands {
		if command == "go test ./..." {
			continue
		}
		t.Run(command, func(t *testing.T) {
			if testing.Short() && strings.Contains(command, "demo") {
				t.Skip("the demo takes some seconds")
			}
			args := strings.Fields(command)
			for i, a := range args {
				if a == "./cmd/w3filecoin" {
					args[i] = filepath.Join(root, "cmd/w3filecoin")
				}
			}
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Dir = work
			if args[0] == "go" {
				// Build where the module is, leave what the command writes in the work folder.
				cmd.Dir = root
				cmd.Args = append([]string{"go", args[1]}, inWork(args[2:], work)...)
			}
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Run(); err != nil {
				t.Fatalf("%s: %v\n%s", command, err, &out)
			}
			if strings.Contains(command, "demo") && !strings.Contains(out.String(), "verified") {
				t.Errorf("the demo does not say what it verified:\n%s", &out)
			}
		})
	}
}

// inWork makes the outputs of a go command land in the work folder.
func inWork(args []string, work string) []string {
	out := make([]string, 0, len(args)+2)
	for i, a := range args {
		if i > 0 && args[i-1] == "-o" {
			a = filepath.Join(work, a)
		}
		out = append(out, a)
		if a == "demo" {
			out = append(out, "--save", work)
		}
	}
	return out
}

// consoleCommands returns the lines after "$ " of the file's console blocks.
func consoleCommands(t *testing.T, file string) (commands []string) {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	inside := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "```") {
			inside = line == "```console"
		}
		if command, ok := strings.CutPrefix(line, "$ "); inside && ok {
			commands = append(commands, command)
		}
	}
	return commands
}

// TestLifeOfAPiece: the receipts that the documentation tells of are the ones in the file beside it, and they verify.
func TestLifeOfAPiece(t *testing.T) {
	text, err := os.ReadFile("../../docs/life-of-a-piece.md")
	if err != nil {
		t.Fatal(err)
	}
	saved, err := os.ReadFile("../../docs/life-of-a-piece.car")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := client.DecodeChain(saved)
	if err != nil {
		t.Fatal(err)
	}
	proven, err := chain.Verify(t.Context(), roles.NewKeys(roles.KeysConfig{Now: time.Now}))
	if err != nil || proven.Failure != nil {
		t.Fatal(proven, err)
	}
	named := []string{proven.Content.String(), proven.Piece.String(), proven.Aggregate.String()}
	for _, s := range chain.Steps() {
		named = append(named, s.Task.String(), s.Receipt.Link().String())
	}
	for _, c := range named {
		if !bytes.Contains(text, []byte(c)) {
			t.Errorf("%s is part of the chain, but the text does not name it", c)
		}
	}
}
