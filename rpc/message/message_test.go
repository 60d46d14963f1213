package message

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestControlRequests(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		m    ControlRequest
		want string
	}{
		{GetArgs{}, "00"},
		{Exit{-1}, "01 01"},
		{Exit{0}, "01 00"},
		{Exit{-300}, "01 d704"},
		{Exit{math.MinInt32}, "01 ffffffff0f"},
		{Open{"/tmp/f", Mode{Read: true}}, "02 06 2f746d702f66 01 00 00 00 00"},
		{Open{"", Mode{Write: true, Create: true, Append: true, Truncate: true}}, "02 00 00 01 01 01 01"},
		{Mkdir{"a/b"}, "03 03 612f62"},
		{Listen{[4]byte{127, 0, 0, 1}, 8080}, "04 7f000001 903f"},
		{Listen{[4]byte{}, 65535}, "04 00000000 ffff03"},
		{Connect{"localhost", 8080}, "05 09 6c6f63616c686f7374 903f"},
	} {
		want := unhex(t, c.want)
		if got := AppendControlRequest(nil, c.m, DialectA); !bytes.Equal(got, want) {
			t.Errorf("%#v encodes to % x, want % x", c.m, got, want)
		}
		got, _, err := DecodeControlRequest(want, DialectA)
		if err != nil {
			t.Errorf("%s: %v", c.want, err)
		}
		if diff := cmp.Diff(c.m, got); diff != "" {
			t.Errorf("%s: %s", c.want, diff)
		}
	}
}

// Two guests may mean different things by the same number.
func TestDialects(t *testing.T) {
	t.Parallel()
	loopback := [4]byte{127, 0, 0, 1}
	for _, c := range []struct {
		name  string
		in    string
		known Dialect
		want  ControlRequest // nil: fits neither
		shown Dialect
	}{
		{"alike", "00", UnknownDialect, GetArgs{}, UnknownDialect},
		{"alike", "00", DialectB, GetArgs{}, DialectB},
		{"alike", "01 02", UnknownDialect, Exit{1}, UnknownDialect},
		{"alike", "02 06 2f746d702f66 01 00 00 00 00", UnknownDialect, Open{"/tmp/f", Mode{Read: true}}, UnknownDialect},
		{"Listen", "03 7f000001 903f", UnknownDialect, Listen{loopback, 8080}, DialectB},
		{"Listen", "03 00000000 903f", UnknownDialect, Listen{[4]byte{}, 8080}, DialectB},
		{"Listen at port 80", "03 7f000001 50", UnknownDialect, Listen{loopback, 80}, DialectB},
		{"Listen at port 0", "03 7f000001 00", UnknownDialect, Listen{loopback, 0}, DialectB},
		{"Listen at the largest port", "03 7f000001 ffff03", UnknownDialect, Listen{loopback, 65535}, DialectB},
		{"Mkdir", "03 03 612f62", UnknownDialect, Mkdir{"a/b"}, DialectA},
		{"Mkdir of nothing", "03 00", UnknownDialect, Mkdir{}, DialectA},
		{"Mkdir of as many bytes as a Listen has", "03 06 612f622f6364", UnknownDialect, Mkdir{"a/b/cd"}, DialectA},
		{"Listen in A", "04 7f000001 903f", UnknownDialect, Listen{loopback, 8080}, DialectA},
		{"Connect in B", "04 09 6c6f63616c686f7374 903f", UnknownDialect, Connect{"localhost", 8080}, DialectB},
		{"Connect in A", "05 09 6c6f63616c686f7374 903f", UnknownDialect, Connect{"localhost", 8080}, DialectA},
		{"ambiguous, a path", "03 04 6162632f", UnknownDialect, Mkdir{"abc/"}, UnknownDialect},
		{"ambiguous, no path", "03 04 00000150", UnknownDialect, Listen{[4]byte{4, 0, 0, 1}, 80}, UnknownDialect},
		{"ambiguous, no UTF-8", "03 05 000001 903f", UnknownDialect, Listen{[4]byte{5, 0, 0, 1}, 8080}, DialectB},
		{"ambiguous, known", "03 04 6162632f", DialectB, Listen{[4]byte{4, 'a', 'b', 'c'}, '/'}, DialectB},
		{"ambiguous, known", "03 04 00000150", DialectA, Mkdir{"\x00\x00\x01P"}, DialectA},
		{"ambiguous, a host", "04 02 6462 903f", UnknownDialect, Connect{"db", 8080}, UnknownDialect},
		{"ambiguous, no host", "04 02 0000 903f", UnknownDialect, Listen{[4]byte{2, 0, 0, 0x90}, 63}, UnknownDialect},
		{"ambiguous, known", "04 02 6462 903f", DialectA, Listen{[4]byte{2, 'd', 'b', 0x90}, 63}, DialectA},
		{"none", "03 7f000001 ffff04", UnknownDialect, nil, UnknownDialect},
		{"none in either", "06 00", UnknownDialect, nil, UnknownDialect},
		{"A's Connect in B", "05 09 6c6f63616c686f7374 903f", DialectB, nil, DialectB},
		{"B's Listen in A", "03 7f000001 903f", DialectA, nil, DialectA},
		{"a length that no encoder writes", "03 8300 4141 50", UnknownDialect, Listen{[4]byte{0x83, 0, 'A', 'A'}, 80}, DialectB},
	} {
		m, shown, err := DecodeControlRequest(unhex(t, c.in), c.known)
		if diff := cmp.Diff(c.want, m); diff != "" || shown != c.shown || (err == nil) != (c.want != nil) {
			t.Errorf("%s: %s with %v known: shows %v, %v %s", c.name, c.in, c.known, shown, err, diff)
		}
		if m != nil && shown != UnknownDialect {
			if again := AppendControlRequest(nil, m, shown); !bytes.Equal(again, unhex(t, c.in)) {
				t.Errorf("%s: %s encodes to % x", c.name, c.in, again)
			}
		}
	}
}

func TestControlResponses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		m    ControlResponse
		want string
	}{
		{Args{"k", "bob"}, "00 02 01 6b 03 626f62"},
		{Args{}, "00 00"},
		{Pipe{0x59a010, 1024, 0x599010, 1024}, "01 90c0e602 8008 90a0e602 8008"},
		{Ack{}, "02"},
		{Err{NotFound}, "03 00"},
		{Err{PermissionDenied}, "03 01"},
		{Err{AlreadyExists}, "03 02"},
		{Err{InvalidInput}, "03 03"},
		{Err{InvalidData}, "03 04"},
		{Err{Unsupported}, "03 05"},
		{Err{OutOfMemory}, "03 06"},
		{Err{Interrupted}, "03 07"},
		{Err{Other}, "03 08"},
	} {
		want := unhex(t, c.want)
		if got := AppendControlResponse(nil, c.m); !bytes.Equal(got, want) {
			t.Errorf("%#v encodes to % x, want % x", c.m, got, want)
		}
		got, err := DecodeControlResponse(want)
		if err != nil {
			t.Errorf("%s: %v", c.want, err)
		}
		if diff := cmp.Diff(c.m, got); diff != "" {
			t.Errorf("%s: %s", c.want, diff)
		}
	}
}

func TestFileRequests(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		m    FileRequest
		data string
		want string
	}{
		{FileRequest{Op: FileRead, Length: 4096}, "", "00 8020"},
		{FileRequest{Op: FileWrite, Length: 3}, "abc", "01 03 616263"},
		{FileRequest{Op: FileWrite}, "", "01 00"},
		{FileRequest{Op: FileSeek, Whence: SeekCurrent, Offset: -2}, "", "02 01 03"},
		{FileRequest{Op: FileSeek, Whence: SeekEnd, Offset: 1}, "", "02 02 02"},
		{FileRequest{Op: FileSeek, Whence: SeekStart, Offset: 300}, "", "02 00 ac02"},
		{FileRequest{Op: FileSeek, Whence: SeekStart, Offset: -1}, "", "02 00 ffffffffffffffffff01"},
		{FileRequest{Op: FileSeek, Whence: SeekCurrent, Offset: math.MinInt64}, "", "02 01 ffffffffffffffffff01"},
		{FileRequest{Op: FileClose}, "", "03"},
	} {
		want := unhex(t, c.want)
		got := append(AppendFileRequest(nil, c.m), c.data...)
		if !bytes.Equal(got, want) {
			t.Errorf("%+v encodes to % x, want % x", c.m, got, want)
		}
		m, n, err := DecodeFileRequest(want[:min(len(want), HeadSize)], uint64(len(want)))
		if err != nil || m != c.m || string(want[n:]) != c.data {
			t.Errorf("%s: %+v, head of %d, %v", c.want, m, n, err)
		}
	}
}

func TestStreamRequests(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		m    StreamRequest
		data string
		want string
	}{
		{StreamRequest{StreamSend, 5}, "GET /", "00 05 474554202f"},
		{StreamRequest{StreamReceive, 1024}, "", "01 8008"},
		{StreamRequest{StreamReceive, math.MaxUint64}, "", "01 ffffffffffffffffff01"},
		{StreamRequest{Op: StreamClose}, "", "02"},
	} {
		want := unhex(t, c.want)
		got := append(AppendStreamRequest(nil, c.m), c.data...)
		if !bytes.Equal(got, want) {
			t.Errorf("%+v encodes to % x, want % x", c.m, got, want)
		}
		m, n, err := DecodeStreamRequest(want[:min(len(want), HeadSize)], uint64(len(want)))
		if err != nil || m != c.m || string(want[n:]) != c.data {
			t.Errorf("%s: %+v, head of %d, %v", c.want, m, n, err)
		}
	}
}

func TestListenerRequests(t *testing.T) {
	t.Parallel()
	for op, want := range map[ListenerOp]string{ListenerAccept: "00", ListenerClose: "01"} {
		b := AppendListenerRequest(nil, op)
		if hex.EncodeToString(b) != want {
			t.Errorf("%d encodes to %x, want %s", op, b, want)
		}
		if got, n, err := DecodeListenerRequest(b, 1); got != op || n != 1 || err != nil {
			t.Errorf("%s: %d, %d, %v", want, got, n, err)
		}
	}
}

func TestDataResponses(t *testing.T) {
	t.Parallel()
	ends := Pipe{0x59a010, 1024, 0x599010, 1024}
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"file Bytes", append(AppendFileBytes(nil, 5), "hello"...), "00 05 68656c6c6f"},
		{"file Length", AppendFileLength(nil, 17), "01 11"},
		{"file Offset", AppendFileOffset(nil, 300), "02 ac02"},
		{"file Ack", AppendFileAck(nil), "03"},
		{"listener Pipe", AppendListenerPipe(nil, ends), "00 90c0e602 8008 90a0e602 8008"},
		{"listener Ack", AppendListenerAck(nil), "01"},
		{"stream Length", AppendStreamLength(nil, 17), "00 11"},
		{"stream Bytes", append(AppendStreamBytes(nil, 5), "hello"...), "01 05 68656c6c6f"},
		{"stream Ack", AppendStreamAck(nil), "02"},
	} {
		if want := unhex(t, c.want); !bytes.Equal(c.got, want) {
			t.Errorf("%s encodes to % x, want % x", c.name, c.got, want)
		}
	}
	if m, err := DecodeListenerResponse(AppendListenerPipe(nil, ends), ListenerAccept); m != ends || err != nil {
		t.Errorf("listener Pipe: %+v, %v", m, err)
	}
	if _, err := DecodeListenerResponse(AppendListenerAck(nil), ListenerClose); err != nil {
		t.Errorf("listener Ack: %v", err)
	}
	if _, n, err := DecodeFileResponse(AppendFileOffset(nil, 300), FileSeek); n != 300 || err != nil {
		t.Errorf("file Offset: %d, %v", n, err)
	}
	if data, _, err := DecodeStreamResponse(unhex(t, "01 05 68656c6c6f"), StreamReceive); string(data) != "hello" || err != nil {
		t.Errorf("stream Bytes: %q, %v", data, err)
	}
}

func TestVarints(t *testing.T) {
	t.Parallel()
	for n, want := range map[uint64]string{
		0: "00", 127: "7f", 128: "8001", 16383: "ff7f", 16384: "808001", math.MaxUint64: "ffffffffffffffffff01",
	} {
		b := appendVarint(nil, n)
		if hex.EncodeToString(b) != want || VarintSize(n) != len(b) {
			t.Errorf("%d encodes to %x, size %d, want %s", n, b, VarintSize(n), want)
		}
	}
	for _, c := range []struct {
		in   string
		size int
		want uint64
		ok   bool
	}{
		{"ffff03", 16, 65535, true},
		{"ffff04", 16, 0, false},
		{"ffffff00", 16, 0, false},
		{"808000", 16, 0, true}, // longer than it need be, as postcard takes it
		{"ffffffff0f", 32, math.MaxUint32, true},
		{"ffffffff10", 32, 0, false},
		{"ffffffffffffffffff01", 64, math.MaxUint64, true},
		{"ffffffffffffffffff02", 64, 0, false},
		{"ffffffffffffffffffff01", 64, 0, false},
		{"80", 64, 0, false},
		{"", 64, 0, false},
	} {
		d := decoder{b: unhex(t, c.in)}
		got := d.varint(c.size)
		if err := d.end(); got != c.want || (err == nil) != c.ok {
			t.Errorf("%s of %d bits: %d, %v", c.in, c.size, got, err)
		}
	}
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		"", "06", "0000", "01", "01 ffffffff1f", "02 06 2f", "02 01 61 02 00 00 00 00", "02 01 ff 01 00 00 00 00", "02 01 61 01 00 00 00",
		"03", "03 ffffffffffffffffff01 61", "04 7f0000", "04 7f000001 ffff04", "05 01 61", "8180808000", "03 03 ff2f62",
	} {
		for _, known := range []Dialect{UnknownDialect, DialectA} {
			if m, _, err := DecodeControlRequest(unhex(t, in), known); !errors.Is(err, ErrMalformed) {
				t.Errorf("control %q in %v: %#v, %v", in, known, m, err)
			}
		}
	}
	for _, in := range []string{"", "04", "00", "00 8020 00", "01 04 616263", "01 02 616263", "02 03 00", "02 01", "03 00", "01 ffffffffffffffffff01"} {
		b := unhex(t, in)
		if m, _, err := DecodeFileRequest(b, uint64(len(b))); !errors.Is(err, ErrMalformed) {
			t.Errorf("file %q: %+v, %v", in, m, err)
		}
	}
	for _, in := range []string{"", "03", "00", "01 8008 00", "00 04 616263", "02 00"} {
		b := unhex(t, in)
		if m, _, err := DecodeStreamRequest(b, uint64(len(b))); !errors.Is(err, ErrMalformed) {
			t.Errorf("stream %q: %+v, %v", in, m, err)
		}
	}
	for _, in := range []string{"", "02", "00 00"} {
		b := unhex(t, in)
		if m, _, err := DecodeListenerRequest(b, uint64(len(b))); !errors.Is(err, ErrMalformed) {
			t.Errorf("listener %q: %+v, %v", in, m, err)
		}
	}
}
