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
	// attemptDelay is how long an attempt to connect may take before the next
	// address is tried beside it (RFC 8305).
	attemptDelay = 250 * time.Millisecond
	// resolutionDelay is how long a connect waits for a name's IPv6 addresses
	// when it has the IPv4 ones (RFC 8305).
	resolutionDelay = 50 * time.Millisecond
	// maxAttempts is how many of a name's addresses are tried.
	maxAttempts = 16
)

// dialer connects to the first of a name's addresses that answers, as RFC 8305
// has it.
//
// It looks both families up side by side. Attempts begin when it has IPv6
// addresses, or both answers, or has had IPv4 addresses for resolutionDelay.
// The families take turns. The next attempt begins when one has failed, or has
// taken attemptDelay. Addresses that the slower look-up finds later are tried,
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

// lookedUp is the result of looking up one family.
type lookedUp struct {
	family int // as by [family]
	addrs  []netip.Addr
	err    error
	panics any // nil: it didn't
}

// lookUp looks up families side by side. Each sends one result.
func lookUp(ctx context.Context, families []int, lookup func(ctx context.Context, network string) ([]netip.Addr, error)) <-chan lookedUp {
	answers := make(chan lookedUp, len(families))
	for _, f := range families {
		go func() {
			a := lookedUp{family: f}
			defer func() {
				// A panic of the embedding program's network goes to the
				// caller's goroutine, where it is caught.
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

// familiesOf returns the families that "tcp" or "udp" with this version after
// it ("", "4" or "6") has.
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

// attempted is the result of an attempt.
type attempted struct {
	index int
	conn  net.Conn
	err   error
}

// dialing is a connect under way. One goroutine uses it.
type dialing struct {
	*dialer
	ctx     context.Context
	answers <-chan lookedUp
	asking  int // families that aren't answered yet
	results chan attempted
	running int // attempts

	untried [2][]netip.AddrPort // by family
	turn    int                 // the family that is next, if it has addresses
	started int                 // attempts
	begun   bool                // attempts may begin
	due     bool                // the next one may
	timer   *time.Timer         // ends resolutionDelay, then attemptDelay
	errs    dialErrors
}

// connect returns the first connection. If there is none, the error is that of
// the first address, or of the first that this machine has a route to; if no
// address was found, that of the look-up. Nothing that it has begun goes on
// when it returns.
func (d *dialer) connect(ctx context.Context, version string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	families := familiesOf(version)
	c := &dialing{
		dialer: d, ctx: ctx, turn: 1, due: true, timer: time.NewTimer(attemptDelay),
		answers: lookUp(ctx, families, d.lookup), asking: len(families), results: make(chan attempted),
	}
	c.timer.Stop() // until there is something to wait for
	defer c.end(cancel)
	for c.asking > 0 || c.running > 0 {
		select {
		case a := <-c.answers:
			c.lookedUp(a)
		case <-c.timer.C:
			c.begun, c.due = true, true
		case r := <-c.results:
			c.running--
			if r.err == nil {
				return r.conn, nil
			}
			c.errs.attempted(r)
			c.due = true
		}
		c.attemptNext()
	}
	return nil, c.errs.say()
}

// end waits until all look-ups and attempts have ended, which they do soon. An
// attempt may have connected at the same moment.
func (c *dialing) end(cancel context.CancelFunc) {
	cancel()
	c.timer.Stop()
	for ; c.running > 0; c.running-- {
		if r := <-c.results; r.err == nil {
			Abandon(r.conn)
		}
	}
	for ; c.asking > 0; c.asking-- {
		<-c.answers
	}
}

// lookedUp takes the answer for a family.
func (c *dialing) lookedUp(a lookedUp) {
	c.asking--
	if a.panics != nil {
		panic(a.panics)
	}
	allowed, err := c.judged(a)
	c.errs.lookedUp(err)
	c.untried[a.family] = allowed
	switch {
	case c.begun:
	case c.asking == 0, a.family == 1 && len(allowed) > 0:
		c.begun = true
	case len(allowed) > 0:
		c.timer.Reset(resolutionDelay)
	}
}

// attemptNext begins the next attempt, if it is due.
func (c *dialing) attemptNext() {
	if !c.begun || !c.due || c.started == maxAttempts || c.ctx.Err() != nil {
		return
	}
	if len(c.untried[c.turn]) == 0 {
		c.turn = 1 - c.turn
	}
	if len(c.untried[c.turn]) == 0 {
		return
	}
	at, index := c.untried[c.turn][0], c.started
	c.untried[c.turn] = c.untried[c.turn][1:]
	c.turn, c.due = 1-c.turn, false
	c.started++
	c.running++
	c.timer.Reset(attemptDelay)
	go func() {
		conn, err := c.dial(c.ctx, at)
		c.results <- attempted{index, conn, err}
	}()
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

// dialErrors keeps the error that tells most.
type dialErrors struct {
	lookup, attempt error
	index           int // of the address that attempt is about
}

// lookedUp prefers a refusal. Next comes any error but that of a name without
// addresses, as a name may well have addresses of one family only.
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

// noWay reports whether an error means that this machine has no route to the
// address, as one without IPv6 has none to any IPv6 address.
func noWay(err error) bool {
	switch Errno(err) {
	case unix.ENETUNREACH, unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT:
		return true
	}
	return false
}

func (e *dialErrors) say() error { return cmp.Or(e.attempt, e.lookup) }
