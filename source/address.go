package source

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// ErrForbidden means that an address is not fetched from: not an http(s) URL, credentials in it, or a host that leads
// into a network that is not configured.
var ErrForbidden = errors.New("address is not allowed")

// internal are the networks that lie inside the global ranges or mean something else than a host on the internet: the
// IANA registries of special-purpose IPv4 and IPv6 addresses (RFC 6890). All IPv6 outside 2000::/3 is left out besides.
var internal = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),       // this network
	netip.MustParsePrefix("10.0.0.0/8"),      // private
	netip.MustParsePrefix("100.64.0.0/10"),   // shared by carriers (CGNAT)
	netip.MustParsePrefix("127.0.0.0/8"),     // loopback
	netip.MustParsePrefix("169.254.0.0/16"),  // link local, cloud metadata
	netip.MustParsePrefix("172.16.0.0/12"),   // private
	netip.MustParsePrefix("192.0.0.0/24"),    // protocol assignments
	netip.MustParsePrefix("192.0.2.0/24"),    // documentation
	netip.MustParsePrefix("192.88.99.0/24"),  // 6to4 relays, deprecated
	netip.MustParsePrefix("192.168.0.0/16"),  // private
	netip.MustParsePrefix("198.18.0.0/15"),   // benchmarks
	netip.MustParsePrefix("198.51.100.0/24"), // documentation
	netip.MustParsePrefix("203.0.113.0/24"),  // documentation
	netip.MustParsePrefix("224.0.0.0/4"),     // multicast
	netip.MustParsePrefix("240.0.0.0/4"),     // reserved, broadcast
	netip.MustParsePrefix("2001::/23"),       // protocol assignments, Teredo and ORCHID among them
	netip.MustParsePrefix("2001:db8::/32"),   // documentation
	netip.MustParsePrefix("2002::/16"),       // 6to4: carries an IPv4 address
	netip.MustParsePrefix("3fff::/20"),       // documentation
}

var (
	globalIPv6 = netip.MustParsePrefix("2000::/3")
	// nat64 carries an IPv4 address in its last four bytes (RFC 6052); networks that have only IPv6 reach all of IPv4 by it.
	nat64 = netip.MustParsePrefix("64:ff9b::/96")
)

// public reports whether addr is a host on the internet.
func public(addr netip.Addr) bool {
	addr = addr.Unmap()
	if addr.Zone() != "" {
		return false
	}
	if nat64.Contains(addr) {
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[12:]))
	}
	if addr.Is6() && !globalIPv6.Contains(addr) {
		return false
	}
	for _, p := range internal {
		if p.Contains(addr) {
			return false
		}
	}
	return addr.IsValid()
}

// networks decides which hosts may be connected to.
type networks struct {
	hosts    map[string]bool // "host" or "host:port", lower case, no dot at the end
	prefixes []netip.Prefix
}

func newNetworks(hosts []string, prefixes []netip.Prefix) (networks, error) {
	n := networks{hosts: make(map[string]bool, len(hosts))}
	for _, h := range hosts {
		name, port, err := net.SplitHostPort(h)
		if err != nil { // no port
			name, port = strings.TrimSuffix(strings.TrimPrefix(h, "["), "]"), ""
		}
		if name == "" || strings.ContainsAny(name, "/*@ ") || strings.Trim(port, "0123456789") != "" {
			return networks{}, fmt.Errorf("allowed host %q is not a host name or address, with or without a port", h)
		}
		n.hosts[hostKey(name, port)] = true
	}
	for _, p := range prefixes {
		if !p.IsValid() {
			return networks{}, errors.New("an allowed network is not a valid prefix")
		}
		n.prefixes = append(n.prefixes, p.Masked())
	}
	return n, nil
}

func hostKey(name, port string) string {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if port == "" {
		return name
	}
	return net.JoinHostPort(name, port)
}

// allowsHost reports whether the operator vouches for a host, whatever its name resolves to.
func (n networks) allowsHost(name, port string) bool {
	return n.hosts[hostKey(name, "")] || n.hosts[hostKey(name, port)]
}

// allowsAddr reports whether an address that a name resolved to may be connected to.
func (n networks) allowsAddr(addr netip.Addr) bool {
	if public(addr) {
		return true
	}
	for _, p := range n.prefixes {
		if p.Contains(addr.Unmap().WithZone("")) {
			return true
		}
	}
	return false
}
