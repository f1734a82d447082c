package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go/logging"
	"github.com/spf13/cobra"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/aws"
	"github.com/storacha/w3filecoin/store/sqlite"
	"github.com/storacha/w3filecoin/store/transfer"
)

// roleQueues are the queues of each role: what has to be there before a role can run on AWS.
func roleQueues() aws.Layout {
	return aws.Layout{
		storefrontRole: {"submit", "validate", "computed", "piece-offer", "equals", "piece-accepted", "aggregate", "pull-aggregate", "dealt", "sweep",
			"blame", "credit", "blob-accepted", "blob-delivered", "blob-expired", "blob-removed", "claimed", "claim-forward", "import"},
		aggregatorRole:  {"piece", "lane", "plan", "walk", "aggregate-offer", "pull-aggregate", "aggregate-accepted", "deliver"},
		dealerRole:      {"offer", "publish", "poll", "dealt", "deliver"},
		dealtrackerRole: {"poll"},
		computeRole:     {"compute", "computed", "deliver"},
	}
}

// onAWS reports whether the state is on AWS rather than in a database of this machine.
func onAWS(location string) bool { return strings.HasPrefix(location, aws.Scheme+"://") }

// parseStore reads the setting that says where the state is.
func parseStore(location string) (aws.Location, error) {
	if !onAWS(location) {
		return aws.Location{}, fmt.Errorf("store %q is not aws://PREFIX?region=REGION&bucket=NAME; without one the state is in the data directory", location)
	}
	return aws.ParseLocation(location)
}

// awsOptions are those of every engine on AWS of this program.
func awsOptions(role string) aws.Options {
	return aws.Options{Role: role, Now: time.Now, After: time.After}
}

// openAWS opens a role's state on AWS for looking after it: without a relay.
func openAWS(ctx context.Context, location, role string) (*aws.Engine, error) {
	where, err := parseStore(location)
	if err != nil {
		return nil, usage("docs/operations.md describes it", "%v", err)
	}
	o := awsOptions(role)
	o.Relay = -1
	return aws.Open(ctx, where, o)
}

// openStore opens the state of a role where the configuration says, unless it is half of what `admin copy` is carrying there.
func (n *node) openStore(role string) (store.Driver, error) {
	engine, err := n.openEngine(role)
	if err != nil {
		return nil, err
	}
	// A store that does not answer now is for the workers to wait for.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := transfer.Unfinished(ctx, engine); errors.Is(err, transfer.ErrUnfinished) {
		return nil, errors.Join(&exitError{exitFailure, fmt.Errorf("%s: %w", role, err), "w3filecoin admin copy with the same --from and --to continues it"},
			engine.Close())
	}
	return engine, nil
}

func (n *node) openEngine(role string) (store.Driver, error) {
	if n.cfg.Store == "" {
		return n.openSQLite(role)
	}
	where, err := parseStore(n.cfg.Store)
	if err != nil {
		return nil, err
	}
	log := n.log.With("role", role)
	o := awsOptions(role)
	o.Poll = n.idle()
	o.Observe = func(c aws.Call) {
		n.metrics.StoreRequest(role, c.Service, c.Operation, c.Attempts, c.Capacity, c.Sent, c.Received)
	}
	o.OnError = func(err error) {
		log.Log(context.Background(), slog.LevelWarn, "messages wait in their rows", "err", err)
	}
	o.Configure = func(cfg *awssdk.Config) {
		// What the SDK would write to stderr by itself: a connection that it could not use again, a checksum that made it ask once more.
		cfg.Logger = logging.LoggerFunc(func(_ logging.Classification, format string, v ...any) {
			log.Warn("the AWS SDK says", "text", fmt.Sprintf(format, v...))
		})
	}
	engine, err := aws.Open(context.Background(), where, o)
	if err != nil {
		return nil, usage("docs/operations.md describes the setting store", "%v", err)
	}
	return engine, nil
}

func (n *node) openSQLite(role string) (store.Driver, error) {
	engine, err := sqlite.Open(filepath.Join(n.cfg.Data, role), sqlite.Options{
		Now: time.Now, OnBatch: func(b sqlite.Batch) { n.metrics.Batch(role, b.Changes, b.Took) }})
	if err != nil {
		return nil, err
	}
	n.metrics.Gauge("w3filecoin_store_wal_bytes", "Size of the database's write-ahead log.", role,
		func() float64 { return float64(engine.Stats().WALBytes) })
	n.metrics.Gauge("w3filecoin_store_bytes", "Size of the database.", role, func() float64 { return float64(engine.Stats().DBBytes) })
	return engine, nil
}

// deployment is what `admin init` and `admin check` are about.
type deployment struct {
	store string
	roles []string
}

func (d *deployment) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.store, "store", "", "where the state is: aws://PREFIX?region=REGION&bucket=NAME")
	cmd.Flags().StringSliceVar(&d.roles, "role", nil, "only of these roles: "+strings.Join(allRoles, ", "))
}

func (d *deployment) parse() (aws.Location, aws.Layout, error) {
	where, err := parseStore(d.store)
	if err != nil {
		return where, nil, usage("say it with --store", "%v", err)
	}
	layout := roleQueues()
	for _, name := range d.roles {
		if !slices.Contains(allRoles, name) {
			return where, nil, usage("choose one of "+strings.Join(allRoles, ", "), "there is no role %q", name)
		}
	}
	for name := range layout {
		if len(d.roles) > 0 && !slices.Contains(d.roles, name) {
			delete(layout, name)
		}
	}
	return where, layout, nil
}

func newInitCommand(a *app) *cobra.Command {
	var d deployment
	var keys string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Create the tables, queues and the bucket of a store on AWS",
		Long: `Create what a store on AWS lacks: tables and their indexes, queues and where their dead messages go, the bucket. What is there stays.
It is for development; for a service, deploy/terraform describes the same and what belongs to it, and admin check compares. With --keys it makes the keys
of the roles too, as files that every process needs.

Credentials are found as every program that uses the AWS SDK finds them.`,
		Example: `  w3filecoin admin init --store 'aws://w3filecoin-dev?region=eu-west-1&bucket=my-w3filecoin-dev'`,
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			where, layout, err := d.parse()
			if err != nil {
				return err
			}
			created := []string{}
			err = aws.Init(cmd.Context(), where, layout, awsOptions(""), func(what string) { created = append(created, what) })
			if err == nil && keys != "" {
				for _, role := range slices.Sorted(maps.Keys(layout)) {
					file := filepath.Join(keys, keyFile(role))
					switch kerr := makeKey(file); {
					case kerr == nil:
						created = append(created, "key "+file)
					case !errors.Is(kerr, os.ErrExist):
						err = errors.Join(err, kerr)
					}
				}
			}
			if rerr := a.result(map[string][]string{"created": created}, func(w io.Writer) {
				for _, what := range created {
					fmt.Fprintln(w, "created", what)
				}
			}); err == nil {
				err = rerr
			}
			if err == nil && len(created) == 0 {
				fmt.Fprintln(a.stderr, "everything was there")
			}
			return err
		},
	}
	d.flags(cmd)
	cmd.Flags().StringVar(&keys, "keys", "", "directory to make keys in, ROLE.pem, where there are none")
	return cmd
}

// finding is one line of `admin check`.
type finding struct {
	Resource string `json:"resource"`
	Problem  string `json:"problem"`
	Advice   bool   `json:"advice"` // it works nevertheless
}

func newCheckCommand(a *app) *cobra.Command {
	var d deployment
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what a store on AWS lacks or has set up otherwise than it needs",
		Long: `Say what a store on AWS lacks, and what is set up otherwise than the roles need. It changes nothing. Advice, as about backups, is no failure.

Credentials are found as every program that uses the AWS SDK finds them.`,
		Example: `  w3filecoin admin check --store 'aws://w3filecoin?region=eu-west-1&bucket=my-w3filecoin' --role aggregator`,
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			where, layout, err := d.parse()
			if err != nil {
				return err
			}
			found, err := aws.Check(cmd.Context(), where, layout, awsOptions(""))
			list, problems := []finding{}, 0
			for _, f := range found {
				list = append(list, finding{f.Resource, f.Problem, f.Advice})
				if !f.Advice {
					problems++
				}
			}
			rerr := a.result(list, func(w io.Writer) {
				for _, f := range list {
					kind := "problem"
					if f.Advice {
						kind = "advice"
					}
					fmt.Fprintf(w, "%s: %s %s\n", kind, f.Resource, f.Problem)
				}
			})
			switch {
			case err != nil:
				return err
			case rerr != nil:
				return rerr
			case problems > 0:
				return &exitError{exitFailure, fmt.Errorf("%d things are not as the roles need them", problems),
					"w3filecoin admin init creates what is missing"}
			}
			fmt.Fprintln(a.stderr, "everything is there")
			return nil
		},
	}
	d.flags(cmd)
	return cmd
}
