package rpc

import "time"

// SetLinger changes how long a stream that its guest has dropped waits for a
// peer that takes nothing. It is called before Serve.
func (s *Server) SetLinger(d time.Duration) { s.linger = d }
