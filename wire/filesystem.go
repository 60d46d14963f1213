package wire

import (
	"bytes"
	"encoding/binary"
	"math"
)

const readFilePrefixSize = 16

// ToEnd as a ReadFileRequest's length means: to the end of the file.
const ToEnd = math.MaxUint64

// ReadFileRequest asks for Length bytes of a file from Offset on.
type ReadFileRequest struct {
	Offset uint64
	Length uint64 // ToEnd: to the end
	Path   []byte // 1 to MaxPath bytes
}

// AppendReadFileRequest appends m as a frame. The path must be 1 to MaxPath bytes long.
func AppendReadFileRequest(b []byte, request uint64, m ReadFileRequest) []byte {
	b = AppendHeader(b, Header{
		Length: uint32(readFilePrefixSize + len(m.Path)), Kind: KindReadFileRequest, RequestID: request,
	})
	b = binary.LittleEndian.AppendUint64(b, m.Offset)
	b = binary.LittleEndian.AppendUint64(b, m.Length)
	return append(b, m.Path...)
}

// DecodeReadFileRequest decodes a payload. It doesn't judge the path beyond its length and NUL bytes.
func DecodeReadFileRequest(p []byte) (ReadFileRequest, error) {
	if len(p) <= readFilePrefixSize || len(p) > readFilePrefixSize+MaxPath {
		return ReadFileRequest{}, malformed(KindReadFileRequest, ErrLength)
	}
	m := ReadFileRequest{
		Offset: binary.LittleEndian.Uint64(p[0:]),
		Length: binary.LittleEndian.Uint64(p[8:]),
		Path:   p[readFilePrefixSize:],
	}
	if bytes.IndexByte(m.Path, 0) >= 0 {
		return ReadFileRequest{}, malformed(KindReadFileRequest, ErrPath)
	}
	return m, nil
}

// FileData is a piece of a file, or with a status that is not 0 the end of an answer that failed.
type FileData struct {
	Status uint32
	Offset uint64
	Data   []byte
}

// AppendFileData appends m as a frame. The data must not be longer than MaxFileData.
func AppendFileData(b []byte, request uint64, flags Flags, m FileData) []byte {
	b = AppendFileDataPrefix(b, request, flags, m.Status, m.Offset, len(m.Data))
	return append(b, m.Data...)
}

// AppendFileDataPrefix appends a FileData frame up to its data, of which n bytes follow: HeaderSize plus
// FileDataPrefixSize bytes. It serves a writer that puts the data in its place by itself.
func AppendFileDataPrefix(b []byte, request uint64, flags Flags, status uint32, offset uint64, n int) []byte {
	b = AppendHeader(b, Header{
		Length: uint32(FileDataPrefixSize + n), Kind: KindFileData, Flags: flags, RequestID: request,
	})
	return binary.LittleEndian.AppendUint64(appendStatus(b, status), offset)
}

// DecodeFileData decodes a payload. After a status that is not 0 the rest may be missing.
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
