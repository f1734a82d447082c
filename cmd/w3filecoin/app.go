package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// app is what every command shares: where it reads and writes. Results go to stdout, everything else to stderr.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// json asks for results as JSON on stdout.
	json bool
	// terminal: stderr is one, so progress may be drawn.
	terminal bool
}

func newApp(stdin io.Reader, stdout, stderr io.Writer) *app {
	f, ok := stderr.(*os.File)
	return &app{stdin: stdin, stdout: stdout, stderr: stderr, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

// result prints a result: as JSON if asked for, otherwise as text writes it.
func (a *app) result(v any, text func(w io.Writer)) error {
	if !a.json {
		text(a.stdout)
		return nil
	}
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "w3filecoin",
		Short: "Gets content into Filecoin deals, with a signed receipt for every step",
		Example: `  w3filecoin demo                     the whole pipeline on this machine, chain and provider simulated
  w3filecoin serve                    all roles, for real
  w3filecoin offer FILE               store a file and offer it
  w3filecoin backfill DIRECTORY       offer what is stored already
  w3filecoin status CID --follow      where it stands
  w3filecoin verify chain.car         check a chain of receipts, offline`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          arguments(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(cmd.CommandPath()+" --help shows the flags", "%v", err)
	})
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print results as JSON")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		newDemoCommand(a), newServeCommand(a), newOfferCommand(a), newBackfillCommand(a),
		newStatusCommand(a), newReceiptCommand(a), newVerifyCommand(a),
		newKeyCommand(a), newDelegateCommand(a), newPieceCommand(a), newAggregateCommand(a), newAdminCommand(a), newVersionCommand(a),
	)
	return root
}
