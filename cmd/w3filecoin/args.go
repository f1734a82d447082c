package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/wire"
)

// arguments makes a complaint about the number of arguments one of the caller's, with the exit code for that.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usage(cmd.CommandPath()+" --help shows what it takes", "%v", err)
		}
		return nil
	}
}

// parseCID reads a CID that was given as an argument.
func parseCID(text string) (cid.Cid, error) {
	c, err := cid.Parse(text)
	if err != nil {
		return c, usage("it looks like bafy… or bafk…, copied whole", "%q is not a CID: %v", text, err)
	}
	return c, nil
}

// parseDID reads a DID that was given for a flag.
func parseDID(flag, text string) (capabilities.DID, error) {
	if text == "" {
		return capabilities.DID{}, usage("it looks like did:key:z6Mk… or did:web:example.com", "%s is missing", flag)
	}
	d, err := wire.ParseDID(text)
	if err != nil {
		return d, usage("it looks like did:key:z6Mk… or did:web:example.com", "%s: %q is not a DID: %v", flag, text, err)
	}
	return d, nil
}

// keyHint is what to do when the key of a DID is not known.
const keyHint = "say which key it signs with: --key did:web:…=did:key:…"

// addKeyFlag adds the flag by which keys of DIDs are told.
func addKeyFlag(cmd *cobra.Command, keys *[]string) {
	cmd.Flags().StringArrayVar(keys, "key", nil, "the key of a DID that is not a did:key, as did:web:…=did:key:…; repeatable")
}

// parseKeys returns the keys of those DIDs and of all that are did:key. Nothing is looked up anywhere.
func parseKeys(list []string) (capabilities.Keys, error) {
	static := map[capabilities.DID]capabilities.DID{}
	for _, text := range list {
		// A did:web may hold "=" itself.
		name, key, ok := strings.Cut(text, "=did:key:")
		if !ok {
			return nil, usage("write it as did:web:example.com=did:key:z6Mk…", "--key %q names no did:key", text)
		}
		d, err := parseDID("--key", name)
		if err != nil {
			return nil, err
		}
		k, err := parseDID("--key", "did:key:"+key)
		if err != nil {
			return nil, err
		}
		if _, err := wire.VerifierOf(k); err != nil {
			return nil, usage("services sign with Ed25519 keys, did:key:z6Mk…", "--key %s: %v", text, err)
		}
		static[d] = k
	}
	return toldKeys{roles.NewKeys(roles.KeysConfig{Static: static, Now: time.Now})}, nil
}

// toldKeys are keys that nobody is asked for.
type toldKeys struct{ known *roles.Keys }

// Verifier implements [capabilities.Keys]. The error wraps roles.ErrNoKey.
func (k toldKeys) Verifier(ctx context.Context, did capabilities.DID) (capabilities.Verifier, error) {
	v, err := k.known.Verifier(ctx, did)
	if errors.Is(err, roles.ErrNoKey) {
		return v, fmt.Errorf("%w of %s", roles.ErrNoKey, did)
	}
	return v, err
}

// row is a line of text about one thing: a name and a value.
type row [2]string

// writeRows writes rows with their values in one column, and leaves out those without a value. Values may come from anywhere.
func writeRows(w io.Writer, indent string, rows []row) {
	width := 11
	for _, r := range rows {
		if r[1] != "" {
			width = max(width, len(r[0]))
		}
	}
	for _, r := range rows {
		if r[1] != "" {
			fmt.Fprintf(w, "%s%-*s  %s\n", indent, width, printable(r[0]), printable(r[1]))
		}
	}
}

// printable is text of another party's without what a terminal would act on.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// when writes a time for people, "" if there is none.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}
