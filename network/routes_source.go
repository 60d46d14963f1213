package network

import (
	"encoding/binary"
	"errors"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Where packets go may depend on where they come from: by a rule of the kernel
// (`ip rule`) that looks at the source's address or port, or by an IPv6 route
// for a range of sources. Most machines have neither. Then one answer serves
// all sources, and a connect, which is judged before and after it has a source,
// asks the kernel once.

// sourceMatters is what was found out for a family. It doesn't change.
type sourceMatters struct {
	version uint64 // of kernelRoutes.sourceVersion
	yes     bool
}

// bySource reports whether the route of a family's packets may depend on their
// source. Where the kernel doesn't tell, it may.
func (r *kernelRoutes) bySource(f int) bool {
	version := r.sourceVersion.Load()
	if s := r.sources[f].Load(); s != nil && s.version == version {
		return s.yes
	}
	yes, err := r.list(unix.RTM_GETRULE, f, ruleBySource)
	if err == nil && !yes && f == 1 {
		yes, err = r.list(unix.RTM_GETROUTE, f, routeBySource)
	}
	if err == errChanging {
		return true
	}
	yes = yes || err != nil
	r.sources[f].Store(&sourceMatters{version, yes})
	return yes
}

// errChanging means that the list changed while the kernel sent it, so that an
// entry may be missing.
var errChanging = errors.New("the list has changed while it was read")

// list reports whether matches is true for one of a family's rules, or routes.
// It reads them all, as the kernel begins no list before the end of the last
// one. A kernel that doesn't know the kind has none.
func (r *kernelRoutes) list(kind, f int, matches func(m syscall.NetlinkMessage) bool) (found bool, err error) {
	request := nl.NewNetlinkRequest(kind, unix.NLM_F_DUMP)
	request.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: [2]uint8{unix.AF_INET, unix.AF_INET6}[f]}})
	changed := false
	err = r.exchange(request, func(m syscall.NetlinkMessage) (last bool, err error) {
		changed = changed || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
		switch m.Header.Type {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			return true, answerError(m)
		}
		found = found || matches(m)
		return false, nil
	})
	switch {
	case err == unix.EAFNOSUPPORT, err == unix.EOPNOTSUPP:
		return false, nil
	case err == nil && changed && !found:
		err = errChanging
	}
	return found, err
}

// answerError is the error in the last message of an answer, nil for success.
func answerError(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return unix.EBADMSG
	}
	if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data))); errno != 0 {
		return errno
	}
	return nil
}

// ruleHeader is the size of a rule's header (struct fib_rule_hdr). sourceLength
// is where in it, and in a route's header, the prefix length of the source is.
const (
	ruleHeader   = 12
	sourceLength = 2
)

// sourcePorts is a rule's attribute for a range of source ports
// (FRA_SPORT_RANGE).
const sourcePorts = 23

// ruleBySource reports whether a rule looks at the source, or can't be read.
func ruleBySource(m syscall.NetlinkMessage) bool {
	if m.Header.Type != unix.RTM_NEWRULE || len(m.Data) < ruleHeader || m.Data[sourceLength] != 0 {
		return true
	}
	attributes, err := nl.ParseRouteAttr(m.Data[ruleHeader:])
	for _, a := range attributes {
		if a.Attr.Type&nl.NLA_TYPE_MASK == sourcePorts {
			return true
		}
	}
	return err != nil
}

// routeBySource reports whether a route is for a range of sources, or can't be
// read.
func routeBySource(m syscall.NetlinkMessage) bool {
	return m.Header.Type != unix.RTM_NEWROUTE || len(m.Data) < unix.SizeofRtMsg || m.Data[sourceLength] != 0
}

// changesSources reports whether a change, given the beginning of its message,
// may change the result of [kernelRoutes.bySource]: it is one of a rule, or of
// a route for a range of sources.
func changesSources(head []byte) bool {
	if len(head) < unix.SizeofNlMsghdr+unix.SizeofRtMsg {
		return true
	}
	switch kind := binary.NativeEndian.Uint16(head[4:]); kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return false
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return head[unix.SizeofNlMsghdr+sourceLength] != 0
	default:
		return true
	}
}
