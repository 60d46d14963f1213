package vmm_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
	"github.com/fix-project/arcavm/vmm/vmmtest"
	"github.com/fix-project/arcavm/wire"
)

// A guest on a network that exists in memory only: a program that has the
// network can reach its server, and no other can.
func ExampleConfig_network() {
	img, err := image.ParseBytes(images.Bytes("httpd"), "httpd")
	if err != nil {
		log.Fatal(err)
	}
	network := new(networktest.Network)
	listening := make(chan netip.AddrPort, 1)
	vm, err := vmm.New(vmm.Config{
		Image:    img,
		Args:     []string{"192.0.2.1:80"},
		Network:  network,
		OnListen: func(at netip.AddrPort) { listening <- at },
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = vm.Run(ctx)
	}()

	transport := &http.Transport{DialContext: network.DialContext}
	resp, err := (&http.Client{Transport: transport}).Get(fmt.Sprintf("http://%v/bytes/3", <-listening))
	if err != nil {
		log.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	fmt.Printf("% x %v\n", body, err)
	resp.Body.Close()
	transport.CloseIdleConnections()
	cancel()
	<-ended
	// It prints: 00 01 02 <nil>
}

// TestExamples runs the examples that boot a guest, where there is a KVM. An
// example can't be skipped.
func TestExamples(t *testing.T) {
	system, err := kvm.Open("")
	if err != nil {
		vmmtest.Unavailable(t, err)
	}
	system.Close()
	for _, c := range []struct {
		example func()
		want    string
	}{
		{ExampleConfig_network, "00 01 02 <nil>\n"},
		{ExampleConfig_handlers, "HELLO FROM THE GUEST <nil>\n0 <nil>\n"},
	} {
		if got := printed(t, c.example); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

// printed returns what f writes to standard output, which fits into a pipe.
func printed(t *testing.T, f func()) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stdout := os.Stdout
	os.Stdout = w
	f()
	os.Stdout = stdout
	w.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A protocol of the embedding program: each stream that a guest opens with it
// is a connection to a server of the program's, here one that answers in
// capital letters. The guest sends, half-closes, and prints the answer.
func ExampleConfig_handlers() {
	folder, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(folder)
	server, err := net.Listen("unix", filepath.Join(folder, "upper"))
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	go func() {
		conn, err := server.Accept()
		if err != nil {
			log.Fatal(err)
		}
		defer conn.Close()
		text, err := io.ReadAll(conn)
		fmt.Fprintln(conn, strings.ToUpper(string(text)), err)
	}()
	connect := func(ctx context.Context, s *relay.Stream) error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", filepath.Join(folder, filepath.Base(string(s.Payload))))
		if err != nil {
			return s.Opened(unix.ECONNREFUSED, nil)
		}
		if err := s.Opened(0, nil); err != nil {
			return errors.Join(err, conn.Close())
		}
		s.Relay(conn.(*net.UnixConn))
		return nil
	}

	img, err := image.ParseBytes(images.Bytes("private"), "private")
	if err != nil {
		log.Fatal(err)
	}
	vm, err := vmm.New(vmm.Config{
		Image:    img,
		Args:     []string{fmt.Sprint(wire.ProtocolPrivate), "upper", "hello from ", "the guest"},
		Handlers: map[uint16]relay.Handler{wire.ProtocolPrivate: relay.HandlerFunc(connect)},
		Console:  os.Stdout,
	})
	if err != nil {
		log.Fatal(err)
	}
	code, err := vm.Run(context.Background())
	fmt.Println(code, err)
	// It prints:
	// HELLO FROM THE GUEST <nil>
	// 0 <nil>
}

// A guest that may connect to one network only, and whose port 80 is bound at
// port 8080 of this machine.
func ExampleConfig_policy() {
	allow, err := network.ParseRule(true, "out:10.1.0.0/16:443")
	if err != nil {
		log.Fatal(err)
	}
	deny, err := network.ParseRule(false, "out:*")
	if err != nil {
		log.Fatal(err)
	}
	publish, err := network.ParsePublish("8080:80")
	if err != nil {
		log.Fatal(err)
	}
	cfg := vmm.Config{Network: network.NewPolicy(network.Host{}, []network.Rule{allow, deny}, []network.Publish{publish})}
	_, err = cfg.Network.DialContext(context.Background(), "tcp", "10.2.0.1:443")
	fmt.Println(err)
	// Output: out:tcp:10.2.0.1:443 is denied by policy
}
