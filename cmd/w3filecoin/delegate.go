package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/wire"
	"github.com/storacha/w3filecoin/wire/cbor"
)

func newDelegateCommand(a *app) *cobra.Command {
	var (
		key, did, to, with, out string
		can, proofs             []string
		expire                  time.Duration
	)
	cmd := &cobra.Command{
		Use:   "delegate --key FILE --to DID --can ABILITY -o FILE",
		Short: "Let somebody else invoke abilities of yours",
		Long: `Sign a delegation: whoever holds the key lets another DID invoke abilities on a resource, its own DID unless --with names another. The
file holds the delegation and what it rests on, and is not secret: without the key of the DID that it is for, it is of no use.

Roles that are run by different operators need standing delegations. Each is made by the operator of the role that is invoked, for the
role that invokes it, and is named there as "proof":

  from         to            ability             named in
  aggregator   storefront    piece/offer         storefront.aggregator.proof
  compute      storefront    compute/piececid    storefront.compute.proof
  dealer       aggregator    aggregate/offer     aggregator.dealer.proof

They must not expire, as work that was promised with them may wait for days, and a role refuses to start with one that does; whoever is to
be shut out is removed from the configuration of the role that is invoked. Between roles of one process none is needed.`,
		Example: `  w3filecoin delegate --key aggregator.pem --to did:web:storefront.example --can piece/offer -o storefront.proof
  w3filecoin delegate --key space.pem --to "$(w3filecoin key show agent.pem)" --can filecoin/offer --expire 720h -o space.proof
  w3filecoin delegate show storefront.proof`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			issuer, err := readSignerFor(key, did)
			if err != nil {
				return err
			}
			audience, err := parseDID("--to", to)
			if err != nil {
				return err
			}
			resource := issuer.DID()
			if with != "" {
				if resource, err = parseDID("--with", with); err != nil {
					return err
				}
			}
			if len(can) == 0 {
				return usage("name what may be invoked, like --can piece/offer", "--can is missing")
			}
			if out == "" {
				return usage("name the file to write, like -o storefront.proof", "-o is missing")
			}
			var terms capabilities.Terms
			if cmd.Flags().Changed("expire") {
				if expire < time.Second {
					return usage("leave it out for a delegation that does not expire", "--expire %s is no time at all", expire)
				}
				terms.Expiration = time.Now().Add(expire)
			}
			for _, file := range proofs {
				d, err := readDelegation(file)
				if err != nil {
					return err
				}
				terms.Proofs = append(terms.Proofs, d)
			}
			var grants []capabilities.Grant
			for _, ability := range can {
				grants = append(grants, capabilities.Grant{Can: ability, With: resource.String()})
			}
			d, err := capabilities.Delegate(issuer, audience, grants, terms)
			if errors.Is(err, wire.ErrMalformed) {
				return usage("an ability looks like piece/offer, filecoin/* or *", "%v", err)
			}
			if err != nil {
				return err
			}
			if resource != issuer.DID() && len(proofs) == 0 {
				fmt.Fprintf(a.stderr, "note: without a --proof that %s gave the authority to %s, this grants nothing\n", resource, issuer.DID())
			}
			if err := os.WriteFile(out, capabilities.Archive(d), 0o644); err != nil {
				return fmt.Errorf("writing the delegation: %w", err)
			}
			shown := showDelegation(d)
			shown.File = out
			return a.result(shown, shown.text)
		},
	}
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "file of the key that signs")
	f.StringVar(&did, "did", "", "the did:web in whose name the key signs")
	f.StringVar(&to, "to", "", "whom it is for")
	f.StringArrayVar(&can, "can", nil, "the ability that may be invoked; repeatable")
	f.StringVar(&with, "with", "", "the DID that it may be invoked on; the signer's own if empty")
	f.StringArrayVar(&proofs, "proof", nil, "file of a delegation that gives the signer authority over --with; repeatable")
	f.DurationVar(&expire, "expire", 0, "how long it is good for, like 720h; for ever if not given")
	f.StringVarP(&out, "output", "o", "", "file to write")
	cmd.AddCommand(newDelegateShowCommand(a))
	return cmd
}

func newDelegateShowCommand(a *app) *cobra.Command {
	var keys []string
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "Say what a delegation grants",
		Long: `Say what a delegation grants, to whom, by whom and how long, and check its signature. Exits with 3 if the signature does not hold.
Whether the proofs that it rests on give its issuer that authority is for the role that is invoked to judge.`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			known, err := parseKeys(keys)
			if err != nil {
				return err
			}
			d, err := readDelegation(args[0])
			if err != nil {
				return err
			}
			shown := showDelegation(d)
			shown.File = args[0]
			v, err := known.Verifier(cmd.Context(), d.Issuer)
			switch {
			case errors.Is(err, roles.ErrNoKey):
				shown.Signature = unchecked
				fmt.Fprintf(a.stderr, "note: the signature is not checked, no key of %s is known\n  hint: %s\n", d.Issuer, keyHint)
			case err != nil:
				return err
			default:
				if err := d.Verify(v); err != nil {
					return &exitError{exitUnproven, fmt.Errorf("%s: %w", args[0], err), "ask its issuer for another one"}
				}
			}
			return a.result(shown, shown.text)
		},
	}
	addKeyFlag(cmd, &keys)
	return cmd
}

// What is said of a signature that was looked at.
const (
	valid     = "valid"
	unchecked = "not checked"
	invalid   = "INVALID"
)

// readDelegation reads a file that [newDelegateCommand] or another implementation wrote.
func readDelegation(file string) (capabilities.Delegation, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return capabilities.Delegation{}, usage("name the file of a delegation", "reading the delegation: %v", err)
	}
	d, err := capabilities.Extract(b)
	if err != nil {
		return d, usage("name a file that `w3filecoin delegate` wrote", "%s: %v", file, err)
	}
	return d, nil
}

// shownDelegation is a delegation for people and scripts.
type shownDelegation struct {
	File       string       `json:"file"`
	Delegation string       `json:"delegation"`
	Issuer     string       `json:"issuer"`
	Audience   string       `json:"audience"`
	Grants     []shownGrant `json:"grants"`
	NotBefore  time.Time    `json:"notBefore,omitzero"`
	Expires    time.Time    `json:"expires,omitzero"` // absent: never
	Proofs     []string     `json:"proofs,omitempty"`
	Signature  string       `json:"signature"`
}

type shownGrant struct {
	Can     string          `json:"can"`
	With    string          `json:"with"`
	Caveats json.RawMessage `json:"caveats,omitempty"`
}

func showDelegation(d capabilities.Delegation) shownDelegation {
	s := shownDelegation{Delegation: d.Link().String(), Issuer: d.Issuer.String(), Audience: d.Audience.String(), Signature: valid}
	for _, c := range d.Capabilities {
		g := shownGrant{Can: c.Can, With: c.With}
		if c.Nb != nil {
			// A map without a JSON form is not shown.
			g.Caveats, _ = cbor.ToJSON(c.Nb)
		}
		s.Grants = append(s.Grants, g)
	}
	if d.NotBefore != 0 {
		s.NotBefore = time.Unix(d.NotBefore, 0).UTC()
	}
	if d.Expiration != nil {
		s.Expires = time.Unix(*d.Expiration, 0).UTC()
	}
	for _, p := range d.UCAN.Proofs {
		s.Proofs = append(s.Proofs, p.String())
	}
	return s
}

func (s shownDelegation) text(w io.Writer) {
	expires := "never"
	if !s.Expires.IsZero() {
		expires = when(s.Expires)
	}
	rows := []row{{"file", s.File}, {"delegation", s.Delegation}, {"from", s.Issuer}, {"to", s.Audience}}
	for _, g := range s.Grants {
		may := g.Can + " on " + g.With
		if len(g.Caveats) > 0 && string(g.Caveats) != "{}" {
			may += " where " + string(g.Caveats)
		}
		rows = append(rows, row{"may", may})
	}
	rows = append(rows, row{"not before", when(s.NotBefore)}, row{"expires", expires},
		row{"rests on", strings.Join(s.Proofs, " ")}, row{"signature", s.Signature})
	writeRows(w, "", rows)
}
