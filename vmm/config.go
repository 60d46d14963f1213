package vmm

import (
	"cmp"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/pipes"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/vmm/image"
	"github.com/fix-project/arcavm/wire"
)

// Defaults and limits of a [Config].
const (
	DefaultMemory = 256 << 20
	// DefaultRPCMemory is for guests of the older ABIs, whose kernels take 2
	// MiB and more for each connection at work. It is what Arca's own monitor
	// gives them, and costs what they touch.
	DefaultRPCMemory = 16 << 30
	// DefaultRPCCPUs is for guests of the older ABIs, if the host has as many
	// processors. These kernels spin: with one CPU, a connection that is idle
	// can keep all others waiting.
	DefaultRPCCPUs = 2
	DefaultWindow  = 1 << 30
	// DefaultStreamLimit is lower for a window of less than 1 GiB: one stream
	// for each 64 KiB.
	DefaultStreamLimit = 16384
	DefaultLogLimit    = 256 << 10
	watchInterval      = 2 * time.Second

	MinMemory = 4 << 20
	MaxMemory = 256 << 30
	MinWindow = 2 << 20
	MaxWindow = 128 << 30
	MaxCPUs   = 64
	MaxArgs   = 1024

	// MaxStreamLimit is what one pending bitmap can name, 131,072 (PROTOCOL.md
	// section 5).
	MaxStreamLimit = pipes.MaxStreams
)

// Config says what to run and with what. The zero value of every field but
// Image is a working default. It is one flat struct, because a program sets the
// few fields that it wants by name.
//
// The guest waits for the functions and writers that the VM calls, and so does
// the end of [VM.Run]. They are called on several goroutines at once unless
// their fields say otherwise. They must not call [VM.Close], and [VM.Pause]
// only with a deadline, but may call all other methods.
type Config struct {
	// Image is the kernel to boot.
	Image *image.Image
	// Args are the guest's arguments. Its own name comes first by itself.
	Args []string

	// CPUs is the number of virtual CPUs, 1 to 64. Default 1; for the older
	// ABIs [DefaultRPCCPUs].
	CPUs int
	// Memory is the guest's RAM in bytes, a multiple of 2 MiB. Default
	// [DefaultMemory]; for the older ABIs [DefaultRPCMemory].
	Memory uint64
	// Window is the size in bytes of the memory that guest and monitor share, a
	// multiple of 2 MiB. It is sparse: only what rings touch is used. Default
	// [DefaultWindow].
	Window uint64
	// StreamLimit is the number of pipes that may exist at once, the control
	// pipe included. Default [DefaultStreamLimit].
	StreamLimit int
	// RingLimit is the number of bytes that the rings of all pipes may have
	// together, the control pipe's 128 KiB included. Default: what the window
	// has room for.
	RingLimit uint64
	// Limits are how much the guest gets of other things. Of these, Files,
	// Bytes and Disk hold for guests of the older ABIs, too.
	Limits network.Limits
	// LogLimit is how many bytes of log records the guest may write in a
	// second, each counted with its text and 128 bytes more; 4 MiB may come at
	// once. What is more is left out and counted. Default [DefaultLogLimit].
	LogLimit uint64

	// ABI is what the guest is served by. Default: what the image says, see
	// [image.Image.ABI]. An image whose note names an ABI can't be served by an
	// older one.
	ABI image.ABI

	// Share is what the guest may reach of the host's files. The zero value
	// shares nothing. The VM doesn't close it. Its Host counts for guests of
	// the older ABIs only.
	Share Share

	// Sockets is where a guest of the stream ABI may connect to UNIX sockets
	// and, where Writable, make its own. The zero value is nowhere. The VM
	// doesn't close it. Its Host doesn't count.
	Sockets Share

	// Console receives what the guest writes to its debug console, byte for
	// byte. It is called from the CPUs' threads, one at a time. A slow writer
	// slows the guest, and one that never returns keeps [VM.Run] from ending;
	// so does a Logger's. Nil discards.
	Console io.Writer
	// Input and Output are the standard input and output. A guest of the stream
	// ABI gets them as a stream when it asks for it, one stream at a time;
	// [VM.Run] doesn't close them. A nil Input is at its end, a nil Output
	// discards; without both, the guest is refused.
	//
	// Use *[os.File] where a Read of Input or a Write to Output may wait: the
	// wait for a file ends with the VM. A Read of any other reader goes on
	// until it returns, and a Write that never returns keeps Run from ending.
	Input  io.Reader
	Output io.Writer
	// OnStdio, if not nil, is called with true when the guest opens that
	// stream, before the guest learns of it, and with false when the stream has
	// ended. It must return soon.
	OnStdio func(open bool)
	// Logger receives the guest's log records and the monitor's own. Nil
	// discards.
	Logger *slog.Logger
	// OnListen, if not nil, is called once for each address on which the guest
	// has begun to listen, before the guest learns of it. It must not block.
	OnListen func(netip.AddrPort)

	// Network is where the guest's sockets and addresses come from. Default:
	// the host's with a [network.Policy] without rules, which keeps the guest
	// from the host's own addresses. Guests of the older ABIs need one whose
	// connections are *[net.TCPConn].
	Network network.Network
	// TLS is what the monitor trusts and shows where it does TLS for a guest of
	// the stream ABI. With the zero value it trusts what the host trusts, and
	// the guest can only be a client.
	TLS relay.TLS
	// Handlers serve protocols of the embedding program, numbered from 0x8000,
	// for guests of the stream ABI.
	Handlers map[uint16]relay.Handler

	// WatchInterval is how often the watchdog looks for lost wake-ups; see
	// [pipes.Options]. Default 2 seconds.
	WatchInterval time.Duration

	// Device is the path of the KVM device. Default /dev/kvm.
	Device string
}

// Share is what a guest may reach of the host's files.
type Share = share.Share

// ConfigError is a value of a [Config] that can't be used.
type ConfigError struct {
	Field  string
	Reason string
}

func (e *ConfigError) Error() string { return e.Field + ": " + e.Reason }

// WithDefaults returns the configuration with its defaults in the place of what
// is zero. It judges nothing: if neither the configuration nor the image names
// an ABI, it is [image.ABIAuto] still. The first call for an image without a
// note reads the image's symbols.
func (c Config) WithDefaults() Config {
	if c.ABI == image.ABIAuto && c.Image != nil {
		c.ABI, _ = c.Image.ABI()
	}
	if c.CPUs == 0 {
		c.CPUs = 1
		if c.ABI.Older() {
			c.CPUs = min(DefaultRPCCPUs, runtime.NumCPU())
		}
	}
	if c.Memory == 0 {
		c.Memory = DefaultMemory
		if c.ABI.Older() {
			c.Memory = DefaultRPCMemory
		}
	}
	if c.Window == 0 {
		c.Window = DefaultWindow
	}
	if c.StreamLimit == 0 {
		c.StreamLimit = int(min(DefaultStreamLimit, max(1, c.Window>>16)))
	}
	if c.LogLimit == 0 {
		c.LogLimit = DefaultLogLimit
	}
	if c.WatchInterval <= 0 {
		c.WatchInterval = watchInterval
	}
	if c.Device == "" {
		c.Device = kvm.DefaultPath
	}
	if c.Console == nil {
		c.Console = io.Discard
	}
	if c.Network == nil {
		c.Network = network.NewPolicy(network.Host{}, nil, nil)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate judges the configuration, as far as that can be done without a
// machine: what [New] would refuse for other reasons than KVM's is an error of
// type *ConfigError. What is zero counts as its default.
func (c Config) Validate() error {
	if c.Image == nil {
		return &ConfigError{"image", "none given"}
	}
	c = c.WithDefaults()
	for _, check := range []func() error{c.checkABI, c.checkNumbers, c.checkFolders, c.checkTLS, c.checkHandlers, c.checkArgs} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// checkABI is for a configuration with its defaults. Images of the older ABIs
// have no note, so one with a note is never of these.
func (c Config) checkABI() error {
	switch {
	case c.ABI == image.ABIAuto && c.Image.Version != 0:
		return &ConfigError{"image", fmt.Sprintf("%s speaks the ABI of %v, which this monitor doesn't know", c.Image.Name, c.Image.Version)}
	case c.ABI == image.ABIAuto:
		_, why := c.Image.ABI()
		return &ConfigError{"abi", fmt.Sprintf("%s: %s; say whether it speaks the rpc or the hypercall ABI", c.Image.Name, why)}
	case c.ABI.Older() && c.Image.Version != 0:
		return &ConfigError{"abi", fmt.Sprintf("the note in %s says that it speaks %v, not one of the older ABIs; leave the choice to it", c.Image.Name, c.Image.Version)}
	case !c.ABI.Older() && c.ABI != image.ABIStream:
		return &ConfigError{"abi", fmt.Sprintf("there is no %v", c.ABI)}
	}
	return nil
}

func (c Config) checkNumbers() error {
	if c.CPUs < 1 || c.CPUs > MaxCPUs {
		return &ConfigError{"cpus", fmt.Sprintf("%d is not in 1 to %d", c.CPUs, MaxCPUs)}
	}
	if err := checkSize("memory", c.Memory, MinMemory, MaxMemory); err != nil {
		return err
	}
	if err := checkSize("window", c.Window, MinWindow, MaxWindow); err != nil {
		return err
	}
	if c.StreamLimit < 1 || c.StreamLimit > MaxStreamLimit {
		return &ConfigError{"stream limit", fmt.Sprintf("%d is not in 1 to %d", c.StreamLimit, MaxStreamLimit)}
	}
	if c.RingLimit != 0 && c.RingLimit < 2*controlRingSize || c.RingLimit > MaxWindow {
		return &ConfigError{"ring limit", fmt.Sprintf("%s is not between %s and %s", size(c.RingLimit), size(2*controlRingSize), size(MaxWindow))}
	}
	return nil
}

func (c Config) checkFolders() error {
	return cmp.Or(checkNamed("share", c.Share), checkNamed("sockets", c.Sockets))
}

func (c Config) checkTLS() error {
	for i, cert := range c.TLS.Certificates {
		if err := checkCertificate(cert); err != nil {
			return &ConfigError{"tls", fmt.Sprintf("certificate %d: %v", i, err)}
		}
	}
	return nil
}

func (c Config) checkHandlers() error {
	for protocol, h := range c.Handlers {
		if protocol < wire.ProtocolPrivate {
			return &ConfigError{"handlers", fmt.Sprintf("protocol %#x is below %#x", protocol, wire.ProtocolPrivate)}
		}
		if h == nil {
			return &ConfigError{"handlers", fmt.Sprintf("none for protocol %#x", protocol)}
		}
	}
	return nil
}

// maxArgsSize bounds the bytes of all arguments, each with its place in the
// boot block's list and a NUL.
const maxArgsSize = 1 << 20

func (c Config) checkArgs() error {
	if len(c.Args) >= MaxArgs {
		return &ConfigError{"arguments", fmt.Sprintf("%d are more than %d", len(c.Args), MaxArgs-1)}
	}
	n := 0
	for _, a := range c.Args {
		n += len(a) + 17
	}
	if n > maxArgsSize {
		return &ConfigError{"arguments", fmt.Sprintf("%d bytes are more than 1 MiB (%v)", n, unix.E2BIG)}
	}
	if c.ABI == image.ABIHypercall {
		_, err := parseNumbers(c.Args)
		return err
	}
	return nil
}

// checkCertificate finds what every handshake would fail for.
func checkCertificate(c tls.Certificate) error {
	if len(c.Certificate) == 0 {
		return errors.New("it is empty")
	}
	for _, raw := range c.Certificate {
		if _, err := x509.ParseCertificate(raw); err != nil {
			return err
		}
	}
	if _, ok := c.PrivateKey.(crypto.Signer); !ok {
		return errors.New("it has no private key that can sign")
	}
	return nil
}

// checkNamed refuses top-level folders that can't be found or served.
func checkNamed(field string, s Share) error {
	for name, named := range s.Named {
		if err := share.CheckName(name); err != nil {
			return &ConfigError{field, err.Error()}
		}
		if named.Root == nil {
			return &ConfigError{field, fmt.Sprintf("%s has no folder", name)}
		}
	}
	return nil
}

func checkSize(field string, n, low, high uint64) error {
	switch {
	case n < low || n > high:
		return &ConfigError{field, fmt.Sprintf("%s is not between %s and %s", size(n), size(low), size(high))}
	case n%hugePage != 0:
		return &ConfigError{field, fmt.Sprintf("%s is not a multiple of 2 MiB", size(n))}
	}
	return nil
}

// size writes n bytes with the largest unit that leaves a whole number.
func size(n uint64) string {
	for _, u := range []struct {
		shift int
		name  string
	}{{30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if n != 0 && n%(1<<u.shift) == 0 {
			return fmt.Sprintf("%d %s", n>>u.shift, u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
