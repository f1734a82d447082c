package main

import (
	"path/filepath"
	"time"

	"github.com/storacha/w3filecoin/devnet"
)

// devnetFinality is how many epochs below its head the simulated chain is final.
const devnetFinality = 2

// buildChain opens the simulated chain.
func (n *node) buildChain() error {
	c, err := devnet.OpenChain(devnet.ChainConfig{
		Epoch: time.Duration(n.cfg.Devnet.Epoch), PublishDelay: 2, ActivateDelay: 3, Finality: devnetFinality, Genesis: n.cfg.Devnet.Genesis,
		Path: filepath.Join(n.cfg.Data, "devnet.json"), Now: time.Now,
	})
	if err != nil {
		return err
	}
	l, err := n.listen("devnet.listen", n.cfg.Devnet.Listen)
	if err != nil {
		return err
	}
	n.cfg.Devnet.Listen = l.Addr().String()
	n.devnet = &simulated{chain: c, listener: l, url: "http://" + l.Addr().String()}
	return nil
}

// buildProvider adds the simulated storage provider, if this process knows where offers and pieces are.
func (n *node) buildProvider() error {
	offers, pieces := n.cfg.Devnet.Offers, n.cfg.Devnet.Pieces
	if offers == "" && n.cfg.runs(dealerRole) {
		offers = n.cfg.url(dealerRole)
	}
	if len(pieces) == 0 && n.cfg.runs(storefrontRole) {
		pieces = []string{n.cfg.url(storefrontRole) + "/piece/{piece}"}
	}
	if offers == "" || len(pieces) == 0 {
		return nil
	}
	p, err := devnet.OpenProvider(devnet.ProviderConfig{
		Address: "f01000", Client: "f01001", Offers: offers, Pieces: pieces,
		Market: n.devnet.chain, Path: filepath.Join(n.cfg.Data, "devnet-provider.json"), Now: time.Now, After: time.After,
		Poll: time.Duration(n.cfg.Devnet.Epoch), Log: n.log.With("role", "devnet-provider"),
	})
	n.devnet.provider = p
	return err
}

// trimmed shortens a CID for people.
func trimmed(s string) string {
	if len(s) <= 24 {
		return s
	}
	return s[:12] + "…" + s[len(s)-8:]
}
