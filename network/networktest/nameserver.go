package networktest

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/fix-project/arcavm/network"
)

// NameServer starts a name server on loopback, and returns a host that asks it.
// Each name has the addresses 127.0.0.1 and ::1, unless a label says otherwise:
// no4 and no6 are questions that aren't answered, only4 and only6 names with
// addresses of one family, none is a name that doesn't exist.
func NameServer(t testing.TB) network.Host {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if answer := answerTo(b[:n]); answer != nil {
				_, _ = c.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() {
		c.Close()
		<-ended
	})
	return network.Host{Resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp4", c.LocalAddr().String())
	}}}
}

func answerTo(question []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	silent := map[dnsmessage.Type]string{dnsmessage.TypeA: "no4", dnsmessage.TypeAAAA: "no6"}
	name := q.Name.String()
	if s := silent[q.Type]; s != "" && strings.Contains(name, s) {
		return nil
	}
	answer := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
	header := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}
	switch {
	case strings.HasPrefix(name, "none"):
		answer.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA && !strings.Contains(name, "only6"):
		answer.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}}
	case q.Type == dnsmessage.TypeAAAA && !strings.Contains(name, "only4"):
		answer.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: netip.IPv6Loopback().As16()}}}
	}
	b, err := answer.Pack()
	if err != nil {
		return nil
	}
	return b
}
