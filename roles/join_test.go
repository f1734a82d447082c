package roles

import (
	"context"
	"errors"
	"testing"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/store"
)

// part has some abilities and queues, all of which answer with its own error.
type part struct {
	Service
	err       error
	abilities []string
	queues    []string
}

func (p part) Methods() map[string]capabilities.Method {
	methods := map[string]capabilities.Method{}
	for _, can := range p.abilities {
		methods[can] = func(context.Context, capabilities.Invocation) (*capabilities.Receipt, error) { return nil, p.err }
	}
	return methods
}

func (p part) Handlers() map[string]store.Handler {
	handlers := map[string]store.Handler{}
	for _, queue := range p.queues {
		handlers[queue] = func(context.Context, store.Delivery) error { return p.err }
	}
	return handlers
}

// wrapper is a part that adds its error to what the role answers.
type wrapper struct{ part }

func (w wrapper) Concluding(next capabilities.Method) capabilities.Method {
	return func(ctx context.Context, inv capabilities.Invocation) (*capabilities.Receipt, error) {
		r, err := next(ctx, inv)
		return r, errors.Join(err, w.err)
	}
}

func TestJoin(t *testing.T) {
	role := part{err: errors.New("role"), abilities: []string{"a/b", ucan.ConcludeAbility}, queues: []string{"one"}}
	other := wrapper{part{err: errors.New("part"), abilities: []string{"c/d"}, queues: []string{"two"}}}
	joined, err := Join(role, other)
	if err != nil {
		t.Fatal(err)
	}
	run := func(can string) error {
		_, err := joined.Methods()[can](t.Context(), capabilities.Invocation{})
		return err
	}
	if err := run("a/b"); !errors.Is(err, role.err) {
		t.Errorf("the role's ability: %v", err)
	}
	if err := run("c/d"); !errors.Is(err, other.err) {
		t.Errorf("the part's ability: %v", err)
	}
	if err := run(ucan.ConcludeAbility); !errors.Is(err, role.err) || !errors.Is(err, other.err) {
		t.Errorf("what both do: %v", err)
	}
	for queue, want := range map[string]error{"one": role.err, "two": other.err} {
		if err := joined.Handlers()[queue](t.Context(), store.Delivery{}); !errors.Is(err, want) {
			t.Errorf("queue %s: %v, want %v", queue, err, want)
		}
	}
	for name, p := range map[string]part{"ability": {abilities: []string{"a/b"}}, "queue": {queues: []string{"one"}}} {
		if _, err := Join(role, p); err == nil {
			t.Errorf("one %s twice: accepted", name)
		}
	}
}
