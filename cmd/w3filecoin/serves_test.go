package main

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
)

// serves starts `w3filecoin serve` with a configuration file and sets $STOREFRONT_URL. The process ends with the script, by a signal that it
// has to heed.
func serves(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: serves CONFIG")
	}
	program, err := os.Executable()
	ts.Check(err)
	// testscript runs programs by links with their name.
	link := filepath.Join(ts.MkAbs("."), ".bin", "w3filecoin")
	ts.Check(os.MkdirAll(filepath.Dir(link), 0o755))
	ts.Check(os.Symlink(program, link))
	logs, err := os.Create(ts.MkAbs("serve.log"))
	ts.Check(err)
	cmd := exec.Command(link, "serve", "--json", "--config", ts.MkAbs(args[0]))
	cmd.Dir, cmd.Stderr = ts.MkAbs("."), logs
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			text, _ := os.ReadFile(logs.Name())
			ts.Logf("serve ended with %v:\n%s", err, text)
		}
		_ = logs.Close()
	})
	var roles []roleAddress
	if err := json.NewDecoder(bufio.NewReader(out)).Decode(&roles); err != nil {
		text, _ := os.ReadFile(logs.Name())
		ts.Fatalf("serve does not say where it is: %v\n%s", err, text)
	}
	ts.Setenv("STOREFRONT_URL", roles[0].URL)
}
