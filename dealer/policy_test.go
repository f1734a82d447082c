package dealer

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/storacha/w3filecoin/capabilities/deal"
)

func TestJudge(t *testing.T) {
	const none = "no provider has published a deal yet"
	tests := []struct {
		name     string
		deals    deal.Deals
		replicas int
		want     verdict
	}{
		{"none", nil, 1, verdict{reason: none}},
		{"published is not enough", deal.Deals{3: {Provider: "a", Status: deal.StatusPublished}}, 1,
			verdict{attempts: 1, reason: "0 of 1 providers with an active deal; deals: 1 published"}},
		{"active, the smallest id", deal.Deals{9: {Provider: "a", Status: deal.StatusActive}, 5: {Provider: "b", Status: deal.StatusActive},
			2: {Provider: "c", Status: deal.StatusPublished}}, 1, verdict{success: true, deal: 5, attempts: 3}},
		{"a tracker without statuses", deal.Deals{9: {Provider: "a"}, 5: {Provider: "b"}}, 1, verdict{success: true, deal: 5, attempts: 2}},
		{"two replicas of one provider are one", deal.Deals{9: {Provider: "a", Status: deal.StatusActive}, 5: {Provider: "a", Status: deal.StatusActive}}, 2,
			verdict{deal: 5, attempts: 1, reason: "1 of 2 providers with an active deal; deals: 2 active"}},
		{"two replicas", deal.Deals{9: {Provider: "a", Status: deal.StatusActive}, 5: {Provider: "b", Status: deal.StatusActive}}, 2,
			verdict{success: true, deal: 5, attempts: 2}},
		{"ended deals are lost attempts", deal.Deals{1: {Provider: "a", Status: deal.StatusTerminated}, 2: {Provider: "b", Status: deal.StatusExpired}}, 1,
			verdict{attempts: 2, lost: 2, reason: "0 of 1 providers with an active deal; deals: 1 expired, 1 terminated"}},
		{"a provider that tries again is not lost", deal.Deals{1: {Provider: "a", Status: deal.StatusExpired}, 2: {Provider: "a", Status: deal.StatusPublished}}, 1,
			verdict{attempts: 1, reason: "0 of 1 providers with an active deal; deals: 1 expired, 1 published"}},
		{"a status that is not known yet does not count", deal.Deals{1: {Provider: "a", Status: "sealing"}}, 1,
			verdict{attempts: 1, reason: "0 of 1 providers with an active deal; deals: 1 sealing"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, judge(tt.deals, tt.replicas), cmp.AllowUnexported(verdict{})); diff != "" {
				t.Errorf("verdict (-want +got):\n%s", diff)
			}
		})
	}
}
