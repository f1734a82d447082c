package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/broker"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/aws"
	"github.com/storacha/w3filecoin/store/sqlite"
	"github.com/storacha/w3filecoin/store/transfer"
)

// place is one side of a copy: a data directory, or a location on AWS.
type place struct {
	name  string // with its scheme
	data  string // empty: on AWS
	where aws.Location
}

const sqliteScheme = "sqlite:"

func parsePlace(flag, text string) (place, error) {
	if dir, ok := strings.CutPrefix(text, sqliteScheme); ok && dir != "" {
		dir, err := filepath.Abs(dir)
		return place{name: sqliteScheme + dir, data: dir}, err
	}
	if onAWS(text) {
		where, err := aws.ParseLocation(text)
		if err != nil {
			return place{}, usage("docs/operations.md describes it", "--%s: %v", flag, err)
		}
		return place{name: where.String(), where: where}, nil
	}
	return place{}, usage("w3filecoin admin copy --help has an example", "--%s is sqlite:DIRECTORY or aws://PREFIX?region=REGION&bucket=NAME", flag)
}

// layout are the queues of some roles.
func layout(roles []string) aws.Layout {
	l := roleQueues()
	for name := range l {
		if !slices.Contains(roles, name) {
			delete(l, name)
		}
	}
	return l
}

// having returns those of the roles that have state there. On AWS that is a table of rows.
func (p place) having(ctx context.Context, roles []string) (there []string, err error) {
	missing := map[string]bool{}
	if p.data == "" {
		found, err := aws.Check(ctx, p.where, layout(roles), awsOptions(""))
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			missing[f.Resource] = missing[f.Resource] || !f.Advice
		}
	}
	for _, role := range roles {
		if p.data == "" {
			if !missing["table "+p.where.RowTable(role)] {
				there = append(there, role)
			}
			continue
		}
		switch _, err := os.Stat(filepath.Join(p.data, role, "role.db")); {
		case err == nil:
			there = append(there, role)
		case !errors.Is(err, os.ErrNotExist):
			return nil, err
		}
	}
	return there, nil
}

// ready makes sure that all is there for the state of some roles to come. A data directory is created.
func (p place) ready(ctx context.Context, roles []string) error {
	if p.data != "" {
		return nil
	}
	found, err := aws.Check(ctx, p.where, layout(roles), awsOptions(""))
	if err != nil {
		return err
	}
	for _, f := range found {
		if !f.Advice {
			return &exitError{exitFailure, fmt.Errorf("%s: %s %s", p.name, f.Resource, f.Problem),
				"w3filecoin admin init --store creates what is missing, w3filecoin admin check --store lists it"}
		}
	}
	return nil
}

func (p place) open(ctx context.Context, role string) (transfer.Side, error) {
	if p.data == "" {
		engine, err := openAWS(ctx, p.name, role)
		if err != nil {
			return transfer.Side{}, err
		}
		return transfer.Side{Name: p.name, Driver: engine, Exporter: engine}, nil
	}
	engine, err := sqlite.Open(filepath.Join(p.data, role), sqlite.Options{Now: time.Now})
	if err != nil {
		return transfer.Side{}, &exitError{exitFailure, err, "no process may run on either side while the state is copied: stop it"}
	}
	return transfer.Side{Name: p.name, Driver: engine, Exporter: engine}, nil
}

// copied is what became of one role.
type copied struct {
	Role string `json:"role"`
	transfer.Report
	// Uploads are the contents that a storefront keeps itself.
	Uploads *transfer.Sum `json:"uploads,omitempty"`
}

func newCopyCommand(a *app) *cobra.Command {
	var from, to string
	var chosen []string
	var uploads bool
	cmd := &cobra.Command{
		Use:   "copy",
		Short: "Carry the state of stopped roles to another engine",
		Long: `Carry rows, messages and blobs of roles that no process runs from one engine to another, and compare both sides by count and hash. What was uploaded to the
storefront goes with its state. Keys are not carried, nor what is in buckets and directories of the configuration.

The target has to be empty; on AWS it has to have been created. A copy that was interrupted, or failed, continues when it is begun again; until
it has ended no role starts on the target. The source stays as it is, but must not be used again once the target is.

With --uploads nothing but uploads is carried, to a storefront that has some already or not; both may run.`,
		Example: `  w3filecoin admin copy --from sqlite:/var/lib/w3filecoin --to 'aws://w3filecoin?region=eu-west-1&bucket=my-w3filecoin'
  w3filecoin admin copy --from 'aws://w3filecoin?region=eu-west-1&bucket=my-w3filecoin' --to sqlite:/var/lib/w3filecoin`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			source, err := parsePlace("from", from)
			if err != nil {
				return err
			}
			target, err := parsePlace("to", to)
			if err != nil {
				return err
			}
			if source.name == target.name {
				return usage("", "--from and --to are the same")
			}
			for _, name := range chosen {
				if !slices.Contains(allRoles, name) {
					return usage("choose one of "+strings.Join(allRoles, ", "), "there is no role %q", name)
				}
			}
			if uploads {
				if len(chosen) > 0 {
					return usage("leave --role out", "--uploads is about the storefront alone")
				}
				sum, err := a.copyUploads(cmd.Context(), source, target)
				if err != nil {
					return err
				}
				c := copied{Role: storefrontRole, Uploads: &sum}
				return a.result(map[string]transfer.Sum{"uploads": sum}, func(w io.Writer) { writeCopied(w, []copied{c}) })
			}
			done, err := a.copyRoles(cmd.Context(), source, target, chosen)
			if len(done) > 0 {
				err = errors.Join(a.result(done, func(w io.Writer) { writeCopied(w, done) }), err)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "where the state is: sqlite:DIRECTORY or aws://PREFIX?region=REGION&bucket=NAME")
	cmd.Flags().StringVar(&to, "to", "", "where it shall be, likewise")
	cmd.Flags().BoolVar(&uploads, "uploads", false, "carry nothing but what was uploaded to the storefront")
	cmd.Flags().StringSliceVar(&chosen, "role", nil, "only of these roles, instead of all that there are: "+strings.Join(allRoles, ", "))
	return cmd
}

// copyRoles returns what was done even if it could not do all.
func (a *app) copyRoles(ctx context.Context, source, target place, chosen []string) (done []copied, err error) {
	wanted := slices.Clone(allRoles) // in their order, each once
	if len(chosen) > 0 {
		wanted = slices.DeleteFunc(wanted, func(role string) bool { return !slices.Contains(chosen, role) })
	}
	roles, err := source.having(ctx, wanted)
	if err != nil {
		return nil, err
	}
	if len(roles) == 0 || len(chosen) > 0 && len(roles) < len(wanted) {
		return nil, usage("name what there is with --from and --role", "%s has no state of %s", source.name, strings.Join(without(wanted, roles), ", "))
	}
	if err := target.ready(ctx, roles); err != nil {
		return nil, err
	}
	// All are opened before anything is written: a process that has one of them is noticed in time.
	type pair struct{ from, to transfer.Side }
	var pairs []pair
	defer func() {
		for _, p := range pairs {
			err = errors.Join(err, p.from.Close(), p.to.Close())
		}
	}()
	for _, role := range roles {
		from, err := source.open(ctx, role)
		if err != nil {
			return nil, err
		}
		to, err := target.open(ctx, role)
		if err != nil {
			return nil, errors.Join(err, from.Close())
		}
		pairs = append(pairs, pair{from, to})
	}
	for i, role := range roles {
		c := copied{Role: role}
		if role == storefrontRole { // before the state that names them
			sum, err := a.copyUploads(ctx, source, target)
			if err != nil {
				return done, err
			}
			c.Uploads = &sum
		}
		if role == dealerRole && source.data != "" {
			if err := adoptDocuments(ctx, source, pairs[i].from); err != nil {
				return done, copyError(role, err)
			}
		}
		read, say, end := a.counting(role)
		c.Report, err = transfer.Copy(ctx, pairs[i].from, pairs[i].to, transfer.Options{
			Now: time.Now, Queues: roleQueues()[role], Read: read, Say: func(step string) { say(role + ": " + step) }})
		end()
		if err != nil {
			return done, copyError(role, err)
		}
		done = append(done, c)
	}
	return done, nil
}

// adoptDocuments takes offer documents into the state of a dealer that an earlier version kept beside it, as its next start would have.
func adoptDocuments(ctx context.Context, source place, dealer transfer.Side) error {
	if err := transfer.Unfinished(ctx, dealer); err != nil {
		return fmt.Errorf("the source: %w", err)
	}
	documents, err := broker.OpenDocuments(broker.DocumentsConfig{Store: dealer})
	if err != nil {
		return err
	}
	_, err = documents.Adopt(ctx, filepath.Join(source.data, offersName))
	return err
}

func (a *app) copyUploads(ctx context.Context, source, target place) (transfer.Sum, error) {
	read, _, end := a.counting(storefrontRole + ": uploads")
	defer end()
	sum, err := carryUploads(ctx, source, target, read)
	if err != nil {
		return sum, copyError(storefrontRole, fmt.Errorf("carrying uploads: %w", err))
	}
	return sum, nil
}

func without(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(some, s) })
}

// copyError adds what to do.
func copyError(role string, err error) error {
	err = fmt.Errorf("%s: %w", role, err)
	switch {
	case errors.Is(err, store.ErrOnLease):
		return &exitError{exitUnfinished, err, "try again in a quarter of an hour: it continues where it is"}
	case errors.Is(err, transfer.ErrChanged):
		return &exitError{exitFailure, err, "stop every process of the role, then begin anew with an empty target"}
	case errors.Is(err, transfer.ErrOccupied):
		return &exitError{exitRefused, err, "copy into an empty data directory, or to tables and queues of another prefix"}
	case errors.Is(err, transfer.ErrUnfinished):
		return &exitError{exitRefused, err, "end that copy first: the same command again continues it"}
	case errors.Is(err, context.Canceled):
		return err
	}
	return &exitError{exitFailure, err, "the same command again continues where it is"}
}

func writeCopied(w io.Writer, done []copied) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ROLE\tWHAT\tCOUNT\tBYTES\tHASH OF BOTH SIDES")
	for _, c := range done {
		type line struct {
			what string
			sum  transfer.Sum
		}
		var lines []line
		if c.Uploads != nil {
			lines = append(lines, line{uploadsName, *c.Uploads})
		}
		if c.Rows.Hash != "" { // the state was carried too
			lines = append(lines, line{"rows", c.Rows}, line{"messages", c.Messages}, line{"blobs", c.Blobs})
		}
		for _, line := range lines {
			note := ""
			if c.Already {
				note = " (copied before)"
			}
			fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s%s\n", c.Role, line.what, line.sum.Count, line.sum.Bytes, line.sum.Hash, note)
		}
	}
	_ = t.Flush() // as little can be done as about any other output
}
