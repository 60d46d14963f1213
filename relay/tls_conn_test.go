package relay

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// halfCloser is a connection without a buffer: a writer waits for the reader.
type halfCloser struct{ net.Conn }

func (halfCloser) CloseWrite() error { return nil }

// tlsPair is a connection whose handshake is done. It is TLS 1.2, whose servers
// send nothing by themselves after that.
func tlsPair(t *testing.T) (*tlsConn, *tls.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	conn := newTLSConn(halfCloser{near}, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, tls.Client)
	peer := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: key}}})
	shaken := make(chan error, 1)
	go func() { shaken <- peer.Handshake() }()
	if err := conn.handshake(t.Context(), newTurns(1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		far.Close()
	})
	return conn, peer
}

// A half-close waits for a peer that is slow to read.
func TestTLSCloseWriteWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn, peer := tlsPair(t)
		closed := make(chan error, 1)
		go func() { closed <- conn.CloseWrite() }()
		time.Sleep(time.Hour)
		select {
		case err := <-closed:
			t.Fatalf("ended before the peer read: %v", err)
		default:
		}
		if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("the peer read %d, %v", n, err)
		}
		if err := <-closed; err != nil {
			t.Error(err)
		}
	})
}

// After an abort nothing waits for the peer: no half-close, under way or later,
// and no Close.
func TestTLSAbortDoesNotWait(t *testing.T) {
	t.Parallel()
	for name, aborted := range map[string]bool{"before": true, "under way": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				conn, _ := tlsPair(t)
				began := time.Now()
				if aborted {
					conn.SetDeadline(past)
				}
				closed := make(chan error, 1)
				go func() { closed <- conn.CloseWrite() }()
				synctest.Wait()
				if !aborted {
					conn.SetDeadline(past)
				}
				if err := <-closed; !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("got %v, want a deadline's error", err)
				}
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
				if d := time.Since(began); d != 0 {
					t.Errorf("it took %v", d)
				}
			})
		})
	}
}
