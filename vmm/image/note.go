package image

import (
	"debug/elf"
	"encoding/binary"
)

const (
	noteOwner   = "Arca\x00"
	noteTypeABI = 1
)

// readVersion looks for the ABI note in a PT_NOTE segment and reports whether
// it is there. It skips other notes, and the rest of a segment that isn't made
// of notes.
func (i *Image) readVersion(index int, p elf.Prog64) (bool, error) {
	if !i.inFile(p.Off, p.Filesz) {
		return false, i.bad("is cut off: note segment %d has 0x%x bytes at 0x%x, the file ends at 0x%x", index, p.Filesz, p.Off, i.size)
	}
	raw := make([]byte, min(p.Filesz, maxNoteSize))
	if err := i.readAt(raw, p.Off); err != nil {
		return false, err
	}
	desc, found := findNote(raw, p.Align)
	if !found {
		return false, nil
	}
	if len(desc) != 4 {
		return false, i.bad("its Arca ABI note has a descriptor of %d bytes, not 4", len(desc))
	}
	i.Version = Version(binary.LittleEndian.Uint32(desc))
	if i.Version == 0 {
		return false, i.bad("its Arca ABI note names version 0, which doesn't exist")
	}
	return true, nil
}

// findNote returns the descriptor of the ABI note among the notes in raw. The
// parts of a note are padded to 4 bytes, or to 8 in a segment of that
// alignment.
func findNote(raw []byte, align uint64) (desc []byte, found bool) {
	pad := uint64(4)
	if align == 8 {
		pad = 8
	}
	up := func(n uint64) uint64 { return (n + pad - 1) &^ (pad - 1) }
	total := uint64(len(raw))
	for at := uint64(0); total-at >= 12; {
		nameSize := uint64(binary.LittleEndian.Uint32(raw[at:]))
		descSize := uint64(binary.LittleEndian.Uint32(raw[at+4:]))
		kind := binary.LittleEndian.Uint32(raw[at+8:])
		name := at + 12
		descAt := up(name + nameSize)
		if descAt > total || descSize > total-descAt {
			return nil, false
		}
		if kind == noteTypeABI && string(raw[name:name+nameSize]) == noteOwner {
			return raw[descAt : descAt+descSize], true
		}
		at = min(up(descAt+descSize), total)
	}
	return nil, false
}
