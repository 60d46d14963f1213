package relay

import "time"

// ResolverWithin is [Resolver] with another limit of a lookup's time.
func ResolverWithin(timeout time.Duration) Handler { return newResolver(timeout) }

// Bounds of the resolver.
const (
	MaxStreamLookups = maxStreamLookups
	MaxLookups       = maxLookups
)
