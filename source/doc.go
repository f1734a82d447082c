// Package source is where bytes are read, and where uploaded bytes are kept.
//
// Content is a byte string named by a content CID: CIDv1, raw (0x55) or CAR (0x0202) codec, sha2-256 over the whole
// byte string. The multihash is the identity; the codec only says how to read the bytes.
//
//   - A [Dir] is a directory of content: the service's uploads, or a directory that the operator fills.
//   - A [Custody] is several of them and the address under which they are served. It implements storefront.Custody.
//     What was uploaded has been verified and is changed by nobody. In an operator's directory a file is what the
//     operator made of it, and whoever reads it verifies the hash, as compute does.
//   - [NewUploadHandler] and [NewContentHandler] are the two ends of custody over HTTP.
//   - [HTTP] fetches from addresses that outsiders may have chosen. It implements compute.Fetcher.
//
// Sizes and lengths are bytes.
package source
