package vmm_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/netip"
	"os"
	"testing"

	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/relay/relaytest"
	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// A guest on a network that exists in memory only: its server can be reached by who has the network, and by nobody else.
func ExampleConfig_network() {
	img, err := image.ParseBytes(images.Bytes("httpd"), "httpd")
	if err != nil {
		log.Fatal(err)
	}
	network := new(relaytest.Network)
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

// TestExampleConfigNetwork runs the example where there is a KVM. An example can't be skipped.
func TestExampleConfigNetwork(t *testing.T) {
	system, err := kvm.Open("")
	if err != nil {
		vmmtest.Unavailable(t, err)
	}
	system.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stdout := os.Stdout
	os.Stdout = w
	ExampleConfig_network()
	os.Stdout = stdout
	w.Close()
	if printed, err := io.ReadAll(r); string(printed) != "00 01 02 <nil>\n" || err != nil {
		t.Errorf("%q, %v", printed, err)
	}
}

// A guest that may connect to one network only, and whose port 80 is bound at port 8080 of this machine.
func ExampleConfig_policy() {
	allow, err := relay.ParseRule(true, "out:10.1.0.0/16:443")
	if err != nil {
		log.Fatal(err)
	}
	deny, err := relay.ParseRule(false, "out:*")
	if err != nil {
		log.Fatal(err)
	}
	publish, err := relay.ParsePublish("8080:80")
	if err != nil {
		log.Fatal(err)
	}
	cfg := vmm.Config{Network: relay.NewPolicy(relay.Host{}, []relay.Rule{allow, deny}, []relay.Publish{publish})}
	_, err = cfg.Network.DialContext(context.Background(), "tcp", "10.2.0.1:443")
	fmt.Println(err)
	// Output: out:tcp:10.2.0.1:443 is denied by policy
}
