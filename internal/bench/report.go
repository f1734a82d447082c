package main

import (
	"fmt"
	"io"
	"strings"
)

// report prints the tables, as Markdown.
func report(w io.Writer, r results) {
	m := r.Machine
	fmt.Fprintf(w, "\n%s, %d cores, Linux %s, %s, node %s, commit %s\n", m.CPU, m.Cores, m.Kernel, m.Go, m.Node, m.Commit)
	if len(r.Offers) > 0 {
		reportOffers(w, r.Offers)
	}
	if len(r.Pending) > 0 {
		fmt.Fprint(w, "\n### Pieces pending at the aggregator\n\n")
		t := newTable(w, "pending", "CPU us per piece", "piece/offer per second", "p99 ms", "RSS MiB", "heap MiB", "disk bytes per piece")
		for _, k := range r.Pending {
			t.row(k.Pending, k.CPU, k.Rate, k.P99, k.RSS, k.Heap, k.Disk)
		}
	}
	if d := r.Deals; d != nil {
		fmt.Fprintf(w, "\n### From the offer to filecoin/accept\n\n%d pieces in %.1f s: **%.0f pieces per second**, %.2f ms CPU and %.1f writes each, peak RSS %.0f MiB. "+
			"(Storing the contents took %.1f s, acknowledging the offers %.1f s.)\n\n", d.Pieces, d.Total, d.Rate, d.CPU, d.Changes, d.RSS, d.Upload, d.Offer)
		t := newTable(w, "most time in handlers", "calls", "seconds", "ms per call")
		for _, q := range d.Queues[:min(14, len(d.Queues))] {
			t.row(q.Name, q.Count, q.Seconds, q.Seconds/q.Count*1000)
		}
	}
}

func reportOffers(w io.Writer, all []sample) {
	of := func(s subject, n int) (list []sample) {
		for _, x := range all {
			if x.Subject == s && x.InFlight == n {
				list = append(list, x)
			}
		}
		return list
	}
	fmt.Fprint(w, "\n### filecoin/offer over HTTP, medians of the rounds\n\n")
	t := newTable(w, "server", "in flight", "offers per second", "times the peer", "share of the signature bound", "p50 ms", "p99 ms",
		"CPU us per offer", "follow-up us", "GC share", "peak RSS MiB", "KiB and allocations per offer")
	for _, s := range []subject{javascript, allInOne, storefront} {
		for _, n := range concurrencies {
			list := of(s, n)
			if len(list) == 0 {
				continue
			}
			// Ratios are taken within a round, where the machine was the same for both.
			ratio, share, gc, followUp, allocs := "", "", "", "", ""
			if s != javascript {
				ratio = "-"
				if js := of(javascript, n); len(js) > 0 {
					byRound := map[int]float64{}
					for _, x := range js {
						byRound[x.Round] = x.Rate
					}
					ratio = fmt.Sprintf("**%.1f**", median(list, func(x sample) float64 { return x.Rate / byRound[x.Round] }))
				}
				share = fmt.Sprintf("%.0f %%", 100*median(list, func(x sample) float64 { return x.Rate / x.Bound.Bound }))
				gc = fmt.Sprintf("%.1f %%", 100*median(list, func(x sample) float64 { return x.GC }))
				followUp = fmt.Sprintf("%.0f", median(list, func(x sample) float64 { return x.FollowUp }))
				allocs = fmt.Sprintf("%.1f, %.0f", median(list, func(x sample) float64 { return x.AllocKiB }),
					median(list, func(x sample) float64 { return x.Allocs }))
			}
			t.row(string(s), n, median(list, func(x sample) float64 { return x.Rate }), ratio, share,
				median(list, func(x sample) float64 { return x.P50 }), median(list, func(x sample) float64 { return x.P99 }),
				median(list, func(x sample) float64 { return x.CPU }), followUp, gc,
				median(list, func(x sample) float64 { return x.RSS }), allocs)
		}
	}
	verify := median(all, func(x sample) float64 { return us(x.Bound.Verify) })
	sign := median(all, func(x sample) float64 { return us(x.Bound.Sign) })
	bound := median(all, func(x sample) float64 { return x.Bound.Bound })
	fmt.Fprintf(w, "\nThe bound: verify %.1f us, sign %.1f us of one core, both cores busy; one verification and three signatures per offer "+
		"allow %.0f offers per second.\n", verify, sign, bound)

	fmt.Fprint(w, "\n### Where the time of one offer goes, us\n\n")
	t = newTable(w, "server", "in flight", "whole (p50)", "in the server", "verify", "3 signatures", "transaction (fsync)", "changes in it", "rest")
	for _, s := range []subject{allInOne, storefront} {
		for _, n := range concurrencies {
			list := of(s, n)
			if len(list) == 0 {
				continue
			}
			whole := 1000 * median(list, func(x sample) float64 { return x.P50 })
			commit := median(list, func(x sample) float64 { return x.Commit })
			fsync := median(list, func(x sample) float64 { return x.Fsync })
			rest := "waiting for cores and commits"
			if n == 1 {
				rest = fmt.Sprintf("%.0f", whole-verify-3*sign-commit)
			}
			t.row(string(s), n, whole, median(list, func(x sample) float64 { return x.Execution }), verify, 3*sign,
				fmt.Sprintf("%.0f (%.0f)", commit, fsync), median(list, func(x sample) float64 { return x.Changes }), rest)
		}
	}
}

// table prints rows of a Markdown table.
type table struct{ w io.Writer }

func newTable(w io.Writer, columns ...string) table {
	fmt.Fprintf(w, "| %s |\n|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	return table{w}
}

func (t table) row(cells ...any) {
	for _, c := range cells {
		text := fmt.Sprint(c)
		if f, ok := c.(float64); ok {
			switch {
			case f >= 100:
				text = fmt.Sprintf("%.0f", f)
			case f >= 10:
				text = fmt.Sprintf("%.1f", f)
			default:
				text = fmt.Sprintf("%.2f", f)
			}
		}
		fmt.Fprintf(t.w, "| %s ", text)
	}
	fmt.Fprintln(t.w, "|")
}
