package wire

import (
	"encoding/binary"
	"iter"
	"math"
)

const (
	readFilePrefixSize  = 16
	openFilePrefixSize  = 8
	readRequestSize     = 24
	statPrefixSize      = 16
	listPrefixSize      = 8
	mkdirPrefixSize     = 8
	renamePrefixSize    = 8
	truncateRequestSize = 16
	handleRequestSize   = 8
	fileDoneSize        = statusSize + 8
	fileInfoSize        = statusSize + 24
)

// ToEnd as a length means: to the end of the file.
const ToEnd = math.MaxUint64

// OpenFlags say what an OpenFileRequest asks for.
type OpenFlags uint32

// Flags of an OpenFileRequest.
const (
	OpenRead      OpenFlags = 1 << iota
	OpenWrite               // at an offset
	OpenAppend              // each Write goes to the end of the file
	OpenCreate              // a file that doesn't exist; only with OpenWrite or OpenAppend
	OpenTruncate            // to no bytes; only with OpenWrite or OpenAppend
	OpenExclusive           // fail if it exists; only with OpenCreate
)

const openFlags = OpenRead | OpenWrite | OpenAppend | OpenCreate | OpenTruncate | OpenExclusive

// StatNoFollow in a StatRequest asks about a symbolic link itself.
const StatNoFollow uint32 = 1

// MkdirParents in a MkdirRequest makes the folders above, too, and is content
// with a folder that exists.
const MkdirParents uint32 = 1

// checkPaths checks the length of what follows a prefix.
func checkPaths(k Kind, p []byte, prefix int) error {
	if len(p) <= prefix || len(p) > prefix+MaxPathBytes {
		return malformed(k, ErrLength)
	}
	return nil
}

func appendFileHeader(b []byte, k Kind, request uint64, length int) []byte {
	return AppendHeader(b, Header{Length: uint32(length), Kind: k, RequestID: request})
}

// ReadFileRequest asks for Length bytes of a file from Offset on.
type ReadFileRequest struct {
	Offset uint64
	Length uint64 // ToEnd: to the end
	Path   []byte // 1 to MaxPathBytes
}

// AppendReadFileRequest appends m as a frame.
func AppendReadFileRequest(b []byte, request uint64, m ReadFileRequest) []byte {
	b = appendFileHeader(b, KindReadFileRequest, request, readFilePrefixSize+len(m.Path))
	b = binary.LittleEndian.AppendUint64(b, m.Offset)
	b = binary.LittleEndian.AppendUint64(b, m.Length)
	return append(b, m.Path...)
}

// DecodeReadFileRequest decodes a payload. As all decoders of requests about
// files, it doesn't judge what is in a path.
func DecodeReadFileRequest(p []byte) (ReadFileRequest, error) {
	if err := checkPaths(KindReadFileRequest, p, readFilePrefixSize); err != nil {
		return ReadFileRequest{}, err
	}
	return ReadFileRequest{
		Offset: binary.LittleEndian.Uint64(p[0:]),
		Length: binary.LittleEndian.Uint64(p[8:]),
		Path:   p[readFilePrefixSize:],
	}, nil
}

// FileData is a piece of a file, or with a status that is not 0 the end of an
// answer that failed.
type FileData struct {
	Status uint32
	Offset uint64
	Data   []byte
}

// AppendFileData appends m as a frame. The data must not be longer than
// MaxFileData.
func AppendFileData(b []byte, request uint64, flags Flags, m FileData) []byte {
	b = AppendFileDataPrefix(b, request, flags, m.Status, m.Offset, len(m.Data))
	return append(b, m.Data...)
}

// AppendFileDataPrefix appends a FileData frame up to its data, of which n
// bytes follow: HeaderSize plus FileDataPrefixSize bytes. It serves a writer
// that puts the data in its place by itself.
func AppendFileDataPrefix(b []byte, request uint64, flags Flags, status uint32, offset uint64, n int) []byte {
	b = AppendHeader(b, Header{
		Length: uint32(FileDataPrefixSize + n), Kind: KindFileData, Flags: flags, RequestID: request,
	})
	return binary.LittleEndian.AppendUint64(appendStatus(b, status), offset)
}

// DecodeFileData decodes a payload. After a status that is not 0 the rest may
// be missing.
func DecodeFileData(p []byte) (FileData, error) {
	status, rest, err := decodeStatus(KindFileData, p)
	switch {
	case err != nil:
		return FileData{}, err
	case status != 0 && len(rest) == 0:
		return FileData{Status: status}, nil
	case len(p) < FileDataPrefixSize || len(p) > FileDataPrefixSize+MaxFileData:
		return FileData{}, malformed(KindFileData, ErrLength)
	}
	return FileData{Status: status, Offset: binary.LittleEndian.Uint64(rest), Data: rest[8:]}, nil
}

// FileDone answers the requests that have no answer of their own. Value is the
// handle after an OpenFileRequest; after a WriteRequest the number of bytes
// written, with any status; else 0.
type FileDone struct {
	Status uint32
	Value  uint64
}

// AppendFileDone appends m as a frame.
func AppendFileDone(b []byte, request uint64, m FileDone) []byte {
	b = appendStatus(appendFileHeader(b, KindFileDone, request, fileDoneSize), m.Status)
	return binary.LittleEndian.AppendUint64(b, m.Value)
}

// DecodeFileDone decodes a payload. After a status that is not 0 the rest may
// be missing.
func DecodeFileDone(p []byte) (FileDone, error) {
	status, rest, err := decodeStatus(KindFileDone, p)
	switch {
	case err != nil:
		return FileDone{}, err
	case status != 0 && len(rest) == 0:
		return FileDone{Status: status}, nil
	case len(p) != fileDoneSize:
		return FileDone{}, malformed(KindFileDone, ErrLength)
	}
	return FileDone{Status: status, Value: binary.LittleEndian.Uint64(rest)}, nil
}

// FileInfo answers a StatRequest. All but Status is set with status 0 only.
type FileInfo struct {
	Status      uint32
	Size        uint64
	Seconds     int64 // of the last change of the contents, since 1970
	Nanoseconds uint32
	Mode        uint32 // type and permissions, as Linux's st_mode has them
}

// AppendFileInfo appends m as a frame, the status alone if that is not 0.
func AppendFileInfo(b []byte, request uint64, m FileInfo) []byte {
	if m.Status != 0 {
		return appendStatus(appendFileHeader(b, KindFileInfo, request, statusSize), m.Status)
	}
	b = appendStatus(appendFileHeader(b, KindFileInfo, request, fileInfoSize), 0)
	b = binary.LittleEndian.AppendUint64(b, m.Size)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Seconds))
	b = binary.LittleEndian.AppendUint32(b, m.Nanoseconds)
	return binary.LittleEndian.AppendUint32(b, m.Mode)
}

// DecodeFileInfo decodes a payload.
func DecodeFileInfo(p []byte) (FileInfo, error) {
	status, rest, err := decodeStatus(KindFileInfo, p)
	switch {
	case err != nil:
		return FileInfo{}, err
	case status != 0 && (len(p) == statusSize || len(p) == fileInfoSize):
		return FileInfo{Status: status}, nil
	case len(p) != fileInfoSize:
		return FileInfo{}, malformed(KindFileInfo, ErrLength)
	}
	return FileInfo{
		Size:        binary.LittleEndian.Uint64(rest[0:]),
		Seconds:     int64(binary.LittleEndian.Uint64(rest[8:])),
		Nanoseconds: binary.LittleEndian.Uint32(rest[16:]),
		Mode:        binary.LittleEndian.Uint32(rest[20:]),
	}, nil
}

// FileList answers a ListRequest: entries in ascending order of their names'
// bytes, none after the last. Entries holds them as they are on the wire; see
// AppendFileEntry and CutFileEntry.
type FileList struct {
	Status  uint32
	Entries []byte // at most MaxFileList
}

// FileEntry is a name in a folder.
type FileEntry struct {
	Type uint8  // as Linux's d_type: 4 folder, 8 file, 10 symbolic link …, 0 unknown
	Name []byte // 1 to MaxFileName bytes
}

// AppendFileList appends m as a frame.
func AppendFileList(b []byte, request uint64, m FileList) []byte {
	b = appendFileHeader(b, KindFileList, request, statusSize+len(m.Entries))
	return append(appendStatus(b, m.Status), m.Entries...)
}

// DecodeFileList decodes a payload and checks its entries.
func DecodeFileList(p []byte) (FileList, error) {
	status, rest, err := decodeStatus(KindFileList, p)
	if err != nil {
		return FileList{}, err
	}
	if len(rest) > MaxFileList {
		return FileList{}, malformed(KindFileList, ErrLength)
	}
	for left := rest; len(left) > 0; {
		if _, left, err = CutFileEntry(left); err != nil {
			return FileList{}, err
		}
	}
	return FileList{Status: status, Entries: rest}, nil
}

// All returns the entries, of a message that DecodeFileList has checked.
func (m FileList) All() iter.Seq[FileEntry] { return entries(m.Entries, CutFileEntry) }

// AppendFileEntry appends an entry of a FileList.
func AppendFileEntry(b []byte, e FileEntry) []byte {
	return append(append(b, e.Type, uint8(len(e.Name))), e.Name...)
}

// CutFileEntry decodes the first of the entries, and returns those after it.
func CutFileEntry(entries []byte) (e FileEntry, rest []byte, err error) {
	if len(entries) < FileEntryPrefixSize || entries[1] == 0 || len(entries) < FileEntryPrefixSize+int(entries[1]) {
		return FileEntry{}, nil, malformed(KindFileList, ErrLength)
	}
	end := FileEntryPrefixSize + int(entries[1])
	return FileEntry{Type: entries[0], Name: entries[FileEntryPrefixSize:end]}, entries[end:], nil
}

// OpenFileRequest asks for a handle.
type OpenFileRequest struct {
	Flags OpenFlags
	Path  []byte // 1 to MaxPathBytes
}

// AppendOpenFileRequest appends m as a frame.
func AppendOpenFileRequest(b []byte, request uint64, m OpenFileRequest) []byte {
	b = appendFileHeader(b, KindOpenFileRequest, request, openFilePrefixSize+len(m.Path))
	return append(binary.LittleEndian.AppendUint64(b, uint64(m.Flags)), m.Path...)
}

// DecodeOpenFileRequest decodes a payload. Which flags go together is the
// answerer's to judge.
func DecodeOpenFileRequest(p []byte) (OpenFileRequest, error) {
	if err := checkPaths(KindOpenFileRequest, p, openFilePrefixSize); err != nil {
		return OpenFileRequest{}, err
	}
	flags, err := decodeFlags(KindOpenFileRequest, p, uint32(openFlags))
	if err != nil {
		return OpenFileRequest{}, err
	}
	return OpenFileRequest{Flags: OpenFlags(flags), Path: p[openFilePrefixSize:]}, nil
}

// decodeFlags reads { flags u32 · 0 u32 }.
func decodeFlags(k Kind, p []byte, defined uint32) (uint32, error) {
	flags := binary.LittleEndian.Uint32(p)
	if flags&^defined != 0 {
		return 0, malformed(k, ErrFlags)
	}
	if binary.LittleEndian.Uint32(p[4:]) != 0 {
		return 0, malformed(k, ErrReserved)
	}
	return flags, nil
}

// ReadRequest asks for Length bytes of an open file from Offset on.
type ReadRequest struct {
	Handle uint64
	Offset uint64
	Length uint64 // ToEnd: to the end
}

// AppendReadRequest appends m as a frame.
func AppendReadRequest(b []byte, request uint64, m ReadRequest) []byte {
	b = appendFileHeader(b, KindReadRequest, request, readRequestSize)
	b = binary.LittleEndian.AppendUint64(b, m.Handle)
	b = binary.LittleEndian.AppendUint64(b, m.Offset)
	return binary.LittleEndian.AppendUint64(b, m.Length)
}

// DecodeReadRequest decodes a payload.
func DecodeReadRequest(p []byte) (ReadRequest, error) {
	if len(p) != readRequestSize {
		return ReadRequest{}, malformed(KindReadRequest, ErrLength)
	}
	return ReadRequest{
		Handle: binary.LittleEndian.Uint64(p[0:]),
		Offset: binary.LittleEndian.Uint64(p[8:]),
		Length: binary.LittleEndian.Uint64(p[16:]),
	}, nil
}

// WriteRequest puts bytes into an open file from Offset on, or if it was opened
// with OpenAppend at its end.
type WriteRequest struct {
	Handle uint64
	Offset uint64
	Data   []byte // at most MaxFileData
}

// AppendWriteRequest appends m as a frame.
func AppendWriteRequest(b []byte, request uint64, m WriteRequest) []byte {
	b = appendFileHeader(b, KindWriteRequest, request, WritePrefixSize+len(m.Data))
	b = binary.LittleEndian.AppendUint64(b, m.Handle)
	b = binary.LittleEndian.AppendUint64(b, m.Offset)
	return append(b, m.Data...)
}

// DecodeWriteRequest decodes a payload, or the first WritePrefixSize bytes of
// one: it serves a reader that takes the data from its place by itself.
func DecodeWriteRequest(p []byte) (WriteRequest, error) {
	if len(p) < WritePrefixSize || len(p) > WritePrefixSize+MaxFileData {
		return WriteRequest{}, malformed(KindWriteRequest, ErrLength)
	}
	return WriteRequest{
		Handle: binary.LittleEndian.Uint64(p[0:]),
		Offset: binary.LittleEndian.Uint64(p[8:]),
		Data:   p[WritePrefixSize:],
	}, nil
}

// StatRequest asks about an open file, or about a path.
type StatRequest struct {
	Handle uint64 // 0 with a path, only then
	Flags  uint32 // StatNoFollow
	Path   []byte // none, or 1 to MaxPathBytes
}

// AppendStatRequest appends m as a frame.
func AppendStatRequest(b []byte, request uint64, m StatRequest) []byte {
	b = appendFileHeader(b, KindStatRequest, request, statPrefixSize+len(m.Path))
	b = binary.LittleEndian.AppendUint64(b, m.Handle)
	return append(binary.LittleEndian.AppendUint64(b, uint64(m.Flags)), m.Path...)
}

// DecodeStatRequest decodes a payload.
func DecodeStatRequest(p []byte) (StatRequest, error) {
	if len(p) < statPrefixSize || len(p) > statPrefixSize+MaxPathBytes {
		return StatRequest{}, malformed(KindStatRequest, ErrLength)
	}
	flags, err := decodeFlags(KindStatRequest, p[8:], StatNoFollow)
	if err != nil {
		return StatRequest{}, err
	}
	m := StatRequest{Handle: binary.LittleEndian.Uint64(p), Flags: flags, Path: p[statPrefixSize:]}
	if (m.Handle == 0) != (len(m.Path) > 0) {
		return StatRequest{}, malformed(KindStatRequest, ErrLength)
	}
	return m, nil
}

// ListRequest asks for the names in a folder that come after a given one.
type ListRequest struct {
	Limit uint32 // the most bytes of entries, at least FileEntryPrefixSize plus MaxFileName
	Path  []byte // at least 1 byte, with After at most MaxPathBytes
	After []byte // at most MaxFileName bytes; empty: from the first name on
}

// AppendListRequest appends m as a frame.
func AppendListRequest(b []byte, request uint64, m ListRequest) []byte {
	b = appendFileHeader(b, KindListRequest, request, listPrefixSize+len(m.Path)+len(m.After))
	b = binary.LittleEndian.AppendUint32(b, m.Limit)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.Path)))
	return append(append(b, m.Path...), m.After...)
}

// DecodeListRequest decodes a payload.
func DecodeListRequest(p []byte) (ListRequest, error) {
	if err := checkPaths(KindListRequest, p, listPrefixSize); err != nil {
		return ListRequest{}, err
	}
	n, names := binary.LittleEndian.Uint32(p[4:]), p[listPrefixSize:]
	if n == 0 || uint64(n) > uint64(len(names)) || len(names)-int(n) > MaxFileName {
		return ListRequest{}, malformed(KindListRequest, ErrLength)
	}
	return ListRequest{Limit: binary.LittleEndian.Uint32(p), Path: names[:n], After: names[n:]}, nil
}

// MkdirRequest makes a folder.
type MkdirRequest struct {
	Flags uint32 // MkdirParents
	Path  []byte // 1 to MaxPathBytes
}

// AppendMkdirRequest appends m as a frame.
func AppendMkdirRequest(b []byte, request uint64, m MkdirRequest) []byte {
	b = appendFileHeader(b, KindMkdirRequest, request, mkdirPrefixSize+len(m.Path))
	return append(binary.LittleEndian.AppendUint64(b, uint64(m.Flags)), m.Path...)
}

// DecodeMkdirRequest decodes a payload.
func DecodeMkdirRequest(p []byte) (MkdirRequest, error) {
	if err := checkPaths(KindMkdirRequest, p, mkdirPrefixSize); err != nil {
		return MkdirRequest{}, err
	}
	flags, err := decodeFlags(KindMkdirRequest, p, MkdirParents)
	if err != nil {
		return MkdirRequest{}, err
	}
	return MkdirRequest{Flags: flags, Path: p[mkdirPrefixSize:]}, nil
}

// RemoveRequest removes a file, a link, or an empty folder.
type RemoveRequest struct {
	Path []byte // 1 to MaxPathBytes
}

// AppendRemoveRequest appends m as a frame.
func AppendRemoveRequest(b []byte, request uint64, m RemoveRequest) []byte {
	return append(appendFileHeader(b, KindRemoveRequest, request, len(m.Path)), m.Path...)
}

// DecodeRemoveRequest decodes a payload.
func DecodeRemoveRequest(p []byte) (RemoveRequest, error) {
	if err := checkPaths(KindRemoveRequest, p, 0); err != nil {
		return RemoveRequest{}, err
	}
	return RemoveRequest{Path: p}, nil
}

// RenameRequest gives a file or folder another path.
type RenameRequest struct {
	Old []byte // 1 byte at least
	New []byte // 1 byte at least; both together at most MaxPathBytes
}

// AppendRenameRequest appends m as a frame.
func AppendRenameRequest(b []byte, request uint64, m RenameRequest) []byte {
	b = appendFileHeader(b, KindRenameRequest, request, renamePrefixSize+len(m.Old)+len(m.New))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(m.Old)))
	return append(append(b, m.Old...), m.New...)
}

// DecodeRenameRequest decodes a payload.
func DecodeRenameRequest(p []byte) (RenameRequest, error) {
	if err := checkPaths(KindRenameRequest, p, renamePrefixSize); err != nil {
		return RenameRequest{}, err
	}
	if binary.LittleEndian.Uint32(p[4:]) != 0 {
		return RenameRequest{}, malformed(KindRenameRequest, ErrReserved)
	}
	n, names := binary.LittleEndian.Uint32(p), p[renamePrefixSize:]
	if n == 0 || uint64(n) >= uint64(len(names)) {
		return RenameRequest{}, malformed(KindRenameRequest, ErrLength)
	}
	return RenameRequest{Old: names[:n], New: names[n:]}, nil
}

// TruncateRequest cuts or lengthens an open file.
type TruncateRequest struct {
	Handle uint64
	Size   uint64
}

// AppendTruncateRequest appends m as a frame.
func AppendTruncateRequest(b []byte, request uint64, m TruncateRequest) []byte {
	b = appendFileHeader(b, KindTruncateRequest, request, truncateRequestSize)
	b = binary.LittleEndian.AppendUint64(b, m.Handle)
	return binary.LittleEndian.AppendUint64(b, m.Size)
}

// DecodeTruncateRequest decodes a payload.
func DecodeTruncateRequest(p []byte) (TruncateRequest, error) {
	if len(p) != truncateRequestSize {
		return TruncateRequest{}, malformed(KindTruncateRequest, ErrLength)
	}
	return TruncateRequest{Handle: binary.LittleEndian.Uint64(p), Size: binary.LittleEndian.Uint64(p[8:])}, nil
}

// SyncRequest asks that what was written to an open file be on the disk before
// the answer.
type SyncRequest struct {
	Handle uint64
}

// AppendSyncRequest appends m as a frame.
func AppendSyncRequest(b []byte, request uint64, m SyncRequest) []byte {
	return binary.LittleEndian.AppendUint64(appendFileHeader(b, KindSyncRequest, request, handleRequestSize), m.Handle)
}

// DecodeSyncRequest decodes a payload.
func DecodeSyncRequest(p []byte) (SyncRequest, error) {
	if len(p) != handleRequestSize {
		return SyncRequest{}, malformed(KindSyncRequest, ErrLength)
	}
	return SyncRequest{Handle: binary.LittleEndian.Uint64(p)}, nil
}

// CloseRequest gives a handle back.
type CloseRequest struct {
	Handle uint64
}

// AppendCloseRequest appends m as a frame.
func AppendCloseRequest(b []byte, request uint64, m CloseRequest) []byte {
	return binary.LittleEndian.AppendUint64(appendFileHeader(b, KindCloseRequest, request, handleRequestSize), m.Handle)
}

// DecodeCloseRequest decodes a payload.
func DecodeCloseRequest(p []byte) (CloseRequest, error) {
	if len(p) != handleRequestSize {
		return CloseRequest{}, malformed(KindCloseRequest, ErrLength)
	}
	return CloseRequest{Handle: binary.LittleEndian.Uint64(p)}, nil
}
