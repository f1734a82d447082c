package roles_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/roles"
	"github.com/storacha/w3filecoin/tasks"
)

// TestSteps: every step is measured by state; aggregates and pieces that end badly are logged, pieces that move on only where somebody debugs.
func TestSteps(t *testing.T) {
	var logged bytes.Buffer
	m := roles.NewMetrics()
	link, err := piece.Sum([]byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	step := m.Step("storefront", slog.New(slog.NewJSONHandler(&logged, nil)))
	step(tasks.Step{Of: "piece", Link: link, To: "validated", Age: 2 * time.Second})
	step(tasks.Step{Of: "piece", Link: link, To: "invalid", Age: 5 * time.Second, Reason: "another piece"})
	step(tasks.Step{Of: "aggregate", Link: link, To: "dealt", Age: 20 * time.Hour})

	var lines []map[string]any
	for dec := json.NewDecoder(&logged); ; {
		var line map[string]any
		if err := dec.Decode(&line); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		delete(line, slog.TimeKey)
		delete(line, "task")
		lines = append(lines, line)
	}
	want := []map[string]any{
		{"level": "INFO", "msg": "a piece moved on", "role": "storefront", "piece": link.String(), "state": "invalid", "age": 5e9, "reason": "another piece"},
		{"level": "INFO", "msg": "an aggregate moved on", "role": "storefront", "aggregate": link.String(), "state": "dealt", "age": 72e12},
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("logged (-want +got):\n%s", diff)
	}

	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), "GET", "/metrics", nil))
	for _, line := range []string{
		`w3filecoin_state_age_seconds_count{of="piece",role="storefront",state="validated"} 1`,
		`w3filecoin_state_age_seconds_bucket{of="aggregate",role="storefront",state="dealt",le="43200"} 0`,
		`w3filecoin_state_age_seconds_bucket{of="aggregate",role="storefront",state="dealt",le="86400"} 1`,
	} {
		if !strings.Contains(w.Body.String(), line) {
			t.Errorf("%s is not among the measurements", line)
		}
	}
}
