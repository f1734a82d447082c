package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/sqlite"
)

func newAdminCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "admin",
		Short: "Look after a role's state",
		Args:  arguments(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newDeadCommand(a), newStandingsCommand(a), newInitCommand(a), newCheckCommand(a), newCopyCommand(a))
	return cmd
}

// deadSource is where the command line finds dead letters and standings.
type deadSource struct {
	data, store, url, token string
}

func newDeadCommand(a *app) *cobra.Command {
	src := new(deadSource)
	cmd := &cobra.Command{
		Use:   "dead",
		Short: "List, read, retry and drop messages that failed for the last time",
		Long: `List, read, retry and drop dead letters: messages that failed for the last time, after about nine hours of tries. What they were to do
has not been done. Find out why, mend that, and retry them.

While a process runs it holds its databases: ask it by its admin interface, with --url. The setting admin says where that listens; it is off
by default. Otherwise the databases below --data are opened directly. A store on AWS is opened at any time, with --store.`,
		Example: `  w3filecoin admin dead list --url http://127.0.0.1:8010
  w3filecoin admin dead retry --all --queue piece-offer --url http://127.0.0.1:8010`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	src.addFlags(cmd)
	cmd.AddCommand(newDeadListCommand(a, src), newDeadShowCommand(a, src), newDeadRetryCommand(a, src), newDeadDropCommand(a, src))
	return cmd
}

// addFlags adds the flags that say where the state is.
func (s *deadSource) addFlags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&s.data, "data", defaultConfig().Data, "directory of the state")
	f.StringVar(&s.store, "store", "", "where the state is instead: aws://PREFIX?region=REGION&bucket=NAME")
	f.StringVar(&s.url, "url", "", "admin interface of the process that runs, http://127.0.0.1:8010")
	f.StringVar(&s.token, "token-file", "", "file of its token; admin.token in the directory of the state if empty")
}

// administered is the state of some roles as operators look after it.
type administered interface {
	deadLetters
	standingBook
}

// open returns the state of some roles, of all that there are if none is named. The databases are closed by the function that is returned.
func (s *deadSource) open(names ...string) (state administered, done func() error, err error) {
	if s.url != "" {
		file := s.token
		if file == "" {
			file = tokenFile(s.data)
		}
		token, err := readToken(file)
		if err != nil {
			return nil, nil, usage("it is in the data directory of the process: name that with --data, or the file with --token-file", "%v", err)
		}
		return remoteDead{strings.TrimSuffix(s.url, "/"), token}, func() error { return nil }, nil
	}
	var open openDatabases
	var engines []store.Driver
	done = func() (err error) {
		for _, e := range engines {
			err = errors.Join(err, e.Close())
		}
		return err
	}
	for _, name := range allRoles {
		if len(names) > 0 && !slices.Contains(names, name) {
			continue
		}
		if s.store != "" {
			engine, err := openAWS(context.Background(), s.store, name)
			if err != nil {
				return nil, nil, errors.Join(err, done())
			}
			engines = append(engines, engine)
			open = append(open, roleRows{name, engine})
			continue
		}
		dir := filepath.Join(s.data, name)
		// Opening would make a database where there is none.
		_, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var engine *sqlite.Engine
		if err == nil {
			engine, err = sqlite.Open(dir, sqlite.Options{Now: time.Now})
		}
		if err != nil {
			return nil, nil, errors.Join(&exitError{exitFailure, err,
				`if a process runs on it, ask that one: give it the setting admin = "127.0.0.1:8010", and use --url http://127.0.0.1:8010`}, done())
		}
		engines = append(engines, engine)
		open = append(open, roleRows{name, engine})
	}
	if len(open) == 0 {
		what := "no role has state"
		if len(names) > 0 {
			what = "there is no state of the " + strings.Join(names, ", ")
		}
		return nil, nil, usage("name the data directory with --data", "%s in %s", what, s.data)
	}
	return open, done, nil
}

// with runs do on the state of some roles and closes what was opened for it.
func (s *deadSource) with(names []string, do func(administered) error) error {
	state, done, err := s.open(names...)
	if err != nil {
		return err
	}
	return errors.Join(do(state), done())
}

// showList shows the first rows of a list, of one role or of all, none at all as none says.
func showList[T any](a *app, src *deadSource, filter deadFilter, limit int, none string,
	list func(administered) ([]T, string, error), write func(io.Writer, []T)) error {
	names, err := filter.roles()
	if err != nil {
		return err
	}
	if limit < 1 || limit > store.MaxPage {
		return usage("", "--limit is a number up to %d", store.MaxPage)
	}
	return src.with(names, func(state administered) error {
		rows, next, err := list(state)
		if err != nil {
			return err
		}
		if rows == nil {
			rows = []T{}
		}
		err = a.result(rows, func(w io.Writer) { write(w, rows) })
		if len(rows) == 0 {
			fmt.Fprintln(a.stderr, none)
		}
		if next != "" {
			fmt.Fprintf(a.stderr, "these are the first %d; see more with --limit\n", len(rows))
		}
		return err
	})
}

// addFilterFlags adds the flags that choose dead letters.
func addFilterFlags(cmd *cobra.Command, f *deadFilter) {
	cmd.Flags().StringVar(&f.role, "role", "", "only of this role: "+strings.Join(allRoles, ", "))
	cmd.Flags().StringVar(&f.queue, "queue", "", "only of this queue")
}

// roles returns the roles of a filter, none for all.
func (f deadFilter) roles() ([]string, error) {
	switch {
	case f.role == "":
		return nil, nil
	case !slices.Contains(allRoles, f.role):
		return nil, usage("choose one of "+strings.Join(allRoles, ", "), "there is no role %q", f.role)
	}
	return []string{f.role}, nil
}

func newDeadListCommand(a *app, src *deadSource) *cobra.Command {
	var filter deadFilter
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List dead letters",
		Args:  arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return showList(a, src, filter, limit, "there are no dead letters", func(state administered) ([]deadLetter, string, error) {
				return state.list(cmd.Context(), filter, "", limit)
			}, writeDeadList)
		},
	}
	addFilterFlags(cmd, &filter)
	cmd.Flags().IntVar(&limit, "limit", 100, "list at most so many")
	return cmd
}

func writeDeadList(w io.Writer, letters []deadLetter) {
	if len(letters) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tDIED\tTRIES\tERROR")
	for _, l := range letters {
		line, _, _ := strings.Cut(l.Error, "\n")
		if r := []rune(line); len(r) > 120 {
			line = string(r[:119]) + "…"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\n", printable(l.ID), when(l.Died), l.Attempts, printable(line))
	}
	_ = t.Flush() // as little can be done as about any other output
}

func newDeadShowCommand(a *app, src *deadSource) *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show what a dead letter was to do, and how its tries failed",
		Args:  arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseDeadID(args[0])
			if err != nil {
				return err
			}
			return src.with([]string{id.role}, func(dead administered) error {
				l, err := dead.get(cmd.Context(), id)
				if err != nil {
					return unknownLetter(err)
				}
				return a.result(l, func(w io.Writer) { writeDead(w, l) })
			})
		},
	}
}

func writeDead(w io.Writer, l deadLetter) {
	writeRows(w, "", []row{{"dead letter", printable(l.ID)}, {"message", printable(string(l.Body))}, {"sent", when(l.Enqueued)}, {"died", when(l.Died)},
		{"tries", strconv.Itoa(l.Attempts)}})
	fmt.Fprintln(w, "error")
	writeLines(w, l.Error)
	if len(l.History) > 1 {
		for _, h := range l.History {
			fmt.Fprintf(w, "try %d, %s\n", h.Attempt, when(h.At))
			writeLines(w, h.Error)
		}
	}
}

// writeLines writes text of another party's, indented.
func writeLines(w io.Writer, text string) {
	for line := range strings.SplitSeq(text, "\n") {
		fmt.Fprintln(w, "  "+printable(strings.ReplaceAll(line, "\t", "  ")))
	}
}

func unknownLetter(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return &exitError{exitUnknown, err, "somebody may have retried or dropped it; w3filecoin admin dead list shows what there is"}
	}
	return err
}

func newDeadRetryCommand(a *app, src *deadSource) *cobra.Command {
	var filter deadFilter
	var all bool
	cmd := &cobra.Command{
		Use:   "retry ID...|--all",
		Short: "Deliver dead letters again, with all tries before them",
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case all && len(args) > 0, !all && len(args) == 0:
				return usage(cmd.CommandPath()+" --help shows what it takes", "name dead letters, or say --all")
			case !all && filter != (deadFilter{}):
				return usage("leave them out", "--role and --queue are for --all")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if !all {
				return a.eachLetter(cmd.Context(), src, args, "retried", deadLetters.retry)
			}
			names, err := filter.roles()
			if err != nil {
				return err
			}
			return src.with(names, func(dead administered) error {
				retried, err := retryAll(cmd.Context(), dead, filter)
				return errors.Join(a.done("retried", retried), err)
			})
		},
	}
	addFilterFlags(cmd, &filter)
	cmd.Flags().BoolVar(&all, "all", false, "all of them, or all that --role and --queue leave")
	return cmd
}

// retryAll retries what there is now: letters that die meanwhile, perhaps again, stand behind in the list or are left for another time.
func retryAll(ctx context.Context, dead deadLetters, f deadFilter) (retried []string, err error) {
	for cursor := ""; ; {
		letters, next, err := dead.list(ctx, f, cursor, store.MaxPage)
		if err != nil {
			return retried, err
		}
		for _, l := range letters {
			id, err := parseDeadID(l.ID)
			if err == nil {
				err = dead.retry(ctx, id)
			}
			switch {
			case errors.Is(err, store.ErrNotFound): // somebody else was faster
			case err != nil:
				return retried, err
			default:
				retried = append(retried, l.ID)
			}
		}
		if cursor = next; cursor == "" {
			return retried, nil
		}
	}
}

func newDeadDropCommand(a *app, src *deadSource) *cobra.Command {
	return &cobra.Command{
		Use:   "drop ID...",
		Short: "Remove dead letters for good: what they were to do is never done",
		Args:  arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachLetter(cmd.Context(), src, args, "dropped", deadLetters.drop)
		},
	}
}

// eachLetter does something to each dead letter that is named.
func (a *app) eachLetter(ctx context.Context, src *deadSource, args []string, what string,
	do func(deadLetters, context.Context, deadID) error) error {
	return eachNamed(a, src, args, parseDeadID, what, func(dead administered, id deadID) error { return unknownLetter(do(dead, ctx, id)) })
}

// eachNamed does something to each that is named, by its role and a name there, and tells with which it was done. One that fails does not keep the
// others from it.
func eachNamed[ID fmt.Stringer](a *app, src *deadSource, args []string, parse func(string) (ID, error), what string, do func(administered, ID) error) error {
	var ids []ID
	var roles []string
	for _, arg := range args {
		id, err := parse(arg)
		if err != nil {
			return err
		}
		role, _, _ := strings.Cut(id.String(), "/")
		ids, roles = append(ids, id), append(roles, role)
	}
	return src.with(roles, func(state administered) error {
		var done []string
		var errs []error
		for _, id := range ids {
			if err := do(state, id); err != nil {
				errs = append(errs, err)
				continue
			}
			done = append(done, id.String())
		}
		return errors.Join(append([]error{a.done(what, done)}, errs...)...)
	})
}

// done tells what was done with which dead letters.
func (a *app) done(what string, ids []string) error {
	if ids == nil {
		ids = []string{}
	}
	return a.result(map[string][]string{what: ids}, func(w io.Writer) {
		for _, id := range ids {
			fmt.Fprintf(w, "%s %s\n", what, printable(id))
		}
	})
}
