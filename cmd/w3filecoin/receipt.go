package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/capabilities"
	aggregatecap "github.com/storacha/w3filecoin/capabilities/aggregate"
	computecap "github.com/storacha/w3filecoin/capabilities/compute"
	"github.com/storacha/w3filecoin/capabilities/filecoin"
	piececap "github.com/storacha/w3filecoin/capabilities/piece"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/wire"
)

func newReceiptCommand(a *app) *cobra.Command {
	var (
		url, out string
		chain    bool
		keys     []string
	)
	cmd := &cobra.Command{
		Use:   "receipt TASK",
		Short: "Fetch the receipt of a task, or the whole chain from an offer on",
		Long: `Fetch the receipt of a task from a role: what was done, by whom, with which result, and which tasks follow from it. Its signature is
checked where the key is known: that of every did:key, and of those named with --key.

With --chain TASK is that of a filecoin/offer, and every receipt that follows from it is fetched. With -o they are saved, signed as they
are, for w3filecoin verify.

Exits with 4 if there is no receipt (yet), 3 if a signature does not hold.`,
		Example: `  w3filecoin receipt bafyrei… --json
  w3filecoin receipt bafyrei… --chain -o chain.car && w3filecoin verify chain.car`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			task, err := parseCID(args[0])
			if err != nil {
				return err
			}
			known, err := parseKeys(keys)
			if err != nil {
				return err
			}
			conn := client.Dial(url, nil)
			fetch := fetchConclusion
			if chain {
				fetch = fetchChain
			}
			m, steps, err := fetch(cmd.Context(), conn, task)
			if errors.Is(err, capabilities.ErrNoReceipt) {
				return &exitError{exitUnknown, fmt.Errorf("%s has no receipt of %s (yet)", url, task),
					"w3filecoin status shows how far the piece has come, and names its tasks"}
			}
			if err != nil {
				return err
			}
			if out != "" {
				if err := os.WriteFile(out, m.Encode(), 0o644); err != nil {
					return fmt.Errorf("saving the receipt: %w", err)
				}
				fmt.Fprintf(a.stderr, "saved %s\n", out)
			}
			shown, bad := showReceipts(cmd.Context(), m, steps, known)
			err = a.printReceipts(shown, chain)
			return errors.Join(bad, err)
		},
	}
	f := cmd.Flags()
	f.StringVar(&url, "url", defaultURL, "the role to ask, a storefront as a rule")
	f.BoolVar(&chain, "chain", false, "fetch every receipt that follows from a filecoin/offer")
	f.StringVarP(&out, "output", "o", "", "file to save the receipts in, as a CAR")
	addKeyFlag(cmd, &keys)
	return cmd
}

func fetchConclusion(ctx context.Context, conn capabilities.Conn, task cid.Cid) (*capabilities.Message, []client.Step, error) {
	m, err := conn.Receipt(ctx, task)
	if err != nil {
		return nil, nil, err
	}
	r := m.Receipt(task)
	if r == nil {
		return nil, nil, fmt.Errorf("the answer for %s holds another task's receipt", task)
	}
	step := client.Step{Task: task, Receipt: r}
	if t, ok := capabilities.FindTask(m, task); ok {
		step.Ability = t.Can()
	}
	return m, []client.Step{step}, nil
}

func fetchChain(ctx context.Context, conn capabilities.Conn, task cid.Cid) (*capabilities.Message, []client.Step, error) {
	c, err := client.Follow(ctx, conn, task)
	if err != nil {
		return nil, nil, err
	}
	steps := c.Steps()
	if can := steps[0].Ability; can != filecoin.OfferAbility {
		return nil, nil, usage("name the task of a filecoin/offer, which w3filecoin status shows", "task %s is a %s: no chain begins there", task, can)
	}
	m, err := wire.DecodeMessage(c.Encode(), wire.Limits{})
	return m, steps, err
}

// shownReceipt is one step for people and scripts.
type shownReceipt struct {
	roles.ReadableReceipt
	// Signature is "valid", "not checked" or "INVALID"; Pending: there is no receipt yet.
	Signature string `json:"signature,omitempty"`
	Pending   bool   `json:"pending,omitempty"`
	why       error
}

// showReceipts makes the receipts of a message readable and checks them. The error says which are not to be believed.
func showReceipts(ctx context.Context, m *capabilities.Message, steps []client.Step, keys capabilities.Keys) ([]shownReceipt, error) {
	readable := map[string]roles.ReadableReceipt{}
	for _, r := range roles.ReadableMessage(m) {
		readable[r.Task] = r
	}
	var list []shownReceipt
	var bad error
	for _, s := range steps {
		if s.Receipt == nil {
			list = append(list, shownReceipt{ReadableReceipt: roles.ReadableReceipt{Task: s.Task.String(), Ability: s.Ability}, Pending: true})
			continue
		}
		shown := shownReceipt{ReadableReceipt: readable[s.Task.String()], Signature: valid}
		if task, ok := capabilities.FindTask(m, s.Task); !ok {
			shown.Signature, shown.why = unchecked, errors.New("the invocation is not with it")
		} else if err := capabilities.VerifyReceipt(ctx, s.Receipt, task.UCAN, keys); errors.Is(err, capabilities.ErrInvalidReceipt) {
			shown.Signature, shown.why = invalid, err
			bad = errors.Join(bad, &exitError{exitUnproven, fmt.Errorf("receipt of %s %s: %w", s.Ability, s.Task, err), "ask another role for it"})
		} else if err != nil {
			shown.Signature, shown.why = unchecked, err
		}
		list = append(list, shown)
	}
	return list, bad
}

func (a *app) printReceipts(list []shownReceipt, chain bool) error {
	var result any = list
	if !chain {
		result = list[0]
	}
	err := a.result(result, func(w io.Writer) {
		for i, r := range list {
			if i > 0 {
				fmt.Fprintln(w)
			}
			r.text(w)
		}
	})
	hint := false
	for _, r := range list {
		if r.Signature == unchecked {
			fmt.Fprintf(a.stderr, "note: the receipt of %s is not checked: %v\n", r.Ability, r.why)
			hint = hint || errors.Is(r.why, roles.ErrNoKey)
		}
	}
	if hint {
		fmt.Fprintf(a.stderr, "  hint: %s\n", keyHint)
	}
	return err
}

func (r shownReceipt) text(w io.Writer) {
	name := r.Ability
	if name == "" {
		name = "unknown ability"
	}
	if r.Pending {
		fmt.Fprintf(w, "%s: no receipt yet\n", printable(name))
		writeRows(w, "  ", []row{{"task", r.Task}})
		return
	}
	result, value := "ok", r.OK
	if r.Error != nil {
		result, value = "error", r.Error
	}
	fmt.Fprintf(w, "%s: %s\n", printable(name), result)
	rows := []row{{"task", r.Task}, {"receipt", r.Receipt}, {"issuer", r.Issuer}, {"signature", r.Signature}, {"on", r.With}}
	rows = append(rows, fieldRows("caveat ", r.Caveats)...)
	rows = append(rows, fieldRows("", value)...)
	for _, f := range r.Fork {
		rows = append(rows, row{"fork", f})
	}
	writeRows(w, "  ", append(rows, row{"join", r.Join}))
}

// fieldRows returns the fields of a DAG-JSON map for people: links as CIDs, texts as they are, other things as short JSON.
func fieldRows(prefix string, value json.RawMessage) []row {
	var fields map[string]json.RawMessage
	if json.Unmarshal(value, &fields) != nil {
		if len(value) == 0 {
			return nil
		}
		return []row{{prefix + "value", shortJSON(value)}}
	}
	var rows []row
	for _, key := range sortedBy(fields, nil) {
		rows = append(rows, row{prefix + key, shortJSON(fields[key])})
	}
	return rows
}

// shortJSON is a DAG-JSON value in a line that fits a screen.
func shortJSON(v json.RawMessage) string {
	var text string
	if json.Unmarshal(v, &text) == nil {
		return text
	}
	var link map[string]json.RawMessage
	if json.Unmarshal(v, &link) == nil && len(link) == 1 && json.Unmarshal(link["/"], &text) == nil {
		return text
	}
	const most = 100
	if s := []rune(string(v)); len(s) > most {
		return fmt.Sprintf("%s… (%d bytes as JSON)", string(s[:most]), len(v))
	}
	return string(v)
}

// chainOrder is where a task stands in the chain from an offer to a deal; those of no chain come last.
func chainOrder(can string) int {
	order := []string{
		filecoin.OfferAbility, filecoin.SubmitAbility, computecap.PieceCIDAbility, piececap.OfferAbility, piececap.AcceptAbility,
		aggregatecap.OfferAbility, aggregatecap.AcceptAbility, filecoin.AcceptAbility,
	}
	if i := slices.Index(order, can); i >= 0 {
		return i
	}
	return len(order)
}
