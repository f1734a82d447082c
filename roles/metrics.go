package roles

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/tasks"
)

// Metrics are the measurements of a process, served at GET /metrics of each of its roles. Units are in the names.
type Metrics struct {
	registry    *prometheus.Registry
	invocations *prometheus.CounterVec
	invocation  *prometheus.HistogramVec
	messages    *prometheus.CounterVec
	message     *prometheus.HistogramVec
	age         *prometheus.HistogramVec
	commits     *prometheus.CounterVec
	commit      *prometheus.HistogramVec
	steps       *prometheus.HistogramVec
	requests    *prometheus.CounterVec
	capacity    *prometheus.CounterVec
	sent        *prometheus.CounterVec
	received    *prometheus.CounterVec
}

// NewMetrics returns metrics that have measured nothing yet.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		invocations: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "w3filecoin_invocations_total",
			Help: "Invocations executed, by how they ended: ok, the name of a failure, unavailable, or fault."}, []string{"role", "ability", "outcome"}),
		invocation: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "w3filecoin_invocation_seconds",
			Help: "Time to execute an invocation, its commit included.", Buckets: prometheus.ExponentialBuckets(0.0001, 3, 12)}, []string{"role", "ability"}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "w3filecoin_messages_total",
			Help: "Deliveries of queue messages, by how they ended: done, retried, dead (a dead letter now), or lost (lease ended)."},
			[]string{"role", "queue", "result"}),
		message: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "w3filecoin_message_seconds",
			Help: "Time to handle a queue message.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 12)}, []string{"role", "queue"}),
		age: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "w3filecoin_message_age_seconds",
			Help: "Age of a queue message when it was handled, since it was to be delivered.", Buckets: prometheus.ExponentialBuckets(0.001, 5, 11)},
			[]string{"role", "queue"}),
		commits: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "w3filecoin_store_changes_total",
			Help: "Changes written by the database; many share a transaction."}, []string{"role"}),
		commit: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "w3filecoin_store_transaction_seconds",
			Help: "Time of a database transaction, its fsync included.", Buckets: prometheus.ExponentialBuckets(0.0001, 3, 12)}, []string{"role"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "w3filecoin_state_age_seconds",
			Help:    "Age of a piece or an aggregate when it came to a state, since the role accepted it. The count is how many came there.",
			Buckets: []float64{1, 10, 60, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 24 * 3600, 36 * 3600, 48 * 3600, 72 * 3600, 96 * 3600, 168 * 3600},
		}, []string{"role", "of", "state"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "w3filecoin_store_requests_total",
			Help: "Requests to the services that hold the state, repetitions included."}, []string{"role", "service", "operation"}),
		capacity: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "w3filecoin_store_capacity_units_total",
			Help: "Read or write units that DynamoDB counted, by operation."}, []string{"role", "operation"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "w3filecoin_store_sent_bytes_total",
			Help: "Bytes of the bodies of requests to the services that hold the state."}, []string{"role", "service"}),
		received: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "w3filecoin_store_received_bytes_total",
			Help: "Bytes of the bodies of their answers."}, []string{"role", "service"}),
	}
	m.registry.MustRegister(m.invocations, m.invocation, m.messages, m.message, m.age, m.commits, m.commit, m.steps, m.requests, m.capacity, m.sent, m.received,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler serves GET /metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Execution counts an invocation; it is a [Server.Observe]. Abilities that nobody executes are counted as one.
func (m *Metrics) Execution(known func(ability string) bool) func(Execution) {
	return func(e Execution) {
		ability := e.Ability
		if !known(ability) {
			ability = "unknown"
		}
		m.invocations.WithLabelValues(e.Role, ability, e.Outcome).Inc()
		m.invocation.WithLabelValues(e.Role, ability).Observe(e.Took.Seconds())
	}
}

// Message counts a delivery; it is a [Workers.Observe].
func (m *Metrics) Message(now func() time.Time) func(role string, o store.Outcome) {
	return func(role string, o store.Outcome) {
		queue := o.Delivery.Queue
		m.messages.WithLabelValues(role, queue, string(o.Result)).Inc()
		m.message.WithLabelValues(role, queue).Observe(o.Took.Seconds())
		since := o.Delivery.Enqueued
		if o.Delivery.Due.After(since) {
			since = o.Delivery.Due
		}
		m.age.WithLabelValues(role, queue).Observe(max(0, now().Add(-o.Took).Sub(since).Seconds()))
	}
}

// Batch counts a transaction of the embedded engine.
func (m *Metrics) Batch(role string, changes int, took time.Duration) {
	m.commits.WithLabelValues(role).Add(float64(changes))
	m.commit.WithLabelValues(role).Observe(took.Seconds())
}

// StoreRequest counts a call of a service that holds the state of a role: how many requests it took, the units of capacity that it used, and the bytes
// that were sent and received.
func (m *Metrics) StoreRequest(role, service, operation string, attempts int, capacity float64, sent, received int64) {
	m.requests.WithLabelValues(role, service, operation).Add(float64(attempts))
	if capacity > 0 {
		m.capacity.WithLabelValues(role, operation).Add(capacity)
	}
	m.sent.WithLabelValues(role, service).Add(float64(sent))
	m.received.WithLabelValues(role, service).Add(float64(received))
}

// Step returns a function that measures what moves through a role, and logs it: aggregates and what ends badly at level info, pieces at debug.
func (m *Metrics) Step(role string, log *slog.Logger) func(tasks.Step) {
	return func(s tasks.Step) {
		m.steps.WithLabelValues(role, s.Of, s.To).Observe(s.Age.Seconds())
		level, message := slog.LevelInfo, "an aggregate moved on"
		if s.Of == "piece" {
			message = "a piece moved on"
			if s.Reason == "" {
				level = slog.LevelDebug
			}
		}
		if !log.Enabled(context.Background(), level) {
			return
		}
		attrs := []slog.Attr{slog.String("role", role), slog.String(s.Of, s.Link.String()), slog.String("state", s.To), slog.String("task", s.Task.String()),
			slog.Duration("age", s.Age)}
		if s.Reason != "" {
			attrs = append(attrs, slog.String("reason", s.Reason))
		}
		log.LogAttrs(context.Background(), level, message, attrs...)
	}
}

// Gauge registers a value that is read when somebody asks.
func (m *Metrics) Gauge(name, help, role string, read func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: name, Help: help, ConstLabels: prometheus.Labels{"role": role}}, read))
}

// maxDead bounds how many dead letters of a role are counted when somebody asks.
const maxDead = 1000

// DeadLetters measures how many dead letters a role has, by queue, when somebody asks. At most the first thousand are counted.
func (m *Metrics) DeadLetters(role string, rows store.Rows) {
	m.registry.MustRegister(&deadLetters{rows, prometheus.NewDesc("w3filecoin_dead_letters",
		"Messages that failed for the last time and wait for the operator, 1000 of a role at most.", []string{"queue"}, prometheus.Labels{"role": role})})
}

type deadLetters struct {
	rows store.Rows
	desc *prometheus.Desc
}

// Describe implements [prometheus.Collector].
func (d *deadLetters) Describe(ch chan<- *prometheus.Desc) { ch <- d.desc }

// Collect implements [prometheus.Collector].
func (d *deadLetters) Collect(ch chan<- prometheus.Metric) {
	letters, _, err := store.ListDead(context.Background(), d.rows, "", "", maxDead)
	if err != nil {
		return // a database in trouble must not take the other measurements away; this one is missing then
	}
	counts := map[string]int{}
	for _, l := range letters {
		counts[l.Queue]++
	}
	for queue, n := range counts {
		ch <- prometheus.MustNewConstMetric(d.desc, prometheus.GaugeValue, float64(n), queue)
	}
}
