package pipes_test

import (
	"fmt"
	"io"

	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/pipes/pipestest"
)

// A guest asks, the monitor answers, and both close: the pipe frees itself.
func Example() {
	g, err := pipestest.NewGuest(1<<20, pipes.Options{})
	if err != nil {
		panic(err)
	}
	defer func() {
		if err := g.Close(); err != nil {
			panic(err)
		}
	}()
	monitor, guest, err := g.Pair(4096, 4096)
	if err != nil {
		panic(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer guest.Close()
		fmt.Fprint(guest, "what is two and two?")
		guest.CloseWrite()
		answer, _ := io.ReadAll(guest)
		fmt.Printf("guest: %s\n", answer)
	}()
	question, _ := io.ReadAll(monitor)
	fmt.Printf("monitor: %s\n", question)
	fmt.Fprint(monitor, "four")
	monitor.CloseWrite()
	monitor.CloseRead()
	<-done
	fmt.Println("open pipes:", g.Table.Stats().Open)
	// Output:
	// monitor: what is two and two?
	// guest: four
	// open pipes: 0
}
