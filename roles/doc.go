// Package roles is the runtime that all roles share: a role, an engine and a key make a service.
//
// A [Server] executes invocations, the same way whether they come over HTTP ([Server.Handler]) or from a role in the same process
// ([Local]). Bytes pass the strict decoder of package wire, then [Authority] decides who may do what, then the role's method
// commits and answers. [Workers] run the role's message handlers. Nothing here knows an engine or what a role does.
package roles
