// Package claims keeps what is claimed about content (content claims protocol): where it can be read (assert/location), what it is the same as
// (assert/equals), what it includes (assert/inclusion) and by what its DAG is indexed (assert/index).
//
// A claim is an invocation: it is signed, and carries the proofs of its issuer's authority. Those of others come by invocation, after the
// edge has judged that authority; the service's own are kept where they are made. Nothing that is claimed is a fact here, and no address of a
// claim is ever called by this package. Claims are kept for ever, under the multihash of their content; those that have expired or were
// revoked are not shown.
//
// What the service itself claims can be told to another claims service: each claim once it is kept, at least once, by a message.
package claims
