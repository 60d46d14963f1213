package client_test

import (
	"context"
	"fmt"
	"io"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/guest"
	"github.com/fix-project/arcavm/pipes/guest/client"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// greet is a handler of an embedding program.
var greet = relay.HandlerFunc(func(_ context.Context, s *relay.Stream) error {
	if err := s.Opened(0, nil); err != nil {
		return err
	}
	_, err := fmt.Fprintf(s.Pipe, "hello, %s", s.Payload)
	return err
})

// A handler is tested without a virtual machine: the guest is in Go, in the
// same process.
func Example() {
	var mux relay.Mux
	mux.Handle(wire.ProtocolPrivate, greet)

	g, err := guest.New(make([]byte, 8<<20), pipes.Options{})
	must(err)
	m, err := client.Start(g, func(control *pipes.Pipe) client.Server {
		return relay.New(g.Table, control, &mux, relay.Options{})
	})
	must(err)
	stream, _, err := m.Open(context.Background(), wire.ProtocolPrivate, []byte("guest"))
	must(err)
	text, err := io.ReadAll(stream)
	fmt.Printf("%s, %v\n", text, err)
	must(stream.Close())
	must(m.Close()) // fails if a wake-up was lost
	// Output:
	// hello, guest, <nil>
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
