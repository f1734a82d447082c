// Package devnet is a simulated Filecoin: a SIMULATED chain and a SIMULATED storage provider, for demonstrations, development and
// tests. Nothing in it seals, proves or stores anything, and no deal of it exists outside the process that runs it.
//
// What is real is the traffic. [Chain] answers JSON-RPC over HTTP with the methods, shapes and errors of a Lotus node that package
// chain reads. [Provider] does what a storage provider's software does before it seals: it polls the dealer's offers, fetches every
// piece over HTTP, recomputes each piece CID and the whole aggregate from the bytes it received, and refuses what does not match.
// Only then does it publish a deal, which the chain activates after some epochs.
//
// # The life of a simulated deal
//
//  1. Publish includes the message PublishDelay epochs ahead. One epoch later the deal is in the market's state and the event
//     deal-published can be read.
//  2. ActivateDelay epochs after that the deal becomes active: SectorStartEpoch is set, deal-activated can be read.
//  3. At EndEpoch it is completed, or before that terminated by [Chain.Terminate]; both remove it from the state. A deal that is not
//     active by its StartEpoch vanishes without an event, as on the real chain.
//
// # Faults
//
// Tests make the simulated world misbehave: [Chain.Reorg], [Chain.FailNext], [Chain.SetLag] and [Chain.ForgetBefore] for the chain,
// [Faults] for the provider. All are off unless they are asked for.
package devnet
