// Package interop holds the tests against the published JavaScript packages of the protocol, in both directions. It has no code of its own.
//
//   - *.test.mjs: the published clients, and published services in the place of some roles, against `w3filecoin serve`.
//   - published_test.go: this module's client and capabilities against the published services (server.mjs).
//   - fixtures_test.go: replies of the published services, kept in testdata by fixtures.mjs; the only part that needs no Node.
//
// `make interop` installs the packages by exact version and runs everything.
package interop
