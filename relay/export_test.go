package relay

import (
	"time"
)

// ResolverWithin is [Resolver] with another timeout of a look-up.
func ResolverWithin(timeout time.Duration) Handler { return newResolver(timeout) }

// Bounds of the resolver.
const (
	MaxStreamLookups = maxStreamLookups
	MaxLookups       = maxLookups
)

// LingerTimeout is for how long the peer of a stream that its guest has closed
// may take nothing.
const LingerTimeout = lingerTimeout

// LookAtLingering looks at these streams as if it were the given time. The
// server's own timer is too late to disturb a test.
func (s *Server) LookAtLingering(now time.Time) { s.lingering.look(now) }

// MaxHandshakes is how many handshakes of a TLS listener run at once.
const MaxHandshakes = maxHandshakes

// MaxGreetings is how many handshakes of connections that a guest makes run at
// once.
const MaxGreetings = maxGreetings
