package relay

import (
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/wire"
)

// Bounds of what is read of a folder in advance, so that listing a large one, page by page, doesn't read it as often as it has pages.
const (
	// listingSize is how many bytes of entries are kept.
	listingSize = 1 << 20
	// maxListings may be kept by the streams of a virtual machine; others read the folder again for each page.
	maxListings = 16
	// maxLists is how many ListRequests of all streams are answered at once: an
	// answer, of up to 64 KiB, may have to wait for room in its ring.
	maxLists = 64
)

// listing is what follows a page that a stream has been sent. A stream keeps one. It is used once, and only for the very next page.
type listing struct {
	path    string
	after   string // the last name of that page
	entries []entry
}

// keepListing replaces what is kept; nil drops it. What it replaces gives its token back.
func (f *fileStream) keepListing(l *listing) {
	f.mu.Lock()
	old := f.listing
	f.listing = l
	f.mu.Unlock()
	if old != nil {
		<-f.listings
	}
}

// takeListing returns what follows a name, nil if that isn't kept. The token goes with it.
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

// page returns the first of a folder's entries after m.After, as many as there is room for. Names, unlike places in a folder, mean the same next time, whatever
// was made and removed meanwhile.
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
		// The next listing takes the place of the last.
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

// encode takes a page off the listing.
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

// readFolder returns the first of a folder's entries after a name, sorted, as many as fit into size bytes.
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
