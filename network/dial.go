package network

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// attemptDelay is how long an attempt to connect has before the next
	// address is tried beside it (RFC 8305).
	attemptDelay = 250 * time.Millisecond
	// resolutionDelay is how long a connect waits for a name's IPv6 addresses
	// when the IPv4 ones are there (RFC 8305).
	resolutionDelay = 50 * time.Millisecond
	// maxAttempts is how many addresses of a name are tried.
	maxAttempts = 16
)

// dialer connects to a name: to the first of its addresses that answers.
//
// Both families are asked for side by side. Attempts begin when IPv6 addresses
// are there, or everything, or IPv4 addresses for resolutionDelay. Addresses of
// the families take turns; the next attempt begins as soon as one fails, or
// hasn't ended for attemptDelay. What the slower look-up finds then is tried,
// too.
type dialer struct {
	name string
	// lookup returns the addresses on "ip4" or "ip6".
	lookup func(ctx context.Context, network string) ([]netip.Addr, error)
	// judge returns those of a family's addresses that may be connected to, or
	// an error if there is none.
	judge func(addrs []netip.Addr) ([]netip.AddrPort, error)
	dial  func(ctx context.Context, at netip.AddrPort) (net.Conn, error)
}

// lookedUp is the answer for a family.
type lookedUp struct {
	family int // as by [family]
	addrs  []netip.Addr
	err    error
	panics any // nil: it didn't
}

// lookUp asks for families side by side. Each answers once.
func lookUp(ctx context.Context, families []int, lookup func(ctx context.Context, network string) ([]netip.Addr, error)) <-chan lookedUp {
	answers := make(chan lookedUp, len(families))
	for _, f := range families {
		go func() {
			a := lookedUp{family: f}
			defer func() {
				// A network of an embedding program panics where that is
				// caught.
				a.panics = recover()
				answers <- a
			}()
			var all []netip.Addr
			all, a.err = lookup(ctx, []string{"ip4", "ip6"}[f])
			for _, addr := range all {
				if family(addr.Unmap()) == f {
					a.addrs = append(a.addrs, addr)
				}
			}
		}()
	}
	return answers
}

// familiesOf are those that "tcp" and "udp" have with a version after it: "",
// "4" or "6".
func familiesOf(version string) []int {
	switch version {
	case "4":
		return []int{0}
	case "6":
		return []int{1}
	default:
		return []int{0, 1}
	}
}

// attempted is how an attempt ended.
type attempted struct {
	index int
	conn  net.Conn
	err   error
}

// connect returns the first connection. Otherwise the error is that of the
// first address, unless there is no way to it and to another there is; or of
// the look-up. When it returns, nothing that it began goes on.
func (d *dialer) connect(ctx context.Context, version string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	families := familiesOf(version)
	answers, asking := lookUp(ctx, families, d.lookup), len(families)
	results, running := make(chan attempted), 0
	defer func() {
		// The losers end soon; one may have won in the same moment.
		cancel()
		for ; running > 0; running-- {
			if r := <-results; r.err == nil {
				Abandon(r.conn)
			}
		}
		for ; asking > 0; asking-- {
			<-answers
		}
	}()
	var (
		untried [2][]netip.AddrPort // by family
		turn    = 1                 // the family that is tried next, if it can
		started = 0
		begun   = false // attempts may begin
		due     = true  // the next one may
		errs    dialErrors
	)
	timer := time.NewTimer(attemptDelay)
	timer.Stop() // until there is something to wait for
	defer timer.Stop()
	for asking > 0 || running > 0 {
		select {
		case a := <-answers:
			asking--
			if a.panics != nil {
				panic(a.panics)
			}
			allowed, err := d.judged(a)
			errs.lookedUp(err)
			untried[a.family] = allowed
			switch {
			case begun:
			case asking == 0, a.family == 1 && len(allowed) > 0:
				begun = true
			case len(allowed) > 0:
				timer.Reset(resolutionDelay)
			}
		case <-timer.C:
			begun, due = true, true
		case r := <-results:
			running--
			if r.err == nil {
				return r.conn, nil
			}
			errs.attempted(r)
			due = true
		}
		if !begun || !due || started == maxAttempts || ctx.Err() != nil {
			continue
		}
		if len(untried[turn]) == 0 {
			turn = 1 - turn
		}
		if len(untried[turn]) == 0 {
			continue
		}
		at, index := untried[turn][0], started
		untried[turn] = untried[turn][1:]
		turn, due = 1-turn, false
		started++
		running++
		timer.Reset(attemptDelay)
		go func() {
			conn, err := d.dial(ctx, at)
			results <- attempted{index, conn, err}
		}()
	}
	return nil, errs.say()
}

func (d *dialer) judged(a lookedUp) ([]netip.AddrPort, error) {
	if a.err == nil && len(a.addrs) == 0 {
		a.err = &net.DNSError{Err: "no addresses", Name: d.name, IsNotFound: true}
	}
	if a.err != nil {
		return nil, a.err
	}
	return d.judge(a.addrs)
}

// dialErrors keeps the error that says most.
type dialErrors struct {
	lookup, attempt error
	index           int // of the address that attempt is about
}

// lookedUp prefers a refusal, and then what isn't the lack of addresses, which
// a name may have of the other family.
func (e *dialErrors) lookedUp(err error) {
	if err != nil && (e.lookup == nil || saysMore(err) > saysMore(e.lookup)) {
		e.lookup = err
	}
}

func saysMore(err error) int {
	var denied *DeniedError
	switch errno := Errno(err); {
	case errors.As(err, &denied):
		return 2
	case errno == unix.ENOENT, errno == unix.EADDRNOTAVAIL:
		return 0
	default:
		return 1
	}
}

func (e *dialErrors) attempted(r attempted) {
	if e.attempt == nil || noWay(e.attempt) && !noWay(r.err) || noWay(e.attempt) == noWay(r.err) && r.index < e.index {
		e.attempt, e.index = r.err, r.index
	}
}

// noWay reports whether this machine has no route to an address, as it has none
// to the other family's where it has but one.
func noWay(err error) bool {
	switch Errno(err) {
	case unix.ENETUNREACH, unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT:
		return true
	}
	return false
}

func (e *dialErrors) say() error { return cmp.Or(e.attempt, e.lookup) }
