package main

import (
	"fmt"
	"log"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// Between collections the heap of a server may grow to four times what is live, some MiB whatever is pending, as long as the whole is below a
// limit: it collects a third as often as usual, and when large requests come, more often again. GOGC and GOMEMLIMIT beat these.
const (
	gcPercent   = 300
	memoryLimit = 1 << 30 // bytes
)

func newServeCommand(a *app) *cobra.Command {
	var (
		file, level string
		data        string
		location    string
		roleNames   []string
		withDevnet  bool
		check       bool
		settings    []string
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run all roles, or those named by --role, on an embedded database or on AWS",
		Long: `Run all roles in one process, or those named by --role. State is kept in the data directory: a database, a key and
blobs per role. With --store rows, messages and blobs are in DynamoDB, SQS and S3, and any number of processes may run the same role. A role that does not run here is named in the configuration by DID, URL and delegation.

Settings come from the file, from the environment (W3FILECOIN_STOREFRONT_LISTEN for storefront.listen) and from --set, the later
beating the earlier. docs/operations.md describes every one.`,
		Example: `  w3filecoin serve --config w3filecoin.toml
  w3filecoin serve --role aggregator --data /var/lib/w3filecoin --config aggregator.toml
  w3filecoin serve --devnet            with a simulated chain and storage provider, to try things out`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := readConfig(file, os.Environ())
			if err != nil {
				return err
			}
			if data != "" {
				cfg.Data = data
			}
			if location != "" {
				cfg.Store = location
			}
			if len(roleNames) > 0 {
				cfg.Roles = roleNames
			}
			cfg.Devnet.Enabled = cfg.Devnet.Enabled || withDevnet
			for _, s := range settings {
				name, value, ok := strings.Cut(s, "=")
				if !ok {
					return usage("write it as storefront.listen=127.0.0.1:9001", "--set %q has no value", s)
				}
				if err := cfg.set(strings.ReplaceAll(name, ".", "_"), value); err != nil {
					return usage("docs/operations.md describes every setting", "--set %s: %v", name, err)
				}
			}
			if check {
				if err := cfg.validate(); err != nil {
					return err
				}
				fmt.Fprintln(a.stderr, "the configuration is complete")
				return nil
			}
			l, err := parseLevel(level)
			if err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(gcPercent)
			}
			if os.Getenv("GOMEMLIMIT") == "" {
				debug.SetMemoryLimit(memoryLimit)
			}
			logger := a.logger(l)
			// What net/http says by itself, of servers that send what nobody asked for, concerns nobody but who debugs.
			log.SetFlags(0)
			log.SetOutput(slog.NewLogLogger(logger.Handler(), slog.LevelDebug).Writer())
			n, err := build(cfg, logger)
			if err != nil {
				return err
			}
			a.announce(n)
			err = n.run(cmd.Context())
			if cerr := n.close(); err == nil {
				err = cerr
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration file (TOML)")
	f.StringVar(&data, "data", "", "directory of all state")
	f.StringVar(&location, "store", "", "where the state is instead: aws://PREFIX?region=REGION&bucket=NAME")
	f.StringSliceVar(&roleNames, "role", nil, "run only these roles: "+strings.Join(allRoles, ", ")+", "+devnetName)
	f.BoolVar(&withDevnet, "devnet", false, "run a SIMULATED chain and storage provider beside the roles")
	f.StringVar(&level, "log", "info", "log level: debug, info, warn, error")
	f.BoolVar(&check, "check", false, "check the configuration and exit")
	f.StringArrayVar(&settings, "set", nil, "set one setting, as in storefront.listen=127.0.0.1:9001")
	return cmd
}

// roleAddress is where a role of this process is reached.
type roleAddress struct {
	Role string `json:"role"`
	URL  string `json:"url"`
	DID  string `json:"did,omitempty"` // the devnet has none
}

// announce says on stderr where everything is; with --json on stdout, one line, so that a script can read it.
func (a *app) announce(n *node) {
	var list []roleAddress
	for _, name := range allRoles {
		if n.roles[name] != nil {
			list = append(list, roleAddress{name, n.cfg.url(name), n.signers[name].DID().String()})
		}
	}
	if n.devnet != nil && a.json {
		list = append(list, roleAddress{Role: devnetName, URL: n.devnet.url})
	}
	if a.json {
		// Nothing can be done about a reader that is gone.
		_ = a.result(list, nil)
		return
	}
	for _, r := range list {
		fmt.Fprintf(a.stderr, "%-12s %-28s %s\n", r.Role, r.URL, r.DID)
	}
	if n.admin != nil {
		fmt.Fprintf(a.stderr, "%-12s %-28s token in %s\n", "admin", n.admin.url, tokenFile(n.cfg.Data))
	}
	if n.devnet != nil {
		fmt.Fprintf(a.stderr, "%-12s %-28s simulated: nothing is stored on Filecoin\n", devnetName, n.devnet.url)
	}
}
