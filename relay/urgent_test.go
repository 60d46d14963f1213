package relay_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/wire"
)

// sendUrgent sends the last byte of b as urgent data.
func sendUrgent(t *testing.T, c syscall.Conn, b string) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.Send(int(fd), []byte(b), unix.MSG_OOB) }); err != nil {
		t.Fatal(err)
	}
	if serr == unix.EOPNOTSUPP {
		t.Skip("this kernel's UNIX sockets know no urgent data (CONFIG_AF_UNIX_OOB)")
	}
	if serr != nil {
		t.Fatal(serr)
	}
}

// Urgent data is a byte that Linux takes out of the stream. A guest gets the
// bytes before and after it, and the connection goes on.
func TestUrgentData(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"TCP", "UNIX"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, g, conn, _ := lingerCases[name](t)
			p := conn.(interface {
				end
				syscall.Conn
			})
			deadline(t, p)
			for range 3 {
				p.Write([]byte("before"))
				sendUrgent(t, p, "!")
				p.Write([]byte("after"))
				wantBytes(t, g, []byte("beforeafter"))
			}
			// An urgent byte that arrives alone, while the guest waits, isn't
			// an end.
			sendUrgent(t, p, "!")
			p.Write([]byte("more"))
			wantBytes(t, g, []byte("more"))
			p.CloseWrite()
			wantEOF(t, g)
			g.Write([]byte("answer"))
			g.CloseWrite()
			wantAll(t, p, []byte("answer"))
		})
	}
}

// recorder keeps what a server sends until its handshake is done.
type recorder struct {
	net.Conn
	sent bytes.Buffer
}

func (r *recorder) Write(b []byte) (int, error) {
	r.sent.Write(b)
	return r.Conn.Write(b)
}

// A TLS 1.2 server that asks for another handshake doesn't get one: the
// connection is aborted.
func TestTLSRenegotiation(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	m := start(t, setup{tls: relay.TLS{RootCAs: a.Pool}})
	l, to := hostListener(t, "127.0.0.1:0")
	var serving sync.WaitGroup
	var conn *net.TCPConn
	var wires *recorder
	var secrets bytes.Buffer
	serving.Go(func() {
		var err error
		if conn, err = l.AcceptTCP(); err != nil {
			t.Error(err)
			return
		}
		wires = &recorder{Conn: conn}
		server := tls.Server(wires, &tls.Config{
			Certificates: []tls.Certificate{a.Issue(t, nil)}, MaxVersion: tls.VersionTLS12, KeyLogWriter: &secrets,
			CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
		})
		if err := server.Handshake(); err != nil {
			t.Error(err)
		}
		// The guest's side of the connection works.
		if _, err := server.Write([]byte("hello")); err != nil {
			t.Error(err)
		}
	})
	g := m.pipe()
	if _, err := open(g, wire.ProtocolTLSConnection, tlsConnect(to, "")); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, g, []byte("hello"))
	serving.Wait()
	defer conn.Close()
	// The server has sent two records under its keys so far: Finished and
	// "hello".
	if _, err := conn.Write(helloRequest(t, secrets.String(), wires.sent.Bytes(), 2)); err != nil {
		t.Fatal(err)
	}
	wantReadError(t, g, unix.ECONNABORTED)
	g.Close()
	m.wantFree()
	if ended := m.records("stream ended"); len(ended) != 1 || !strings.Contains(ended[0]["err"], "no renegotiation") {
		t.Errorf("the stream's end is %v", ended)
	}
}

// helloRequest is a server's HelloRequest as the n-th encrypted record of a
// connection with this key log and these first records.
func helloRequest(t *testing.T, log string, sent []byte, n uint64) []byte {
	t.Helper()
	fields := bytes.Fields([]byte(log)) // CLIENT_RANDOM random secret
	if len(fields) != 3 || len(sent) < 43 || sent[0] != 22 || sent[5] != 2 {
		t.Fatalf("key log %q, first bytes % x", log, sent[:min(16, len(sent))])
	}
	clientRandom, secret := unhex(t, fields[1]), unhex(t, fields[2])
	serverRandom := sent[11:43]
	// RFC 5246, section 6.3: two keys of 16 bytes, two implicit nonces of 4.
	keys := prf(secret, append(append([]byte("key expansion"), serverRandom...), clientRandom...), 40)
	key, nonce := keys[16:32], keys[36:40]

	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte{0, 0, 0, 0}
	sequence := binary.BigEndian.AppendUint64(nil, n)
	header := []byte{22, 3, 3, 0, byte(len(message))}
	sealed := aead.Seal(nil, append(bytes.Clone(nonce), sequence...), message, append(bytes.Clone(sequence), header...))
	record := append([]byte{22, 3, 3, 0, byte(len(sequence) + len(sealed))}, sequence...)
	return append(record, sealed...)
}

// prf is the function of TLS 1.2 with SHA-256. seed begins with the label.
func prf(secret, seed []byte, n int) (out []byte) {
	sum := func(parts ...[]byte) []byte {
		h := hmac.New(sha256.New, secret)
		for _, p := range parts {
			h.Write(p)
		}
		return h.Sum(nil)
	}
	for a := sum(seed); len(out) < n; a = sum(a) {
		out = append(out, sum(a, seed)...)
	}
	return out[:n]
}

func unhex(t *testing.T, text []byte) []byte {
	t.Helper()
	b, err := hex.DecodeString(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
