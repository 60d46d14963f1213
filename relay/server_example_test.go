package relay_test

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// A handler without a virtual machine: the guest is in Go, in the same process. It asks for a stream on the control pipe, opens it with a protocol of
// the program's own, and talks.
func ExampleServer() {
	g, err := pipestest.NewGuest(8<<20, pipes.Options{})
	if err != nil {
		panic(err)
	}
	host, control, err := g.Pair(64<<10, 64<<10)
	if err != nil {
		panic(err)
	}
	var mux relay.Mux
	mux.Handle(wire.ProtocolPrivate, relay.HandlerFunc(func(_ context.Context, s *relay.Stream) error {
		if err := s.Opened(0, nil); err != nil {
			return err
		}
		_, err := fmt.Fprintf(s.Pipe, "hello, %s", s.Payload)
		return err
	}))
	server := relay.New(g.Table, host, &mux, relay.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ctx) })

	// read reads a frame's payload.
	read := func(r io.Reader) []byte {
		header := make([]byte, wire.HeaderSize)
		if _, err := io.ReadFull(r, header); err != nil {
			panic(err)
		}
		h, err := wire.DecodeHeader(header)
		if err != nil {
			panic(err)
		}
		payload := make([]byte, h.Length)
		if _, err := io.ReadFull(r, payload); err != nil {
			panic(err)
		}
		return payload
	}
	if _, err := control.Write(wire.AppendNewStreamRequest(nil, 1, wire.NewStreamRequest{OutgoingSize: 4096, IncomingSize: 4096})); err != nil {
		panic(err)
	}
	info, err := wire.DecodeDataStreamInfo(read(control))
	if err != nil {
		panic(err)
	}
	d := info.Pipe
	stream, err := g.Attach(pipes.Descriptor{
		ID: pipes.ID(d.ID), Header: d.Header, Outgoing: d.Outgoing, Incoming: d.Incoming, OutgoingSize: d.OutgoingSize, IncomingSize: d.IncomingSize,
	})
	if err != nil {
		panic(err)
	}
	if _, err := stream.Write(wire.AppendOpen(nil, 2, wire.Open{Protocol: wire.ProtocolPrivate, Payload: []byte("guest")})); err != nil {
		panic(err)
	}
	opened, err := wire.DecodeOpened(read(stream))
	text, _ := io.ReadAll(stream)
	fmt.Printf("status %d %v: %s\n", opened.Status, err, text)
	stream.Close()

	cancel()
	serving.Wait()
	fmt.Println("wake-ups lost:", g.Close())
	// Output:
	// status 0 <nil>: hello, guest
	// wake-ups lost: <nil>
}
