package message

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What decodes encodes to something that decodes to the same.

func FuzzControlRequest(f *testing.F) {
	for _, d := range []Dialect{DialectA, DialectB} {
		for _, m := range []ControlRequest{
			GetArgs{}, Exit{-1}, Open{"/tmp/f", Mode{Read: true}}, Mkdir{"a/b"}, Listen{[4]byte{127, 0, 0, 1}, 8080}, Connect{"localhost", 8080},
		} {
			f.Add(AppendControlRequest(nil, m, d), byte(d))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, known byte) {
		m, shown, err := DecodeControlRequest(b, Dialect(known%3))
		if err != nil {
			return
		}
		ways := []Dialect{shown}
		if shown == UnknownDialect {
			ways = []Dialect{DialectA, DialectB}
		}
		for _, d := range ways {
			again, _, err := DecodeControlRequest(AppendControlRequest(nil, m, d), d)
			if err == nil && cmp.Equal(m, again) {
				return
			}
		}
		t.Fatalf("%#v of %v doesn't come back", m, shown)
	})
}

func FuzzControlResponse(f *testing.F) {
	for _, m := range []ControlResponse{Args{"k", "bob"}, Pipe{0x59a010, 1024, 0x599010, 1024}, Ack{}, Err{Other}} {
		f.Add(AppendControlResponse(nil, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeControlResponse(b)
		if err != nil {
			return
		}
		again, err := DecodeControlResponse(AppendControlResponse(nil, m))
		if err != nil || !cmp.Equal(m, again) {
			t.Fatalf("%#v became %#v, %v", m, again, err)
		}
	})
}

func FuzzFileRequest(f *testing.F) {
	for _, m := range []FileRequest{
		{Op: FileRead, Length: 4096}, {Op: FileSeek, Whence: SeekEnd, Offset: -1}, {Op: FileClose},
	} {
		f.Add(AppendFileRequest(nil, m))
	}
	f.Add([]byte("\x01\x03abc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, n, err := DecodeFileRequest(b[:min(len(b), HeadSize)], uint64(len(b)))
		if err != nil {
			return
		}
		if n > len(b) || m.Op == FileWrite && m.Length != uint64(len(b)-n) {
			t.Fatalf("%+v with a head of %d in %d bytes", m, n, len(b))
		}
		e := append(AppendFileRequest(nil, m), b[n:]...)
		again, k, err := DecodeFileRequest(e[:min(len(e), HeadSize)], uint64(len(e)))
		if err != nil || m != again || !bytes.Equal(e[k:], b[n:]) {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
	})
}

func FuzzStreamRequest(f *testing.F) {
	f.Add([]byte("\x00\x05GET /"))
	f.Add([]byte("\x01\x80\x08"))
	f.Add([]byte("\x02"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, n, err := DecodeStreamRequest(b[:min(len(b), HeadSize)], uint64(len(b)))
		if err != nil {
			return
		}
		if n > len(b) || m.Op == StreamSend && m.Length != uint64(len(b)-n) {
			t.Fatalf("%+v with a head of %d in %d bytes", m, n, len(b))
		}
		e := append(AppendStreamRequest(nil, m), b[n:]...)
		again, k, err := DecodeStreamRequest(e[:min(len(e), HeadSize)], uint64(len(e)))
		if err != nil || m != again || !bytes.Equal(e[k:], b[n:]) {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
	})
}

func FuzzResponses(f *testing.F) {
	f.Add([]byte("\x00\x05hello"), byte(0))
	f.Add([]byte("\x01\x11"), byte(1))
	f.Add([]byte("\x03"), byte(3))
	f.Fuzz(func(t *testing.T, b []byte, op byte) {
		data, n, err := DecodeFileResponse(b, FileOp(op))
		if err == nil && FileOp(op) == FileRead && uint64(len(data)) != n {
			t.Fatalf("%d bytes, said to be %d", len(data), n)
		}
		_, _, _ = DecodeStreamResponse(b, StreamOp(op))
		_, _ = DecodeListenerResponse(b, ListenerOp(op))
	})
}
