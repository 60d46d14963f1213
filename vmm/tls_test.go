package vmm_test

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/relay"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// httpsServer is a web server with a certificate, which says what it was asked.
func httpsServer(t *testing.T, addr string, cert tls.Certificate) string {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s of %s for %s by %s\n", r.Method, r.URL, r.Host, r.TLS.NegotiatedProtocol)
	}))
	s.Listener.Close()
	s.Listener = ln
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return ln.Addr().String()
}

func TestTLSGet(t *testing.T) {
	t.Parallel()
	a, other := networktest.NewAuthority(t), networktest.NewAuthority(t)
	for family, addr := range loopbacks(t) {
		target := httpsServer(t, addr, a.Issue(t, nil))
		for _, c := range []struct {
			name   string
			server []string
			trust  *networktest.Authority
			want   unix.Errno
		}{
			{"by address", nil, a, 0},
			{"by server name", []string{"server.test"}, a, 0},
			{"unknown authority", nil, other, unix.ENOKEY},
			{"another name", []string{"other.test"}, a, unix.EKEYREJECTED},
		} {
			t.Run(family+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				g := vmmtest.Boot(t, vmm.Config{
					Image: vmmtest.Image(t, "tls"), Args: append([]string{"get", target}, c.server...), TLS: relay.TLS{RootCAs: c.trust.Pool},
				})
				code, err := g.Wait()
				if c.want != 0 {
					if code != 1 || err != nil || !strings.Contains(g.Log(), fmt.Sprintf("connect: error %d", c.want)) {
						t.Errorf("the guest ended with %d, %v; want 1 and error %d\n%s", code, err, c.want, g.Log())
					}
					return
				}
				host := target
				if c.server != nil {
					host = c.server[0]
				}
				if want := fmt.Sprintf("GET of / for %s by http/1.1\n", host); code != 0 || err != nil || !strings.HasSuffix(g.Console(), want) {
					t.Errorf("the guest ended with %d, %v, and printed %q, want %q", code, err, g.Console(), want)
				}
				if !strings.Contains(g.Log(), "TLS version 0x304") {
					t.Errorf("the log is %q", g.Log())
				}
			})
		}
	}
}

func TestTLSServe(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	for family, addr := range loopbacks(t) {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			g := vmmtest.Boot(t, vmm.Config{
				Image: vmmtest.Image(t, "tls"), Args: []string{"serve", addr}, TLS: relay.TLS{Certificates: []tls.Certificate{a.Issue(t, nil)}},
			})
			to := g.Addr().String()
			dial(t, to) // says nothing, and holds up no other
			for i := range 3 {
				c := tls.Client(dial(t, to), &tls.Config{RootCAs: a.Pool, ServerName: "server.test"})
				body := content(uint64(i), 100_000)
				sent := make(chan error, 1)
				go func() {
					_, err := c.Write(body)
					sent <- errors.Join(err, c.CloseWrite())
				}()
				got, err := io.ReadAll(c)
				if err != nil || !bytes.Equal(got, body) {
					t.Errorf("%d bytes came back for %d, %v", len(got), len(body), err)
				}
				if err := <-sent; err != nil {
					t.Error(err)
				}
			}
			g.VM.Stop()
			if code, err := g.Wait(); code != 0 || err != nil {
				t.Errorf("the guest ended with %d, %v", code, err)
			}
		})
	}
}

// What a guest's connection has of the server's choices, and why there is none.
func TestTLSHandshakes(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	for _, c := range []struct {
		name string
		cfg  *tls.Config
		edit func(*x509.Certificate)
		log  string // a connection
		want unix.Errno
	}{
		{name: "TLS 1.2", cfg: &tls.Config{MaxVersion: tls.VersionTLS12}, log: `TLS version 0x303, protocol \"\"`},
		{name: "TLS 1.1", cfg: &tls.Config{MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11}, want: unix.ECONNABORTED},
		{name: "ALPN", cfg: &tls.Config{NextProtos: []string{"other", "http/1.1"}}, log: `TLS version 0x304, protocol \"http/1.1\"`},
		{name: "another ALPN", cfg: &tls.Config{NextProtos: []string{"other"}}, want: unix.ECONNABORTED},
		{
			name: "expired", edit: func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Unix(1, 0), time.Unix(2, 0) },
			want: unix.EKEYEXPIRED,
		},
		{name: "no server's", edit: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, want: unix.EBADMSG},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			g := vmmtest.Boot(t, vmm.Config{
				Image: vmmtest.Image(t, "tls"), Args: []string{"get", l.Addr().String()}, TLS: relay.TLS{RootCAs: a.Pool},
			})
			cfg := cmp.Or(c.cfg, new(tls.Config)).Clone()
			cfg.Certificates = []tls.Certificate{a.Issue(t, c.edit)}
			server := tls.Server(acceptOne(t, l), cfg)
			// It fails where the guest's side does; the guest has the reason.
			if err := server.Handshake(); err == nil {
				_, _ = io.Copy(io.Discard, server)
			}
			server.Close()
			code, err := g.Wait()
			wantCode, wantLog := 0, c.log
			if c.want != 0 {
				wantCode, wantLog = 1, fmt.Sprintf("connect: error %d", c.want)
			}
			if code != wantCode || err != nil || !strings.Contains(g.Log(), wantLog) {
				t.Errorf("the guest ended with %d, %v; want %d and %s\n%s", code, err, wantCode, wantLog, g.Log())
			}
		})
	}
}

// A guest that may be no server learns why.
func TestTLSServeWithoutCertificate(t *testing.T) {
	t.Parallel()
	g := boot(t, "tls", "serve", "127.0.0.1:0")
	code, err := g.Wait()
	if want := fmt.Sprintf("listen: error %d", unix.ENOKEY); code != 1 || err != nil || !strings.Contains(g.Log(), want) {
		t.Errorf("the guest ended with %d, %v; want 1 and %q\n%s", code, err, want, g.Log())
	}
}

// A virtual machine ends at once while its peers are in the middle of a
// handshake.
func TestTLSCancel(t *testing.T) {
	t.Parallel()
	a := networktest.NewAuthority(t)
	g := vmmtest.Boot(t, vmm.Config{
		Image: vmmtest.Image(t, "tls"), Args: []string{"serve", "127.0.0.1:0"}, TLS: relay.TLS{Certificates: []tls.Certificate{a.Issue(t, nil)}},
	})
	c := dial(t, g.Addr().String())
	if _, err := c.Write([]byte{22, 3, 1}); err != nil {
		t.Fatal(err)
	}
	g.Cancel()
	g.Wait()
	if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Error(err)
	}
}
