package source

import (
	"net/netip"
	"testing"
)

func TestPublic(t *testing.T) {
	for _, tt := range []struct {
		addr string
		want bool
	}{
		{"1.1.1.1", true},
		{"93.184.216.34", true},
		{"172.15.255.255", true},
		{"172.32.0.0", true},
		{"100.63.255.255", true},
		{"100.128.0.0", true},
		{"2606:4700::1111", true},
		{"2001:4860:4860::8888", true},
		{"::ffff:1.1.1.1", true},
		{"64:ff9b::1.1.1.1", true},

		{"0.0.0.0", false},
		{"0.1.2.3", false},
		{"10.0.0.1", false},
		{"100.64.0.1", false},
		{"100.127.255.255", false},
		{"127.0.0.1", false},
		{"127.255.255.254", false},
		{"169.254.169.254", false},
		{"172.16.0.1", false},
		{"172.31.255.255", false},
		{"192.0.0.8", false},
		{"192.0.2.1", false},
		{"192.88.99.1", false},
		{"192.168.1.1", false},
		{"198.18.0.1", false},
		{"198.19.255.255", false},
		{"198.51.100.1", false},
		{"203.0.113.1", false},
		{"224.0.0.1", false},
		{"239.255.255.255", false},
		{"240.0.0.1", false},
		{"255.255.255.255", false},
		{"::", false},
		{"::1", false},
		{"::127.0.0.1", false},
		{"::ffff:127.0.0.1", false},
		{"::ffff:10.0.0.1", false},
		{"::ffff:169.254.169.254", false},
		{"64:ff9b::127.0.0.1", false},
		{"64:ff9b::a9fe:a9fe", false},
		{"64:ff9b:1::1.1.1.1", false},
		{"100::1", false},
		{"2001::1", false},
		{"2001:10::1", false},
		{"2001:db8::1", false},
		{"2002:7f00:1::1", false},
		{"3fff::1", false},
		{"5f00::1", false},
		{"fc00::1", false},
		{"fd00:ec2::254", false},
		{"fe80::1", false},
		{"fe80::1%eth0", false},
		{"2606:4700::1111%eth0", false},
		{"fec0::1", false},
		{"ff02::1", false},
	} {
		if got := public(netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("public(%s) = %t, want %t", tt.addr, got, tt.want)
		}
	}
	if public(netip.Addr{}) {
		t.Error("no address is public")
	}
}

// FuzzPublic compares with what the standard library knows of special addresses.
func FuzzPublic(f *testing.F) {
	for _, s := range []string{"1.1.1.1", "127.0.0.1", "::1", "fe80::1", "64:ff9b::10.0.0.1", "ff02::1", "2606:4700::1111"} {
		b := netip.MustParseAddr(s).As16()
		f.Add(b[:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		addr, ok := netip.AddrFromSlice(b)
		if !ok || !public(addr) {
			return
		}
		a := addr.Unmap()
		if nat64.Contains(a) {
			v6 := a.As16()
			a = netip.AddrFrom4([4]byte(v6[12:]))
		}
		if a.IsPrivate() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified() || !a.IsGlobalUnicast() {
			t.Errorf("%s is said to be public", addr)
		}
	})
}

func TestNetworks(t *testing.T) {
	n, err := newNetworks(
		[]string{"Custody.Internal", "minio.internal:9000", "10.0.0.7", "[fd00::7]:80", "fd00::8"},
		[]netip.Prefix{netip.MustParsePrefix("192.168.7.9/24"), netip.MustParsePrefix("fd00:1::/64")})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, port string
		want       bool
	}{
		{"custody.internal", "80", true},
		{"CUSTODY.internal.", "8443", true},
		{"minio.internal", "9000", true},
		{"minio.internal", "9001", false},
		{"x.custody.internal", "80", false},
		{"10.0.0.7", "1", true},
		{"10.0.0.70", "1", false},
		{"fd00::7", "80", true},
		{"fd00::7", "81", false},
		{"fd00::8", "81", true},
		{"", "80", false},
	} {
		if got := n.allowsHost(tt.name, tt.port); got != tt.want {
			t.Errorf("allowsHost(%q, %s) = %t, want %t", tt.name, tt.port, got, tt.want)
		}
	}
	for _, tt := range []struct {
		addr string
		want bool
	}{
		{"192.168.7.1", true},
		{"::ffff:192.168.7.1", true},
		{"192.168.8.1", false},
		{"fd00:1::5", true},
		{"fd00:2::5", false},
		{"10.0.0.7", false}, // allowed by that name only
		{"1.1.1.1", true},
	} {
		if got := n.allowsAddr(netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("allowsAddr(%s) = %t, want %t", tt.addr, got, tt.want)
		}
	}

	for _, host := range []string{"", "http://x", "10.0.0.0/8", "*.internal", "user@x", ":80"} {
		if _, err := newNetworks([]string{host}, nil); err == nil {
			t.Errorf("allowed host %q was accepted", host)
		}
	}
	if _, err := newNetworks(nil, []netip.Prefix{{}}); err == nil {
		t.Error("an invalid prefix was accepted")
	}
}
