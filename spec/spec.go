package spec

import (
	"net/netip"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/vmm/image"
)

// Spec is a virtual machine described as data. The zero value of a field stands
// for the default of [vmm.Config]; only Image has none. A Spec isn't safe for
// concurrent use.
type Spec struct {
	// Image is the path of the kernel to boot; "": none is named.
	Image string
	// Args are the guest's arguments, without the image's name.
	Args []string

	// ABI is how the guest talks.
	ABI image.ABI
	// CPUs is the number of virtual CPUs.
	CPUs int
	// Memory is the guest's RAM.
	Memory Size
	// Window is the memory that guest and monitor share for streams.
	Window Size
	// Emulated asks for hardware that QEMU emulates. It is for the program that
	// runs the machine: [Spec.Load] ignores it.
	Emulated bool

	// Shares are what the guest may reach of the host's files.
	Shares []Folder
	// Sockets are where the guest may reach UNIX sockets of the host.
	Sockets []Folder
	Network Network
	TLS     TLS
	Limits  Limits
	Output  Output

	origins origins
}

// Network is what a guest may reach of the network, and by which ports it is
// reached.
type Network struct {
	// Rules are in the order in which they are asked: the first that matches
	// decides.
	Rules []Rule
	// Publish has each port of the guest once for each family of host
	// addresses.
	Publish []network.Publish
	// NAT64 are ranges of IPv6 addresses by which the network reaches IPv4
	// hosts.
	NAT64 []netip.Prefix
	// Own are addresses that count as the host's own, beside those that it has.
	Own []netip.Prefix
}

// TLS names the files, in PEM form, of what the monitor trusts and shows where
// it does TLS for the guest.
type TLS struct {
	CA        []string // certificates to trust beside those of the host
	Cert, Key string   // go together
}

// Output is how the program that runs the machine tells of it. [Spec.Load] only
// checks it.
type Output struct {
	LogLevel  string // one of LogLevels; "": info
	LogFormat string // one of LogFormats; "": text
	Timing    string // one of Timings; "": none
	ExitFile  string // a path for the outcome; "": none
}

// What the strings of an [Output] may be.
var (
	LogLevels  = []string{"error", "warn", "info", "debug", "trace"}
	LogFormats = []string{"text", "json"}
	Timings    = []string{"text", "json"}
)

// eachPath calls f with every path of the host that the description names.
func (s *Spec) eachPath(f func(path *string)) {
	for _, p := range []*string{&s.Image, &s.TLS.Cert, &s.TLS.Key, &s.Output.ExitFile} {
		if *p != "" {
			f(p)
		}
	}
	for i := range s.TLS.CA {
		f(&s.TLS.CA[i])
	}
	for _, folders := range [][]Folder{s.Shares, s.Sockets} {
		for i := range folders {
			f(&folders[i].Dir)
		}
	}
}
