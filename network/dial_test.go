package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// timedNetwork is a network with one name. Each family is answered at a time of
// its own, and addresses may refuse.
type timedNetwork struct {
	fakeNetwork
	answers map[string]timedAnswer // by "ip4" and "ip6"
}

// timedAnswer is an answer after at. 0 is no answer.
type timedAnswer struct {
	at    time.Duration
	addrs []netip.Addr
	err   error
}

func (n *timedNetwork) LookupNetIP(ctx context.Context, network, _ string) ([]netip.Addr, error) {
	a := n.answers[network]
	if a.at == 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	select {
	case <-time.After(a.at):
		return a.addrs, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Connecting begins as soon as there is an address to connect to (RFC 8305), on
// a clock that the test moves.
func TestDialWhileLookingUp(t *testing.T) {
	four := []netip.Addr{netip.MustParseAddr("192.0.2.4")}
	six := []netip.Addr{netip.MustParseAddr("2001:db8::6")}
	const ms = time.Millisecond
	none := &net.DNSError{Err: "no such host", IsNotFound: true}
	broken := &net.DNSError{Err: "server misbehaving", IsTemporary: true}
	refused := func(addrs ...string) func(context.Context, string) error {
		return func(_ context.Context, at string) error {
			for _, a := range addrs {
				if a == at {
					return unix.ECONNREFUSED
				}
			}
			return nil
		}
	}
	for name, c := range map[string]struct {
		network  string
		ip4, ip6 timedAnswer
		dial     func(context.Context, string) error
		want     string // the last call
		after    time.Duration
		err      error
	}{
		"both at once":            {"tcp", timedAnswer{ms, four, nil}, timedAnswer{ms, six, nil}, nil, "dial [2001:db8::6]:80", ms, nil},
		"IPv6 is never answered":  {"tcp", timedAnswer{ms, four, nil}, timedAnswer{}, nil, "dial 192.0.2.4:80", 51 * ms, nil},
		"IPv4 is never answered":  {"tcp", timedAnswer{}, timedAnswer{ms, six, nil}, nil, "dial [2001:db8::6]:80", ms, nil},
		"IPv6 is a little late":   {"tcp", timedAnswer{ms, four, nil}, timedAnswer{30 * ms, six, nil}, nil, "dial [2001:db8::6]:80", 30 * ms, nil},
		"there is no IPv6":        {"tcp", timedAnswer{ms, four, nil}, timedAnswer{2 * ms, nil, none}, nil, "dial 192.0.2.4:80", 2 * ms, nil},
		"IPv6 can't be asked":     {"udp", timedAnswer{2 * ms, four, nil}, timedAnswer{ms, nil, broken}, nil, "dial 192.0.2.4:80", 2 * ms, nil},
		"only IPv4 is wanted":     {"tcp4", timedAnswer{ms, four, nil}, timedAnswer{}, nil, "dial 192.0.2.4:80", ms, nil},
		"only IPv6 is wanted":     {"tcp6", timedAnswer{}, timedAnswer{ms, six, nil}, nil, "dial [2001:db8::6]:80", ms, nil},
		"late IPv6 is tried, too": {"tcp", timedAnswer{ms, four, nil}, timedAnswer{200 * ms, six, nil}, refused("192.0.2.4:80"), "dial [2001:db8::6]:80", 200 * ms, nil},
		"late IPv4 is tried, too": {"tcp", timedAnswer{200 * ms, four, nil}, timedAnswer{ms, six, nil}, refused("[2001:db8::6]:80"), "dial 192.0.2.4:80", 200 * ms, nil},
		"late IPv6 beside a slow attempt": {"tcp", timedAnswer{ms, four, nil}, timedAnswer{100 * ms, six, nil}, func(ctx context.Context, at string) error {
			if at == "192.0.2.4:80" {
				<-ctx.Done()
			}
			return ctx.Err()
		}, "dial [2001:db8::6]:80", 51*ms + attemptDelay, nil},
		"later than that": {"tcp", timedAnswer{ms, four, nil}, timedAnswer{time.Second, six, nil}, func(ctx context.Context, at string) error {
			if at == "192.0.2.4:80" {
				<-ctx.Done()
			}
			return ctx.Err()
		}, "dial [2001:db8::6]:80", time.Second, nil},
		"all refuse": {"tcp", timedAnswer{ms, four, nil}, timedAnswer{ms, six, nil}, refused("192.0.2.4:80", "[2001:db8::6]:80"), "dial 192.0.2.4:80", ms, unix.ECONNREFUSED},
		"no way by IPv6": {"tcp", timedAnswer{ms, four, nil}, timedAnswer{ms, six, nil}, func(_ context.Context, at string) error {
			if at == "192.0.2.4:80" {
				return unix.ECONNREFUSED
			}
			return unix.ENETUNREACH
		}, "dial 192.0.2.4:80", ms, unix.ECONNREFUSED},
		"nothing is answered":      {"tcp", timedAnswer{}, timedAnswer{}, nil, "", 10 * time.Second, context.DeadlineExceeded},
		"IPv4 refuses, no IPv6":    {"tcp", timedAnswer{ms, four, nil}, timedAnswer{}, refused("192.0.2.4:80"), "dial 192.0.2.4:80", 10 * time.Second, unix.ECONNREFUSED},
		"no IPv4, and IPv6 broken": {"tcp", timedAnswer{ms, nil, none}, timedAnswer{ms, nil, broken}, nil, "", ms, broken},
		"no such name":             {"tcp", timedAnswer{ms, nil, none}, timedAnswer{ms, nil, none}, nil, "", ms, none},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &timedNetwork{fakeNetwork: fakeNetwork{dial: c.dial}, answers: map[string]timedAnswer{"ip4": c.ip4, "ip6": c.ip6}}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				start := time.Now()
				conn, err := NewPolicy(n, nil, nil).DialContext(ctx, c.network, "name.test:80")
				if conn != nil {
					conn.Close()
				}
				if !errors.Is(err, c.err) || (err == nil) != (conn != nil) {
					t.Errorf("%v, want %v", err, c.err)
				}
				if took := time.Since(start); took != c.after {
					t.Errorf("after %v, want %v", took, c.after)
				}
				last := ""
				if len(n.calls) > 0 {
					last = n.calls[len(n.calls)-1]
				}
				if last != c.want {
					t.Errorf("calls %q, want %q as the last", n.calls, c.want)
				}
			})
		})
	}
}

// silentNetwork has a name server that never answers.
type silentNetwork struct {
	fakeNetwork
	asked atomic.Int64
}

func (n *silentNetwork) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	n.asked.Add(1)
	<-ctx.Done()
	n.asked.Add(-1)
	return nil, ctx.Err()
}

// A bounded number of look-ups is under way, however many connects wait for
// names. The others get their turn when these end, or end with their own
// context.
func TestConnectLookupsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := &silentNetwork{}
		p := NewPolicy(n, nil, nil)
		ended := make(chan error)
		dial := func(ctx context.Context) {
			_, err := p.DialContext(ctx, "tcp", "silent.example:80")
			ended <- err
		}
		wantEnded := func(count int) {
			t.Helper()
			for range count {
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Errorf("%v, want it canceled", err)
				}
			}
		}
		first, endFirst := context.WithCancel(t.Context())
		for range maxLooking / 2 {
			go dial(first)
		}
		synctest.Wait()
		second, endSecond := context.WithCancel(t.Context())
		third, endThird := context.WithCancel(t.Context())
		for range 100 {
			go dial(second)
			go dial(third)
		}
		synctest.Wait()
		if got := n.asked.Load(); got != maxLooking {
			t.Errorf("%d look-ups are under way, want %d", got, maxLooking)
		}
		endSecond()
		wantEnded(100)
		endFirst()
		wantEnded(maxLooking / 2)
		synctest.Wait()
		if got := n.asked.Load(); got != 2*100 {
			t.Errorf("%d look-ups are under way, want those of 100 connects", got)
		}
		endThird()
		wantEnded(100)
	})
}
