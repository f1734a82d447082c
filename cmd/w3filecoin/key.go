package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/wire"
)

func newKeyCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make and show keys",
		Long: `Make and show private keys (Ed25519). A key is who somebody is: each role has one, and so has each agent that offers content.
Its DID is public; the key itself never leaves its file.`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKeyGenerateCommand(a), newKeyShowCommand(a))
	return cmd
}

// shownKey is what is told of a key.
type shownKey struct {
	// DID is the name in which it signs, PublicKey the did:key of the key itself.
	DID       string `json:"did"`
	PublicKey string `json:"publicKey"`
	File      string `json:"file,omitempty"`
	// Secret is the private key, where it was asked for.
	Secret string `json:"secret,omitempty"`
}

func newKeyGenerateCommand(a *app) *cobra.Command {
	var out, format string
	cmd := &cobra.Command{
		Use:   "generate [-o FILE]",
		Short: "Make a new key and print its DID",
		Long: `Make a new key. With -o it is written to a file that only its owner can read, and the DID is printed; a file that is there already
is never overwritten. Without -o the key itself is printed, and the DID goes to stderr.`,
		Example: `  w3filecoin key generate -o agent.pem`,
		Args:    arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			encode, err := keyFormat(format)
			if err != nil {
				return err
			}
			s, err := wire.GenerateSigner(rand.Reader)
			if err != nil {
				return fmt.Errorf("making a key: %w", err)
			}
			shown := shownKey{DID: s.DID().String(), PublicKey: s.KeyDID().String(), File: out}
			if out == "" {
				return a.printSecret(shown, encode(s))
			}
			err = writeNew(out, []byte(encode(s)))
			if errors.Is(err, os.ErrExist) {
				return usage("name another file, or move that one away", "%s exists and is not overwritten", out)
			}
			if err != nil {
				return fmt.Errorf("writing the key: %w", err)
			}
			fmt.Fprintf(a.stderr, "the key is in %s: keep it safe, and keep a copy\n", out)
			return a.result(shown, func(w io.Writer) { fmt.Fprintln(w, shown.DID) })
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write the key to")
	addFormatFlag(cmd, &format)
	return cmd
}

func newKeyShowCommand(a *app) *cobra.Command {
	var (
		did, format string
		secret      bool
	)
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "Print the DID of a key",
		Long: `Print the DID of a key. With --did, the DID in whose name the key is to sign, it prints both, in the form in which others are told:
did:web:…=did:key:…. The private key is shown with --secret only, and then nothing else is on stdout.`,
		Example: `  w3filecoin key show storefront.pem
  w3filecoin key show storefront.pem --did did:web:storefront.example
  w3filecoin key show agent.pem --secret --format multibase     for the JavaScript tools`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			encode, err := keyFormat(format)
			if err != nil {
				return err
			}
			s, err := readSignerFor(args[0], did)
			if err != nil {
				return err
			}
			shown := shownKey{DID: s.DID().String(), PublicKey: s.KeyDID().String(), File: args[0]}
			if secret {
				return a.printSecret(shown, encode(s))
			}
			return a.result(shown, func(w io.Writer) {
				if s.DID() == s.KeyDID() {
					fmt.Fprintln(w, shown.DID)
				} else {
					fmt.Fprintf(w, "%s=%s\n", shown.DID, shown.PublicKey)
				}
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&did, "did", "", "the did:web in whose name the key signs")
	f.BoolVar(&secret, "secret", false, "print the private key")
	addFormatFlag(cmd, &format)
	return cmd
}

// printSecret prints a private key, and its DID to stderr so that stdout can become a key file.
func (a *app) printSecret(shown shownKey, secret string) error {
	shown.Secret = strings.TrimSuffix(secret, "\n")
	if !a.json {
		fmt.Fprintln(a.stderr, shown.DID)
	}
	return a.result(shown, func(w io.Writer) { fmt.Fprint(w, secret) })
}

func addFormatFlag(cmd *cobra.Command, format *string) {
	cmd.Flags().StringVar(format, "format", "pem", `of the private key: pem (PKCS#8, as OpenSSL writes it) or multibase ("Mg…", of the JavaScript tools)`)
}

// keyFormat returns how private keys are written, a line break at the end.
func keyFormat(name string) (func(capabilities.Signer) string, error) {
	switch name {
	case "pem":
		return func(s capabilities.Signer) string { return string(s.PEM()) }, nil
	case "multibase":
		return func(s capabilities.Signer) string { return s.Format() + "\n" }, nil
	}
	return nil, usage("choose pem or multibase", "there is no key format %q", name)
}

// readSignerFor reads a key that signs in the name of did, or of its own did:key if that is empty.
func readSignerFor(file, did string) (capabilities.Signer, error) {
	s, err := readSigner(file)
	if err != nil || did == "" {
		return s, err
	}
	d, err := parseDID("--did", did)
	if err != nil {
		return s, err
	}
	named, err := s.WithDID(d)
	if err != nil {
		return s, usage("name a did:web, or leave it out", "--did: %v", err)
	}
	return named, nil
}
