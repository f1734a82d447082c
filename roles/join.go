package roles

import (
	"fmt"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/store"
)

// Part is what a service does beside the role that it belongs to, on the same store: it has capabilities and messages of its own, and its
// receipts are rows like those of the role.
type Part interface {
	Methods() map[string]capabilities.Method
	Handlers() map[string]store.Handler
}

// Wrapper is a [Part] that adds to what the role does at ucan/conclude.
type Wrapper interface {
	Concluding(conclude capabilities.Method) capabilities.Method
}

// Join returns a role with further parts. It fails if two of them execute one ability, or handle one queue.
func Join(role Service, parts ...Part) (Service, error) {
	j := &joined{Service: role, methods: role.Methods(), handlers: role.Handlers()}
	for _, p := range parts {
		for can, m := range p.Methods() {
			if j.methods[can] != nil {
				return nil, fmt.Errorf("two parts of a role execute %s", can)
			}
			j.methods[can] = m
		}
		if w, ok := p.(Wrapper); ok && j.methods[ucan.ConcludeAbility] != nil {
			j.methods[ucan.ConcludeAbility] = w.Concluding(j.methods[ucan.ConcludeAbility])
		}
		for queue, h := range p.Handlers() {
			if j.handlers[queue] != nil {
				return nil, fmt.Errorf("two parts of a role handle queue %s", queue)
			}
			j.handlers[queue] = h
		}
	}
	return j, nil
}

type joined struct {
	Service
	methods  map[string]capabilities.Method
	handlers map[string]store.Handler
}

func (j *joined) Methods() map[string]capabilities.Method { return j.methods }
func (j *joined) Handlers() map[string]store.Handler      { return j.handlers }
