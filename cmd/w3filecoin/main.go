// Command w3filecoin gets content into Filecoin deals, with a signed receipt for every step.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/roles/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, newApp(os.Stdin, os.Stdout, os.Stderr), os.Args[1:])
	stop()
	os.Exit(code)
}

// Exit codes, as documented in docs/cli.md.
const (
	exitOK          = 0
	exitFailure     = 1   // anything that has no code of its own
	exitUsage       = 2   // flags, arguments or configuration are wrong
	exitUnproven    = 3   // a chain of receipts does not hold
	exitUnknown     = 4   // nothing is known of what was asked for
	exitRefused     = 5   // a role refused, or the offer ended in a failure
	exitUnfinished  = 6   // no end within the time that was given
	exitPartly      = 7   // some of many items failed, the others are done
	exitInterrupted = 130 // by a signal
)

// exitError is an error with an exit code of its own, and a hint what to do.
type exitError struct {
	code int
	err  error
	hint string
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// usage is an error of the caller's, with what to do about it.
func usage(hint, format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...), hint}
}

// run executes one command line and returns its exit code. Results are on stdout already; here errors go to stderr, once.
func run(ctx context.Context, app *app, args []string) int {
	root := newRoot(app)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code, hint := exitCode(ctx, err)
	if code == exitInterrupted {
		fmt.Fprintln(app.stderr, "w3filecoin: interrupted")
		return code
	}
	// What a role answered may hold anything; line breaks are ours.
	lines := strings.Split(err.Error(), "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	fmt.Fprintf(app.stderr, "w3filecoin: %s\n", strings.Join(lines, "\n"))
	if hint != "" {
		fmt.Fprintf(app.stderr, "  hint: %s\n", hint)
	}
	return code
}

func exitCode(ctx context.Context, err error) (code int, hint string) {
	var exit *exitError
	var failure *capabilities.Failure
	switch {
	case errors.As(err, &exit):
		return exit.code, exit.hint
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return exitInterrupted, ""
	case errors.Is(err, client.ErrUnproven):
		return exitUnproven, ""
	case errors.Is(err, capabilities.ErrNoReceipt):
		return exitUnknown, ""
	case errors.As(err, &failure):
		return exitRefused, ""
	}
	return exitFailure, ""
}
