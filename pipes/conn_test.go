package pipes_test

import (
	"net"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConn(t *testing.T) {
	for name, order := range map[string]func(h, g net.Conn) (c1, c2 net.Conn){
		"monitor first": func(h, g net.Conn) (net.Conn, net.Conn) { return h, g },
		"guest first":   func(h, g net.Conn) (net.Conn, net.Conn) { return g, h },
	} {
		t.Run(name, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				g, err := pipestest.NewGuest(1<<20, pipes.Options{})
				if err != nil {
					return nil, nil, nil, err
				}
				host, guest, err := g.Pair(4096, 8192)
				if err != nil {
					return nil, nil, nil, err
				}
				c1, c2 = order(host, guest)
				return c1, c2, func() {
					c1.Close()
					c2.Close()
					if err := g.Close(); err != nil {
						t.Error(err)
					}
				}, nil
			})
		})
	}
}
