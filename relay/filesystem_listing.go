package relay

import (
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

// Bounds of what is read of a folder in advance. Without it, a large folder
// would be read once for each page of its listing.
const (
	// listingSize is how many bytes of entries are kept.
	listingSize = 1 << 20
	// maxListings is how many listings the streams of a virtual machine keep.
	// Other streams read the folder again for each page.
	maxListings = 16
	// maxLists is how many ListRequests of all streams are answered at once. An
	// answer has up to 64 KiB, and may wait for room in its ring.
	maxLists = 64
)

// listing is the entries that follow the page which a stream was sent last. A
// stream keeps one. It is used once, and for the next page only.
type listing struct {
	path    string
	after   string // the last name of that page
	entries []entry
}

// keepListing replaces the stream's listing, whose token it gives back. nil
// only drops it.
func (f *fileStream) keepListing(l *listing) {
	f.mu.Lock()
	old := f.listing
	f.listing = l
	f.mu.Unlock()
	if old != nil {
		<-f.listings
	}
}

// takeListing returns the listing that follows a name, with its token; nil if
// that isn't kept.
func (f *fileStream) takeListing(path, after string) *listing {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.listing
	if l == nil || l.path != path || l.after != after {
		return nil
	}
	f.listing = nil
	return l
}

// page returns the entries of a folder after m.After, as many as there is room
// for. A name, unlike a place in a folder, means the same at the next page,
// whatever was made and removed meanwhile.
func (f *fileStream) page(m wire.ListRequest) ([]byte, error) {
	limit := int(min(m.Limit, wire.MaxFileList))
	if limit < wire.FileEntryPrefixSize+wire.MaxFileName {
		return nil, unix.EINVAL
	}
	in, rest, err := place(f.share, string(m.Path))
	if err != nil {
		return nil, err
	}
	l := f.takeListing(string(m.Path), string(m.After))
	kept := l != nil
	if !kept {
		// A new listing replaces the last one.
		f.keepListing(nil)
		size := limit
		select {
		case f.listings <- struct{}{}:
			kept, size = true, listingSize
		default:
		}
		l = &listing{path: string(m.Path), after: string(m.After)}
		if l.entries, err = f.readFolder(in, rest, l.after, size); err != nil {
			if kept {
				<-f.listings
			}
			return nil, err
		}
	}
	b := l.encode(limit)
	switch {
	case !kept:
	case len(l.entries) == 0:
		<-f.listings
	default:
		f.keepListing(l)
	}
	return b, nil
}

// encode removes a page from the listing.
func (l *listing) encode(limit int) (b []byte) {
	for i, e := range l.entries {
		if len(b)+wire.FileEntryPrefixSize+len(e.name) > limit {
			l.entries = l.entries[i:]
			return b
		}
		l.after = e.name
		b = wire.AppendFileEntry(b, wire.FileEntry{Type: e.kind, Name: []byte(e.name)})
	}
	l.entries = nil
	return b
}

// readFolder returns the entries of a folder after a name, sorted, as many as
// fit into size bytes.
func (f *fileStream) readFolder(in share.Share, rest, after string, size int) ([]entry, error) {
	return share.Do(f.ctx, f.gates.Of(in), func() ([]entry, error) {
		p := page{after: after, limit: size}
		if rest == "." {
			for name := range in.Named {
				p.add(unix.DT_DIR, name)
			}
		}
		var err error
		switch {
		case in.Root != nil:
			err = eachName(f.ctx, in, rest, func(kind uint8, name []byte) {
				if _, hidden := in.Named[string(name)]; !hidden || rest != "." {
					p.add(kind, string(name))
				}
			})
		case rest != ".":
			err = unix.ENOENT
		}
		if err != nil {
			return nil, err
		}
		p.cut()
		return p.entries, nil
	}, nil)
}
