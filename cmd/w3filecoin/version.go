package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker in releases: -ldflags "-X main.version=v1.2.3".
var version string

// versionInfo is which build this is.
type versionInfo struct {
	Version string `json:"version"`
	// Commit is the revision of the source, Modified whether that was changed; empty where it was built without version control.
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// buildVersion returns what the linker and the toolchain left in the binary.
func buildVersion() versionInfo {
	v := versionInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Commit = s.Value
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
	}
	switch {
	case v.Version != "":
	case ok && info.Main.Version != "" && info.Main.Version != "(devel)":
		v.Version = info.Main.Version
	default:
		v.Version = "devel"
	}
	return v
}

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print which build this is",
		Args:  arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			v := buildVersion()
			return a.result(v, func(w io.Writer) {
				fmt.Fprintf(w, "w3filecoin %s\n", v.Version)
				commit := v.Commit
				if v.Modified {
					commit += ", modified"
				}
				writeRows(w, "  ", []row{{"commit", commit}, {"go", v.Go}, {"platform", v.Platform}})
			})
		},
	}
}
