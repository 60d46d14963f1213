package relay

import (
	"context"
	"net"
	"net/netip"
	"time"
)

const (
	// attemptDelay is how long an attempt to connect has before the next address is tried beside it (RFC 8305).
	attemptDelay = 250 * time.Millisecond
	// maxAttempts is how many addresses of a name are tried.
	maxAttempts = 16
)

// dialFirst connects to the first of some addresses that answers. They are tried in order, but with IPv6 and IPv4 in turn; the next one as
// soon as an attempt fails, or hasn't ended after a while. The error is that of the first address.
func dialFirst(ctx context.Context, addrs []netip.AddrPort, dial func(context.Context, netip.AddrPort) (net.Conn, error)) (net.Conn, error) {
	addrs = interleave(addrs)
	addrs = addrs[:min(len(addrs), maxAttempts)]
	if len(addrs) == 1 {
		return dial(ctx, addrs[0])
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		index int
		conn  net.Conn
		err   error
	}
	results := make(chan result)
	started, ended := 0, 0
	attempt := func() {
		i := started
		started++
		go func() {
			conn, err := dial(ctx, addrs[i])
			results <- result{i, conn, err}
		}()
	}
	timer := time.NewTimer(attemptDelay)
	defer timer.Stop()
	attempt()
	var first error
	for ended < started {
		select {
		case <-timer.C:
		case r := <-results:
			ended++
			if r.err == nil {
				cancel()
				// The losers end soon; one may have won in the same moment.
				for ; ended < started; ended++ {
					if r := <-results; r.err == nil {
						_ = r.conn.Close()
					}
				}
				return r.conn, nil
			}
			if r.index == 0 {
				first = r.err
			}
		}
		if started < len(addrs) && ctx.Err() == nil {
			attempt()
			timer.Reset(attemptDelay)
		}
	}
	return nil, first
}

// interleave sorts addresses so that those of the first one's family and the others take turns. Otherwise their order stays.
func interleave(addrs []netip.AddrPort) []netip.AddrPort {
	var families [2][]netip.AddrPort
	for _, a := range addrs {
		other := 0
		if a.Addr().Is4() != addrs[0].Addr().Is4() {
			other = 1
		}
		families[other] = append(families[other], a)
	}
	sorted := make([]netip.AddrPort, 0, len(addrs))
	for i := range addrs {
		for _, f := range families {
			if i < len(f) {
				sorted = append(sorted, f[i])
			}
		}
	}
	return sorted
}
