package relay

import (
	"time"
)

// ResolverWithin is [Resolver] with another limit of a lookup's time.
func ResolverWithin(timeout time.Duration) Handler { return newResolver(timeout) }

// Bounds of the resolver.
const (
	MaxStreamLookups = maxStreamLookups
	MaxLookups       = maxLookups
)

// LingerTimeout is how long a stream that its guest has closed waits for a peer
// that takes nothing.
const LingerTimeout = lingerTimeout

// LookAtLingering looks at the streams that wait so, as if it were the given
// time. A server's own timer comes too late to disturb a test.
func (s *Server) LookAtLingering(now time.Time) { s.lingering.look(now) }

// MaxHandshakes is how many handshakes of a TLS listener run at once.
const MaxHandshakes = maxHandshakes

// MaxGreetings is how many handshakes of connections that a guest makes run at
// once.
const MaxGreetings = maxGreetings
