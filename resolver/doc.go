// Package resolver tells storage providers where the bytes of a piece are.
//
// It answers GET and HEAD at /piece/{piece CID} and at /{content CID} with a redirect to the content in custody, and to
// nowhere else: a client's claims about locations are never passed on. A piece leads to content only if somebody computed
// the piece from that content, see [Contents].
//
// It also serves aggregates as files, /aggregate/{piece CID}, for providers that take one file per deal, and redirects to
// objects of the operator's buckets by key, /key/{key}, where that is configured.
//
// The paths, the query and the answers are those of the predecessor's service "roundabout", which broker templates
// such as https://host/piece/{piece CID} are written for.
package resolver
