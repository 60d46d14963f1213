package spec

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/fix-project/arcavm/relay"
)

// PEM is the content of the files for TLS. It is kept, since a file may be a
// pipe, such as the <(…) of a shell, which gives its content once.
type PEM struct {
	CA        [][]byte
	Cert, Key []byte // nil: there is none
}

// checkTLS refuses a certificate without a key, and a key without a
// certificate. A name that is given and empty is refused, too: most likely it
// is a variable of the user's that isn't set.
func (s *Spec) checkTLS() error {
	cert, key := s.said("tls-cert") || s.TLS.Cert != "", s.said("tls-key") || s.TLS.Key != ""
	if !cert && !key || s.TLS.Cert != "" && s.TLS.Key != "" {
		return nil
	}
	where := s.Where("tls-cert", 0)
	if !cert {
		where = s.Where("tls-key", 0)
	}
	if strings.HasPrefix(where, "--") {
		return &Error{Err: errors.New("--tls-cert and --tls-key go together: write --tls-cert FILE --tls-key FILE")}
	}
	return &Error{Where: where, Err: errors.New("tls-cert and tls-key go together")}
}

// loadTLS reads and checks the files for TLS.
func (s *Spec) loadTLS() (t relay.TLS, read PEM, err error) {
	for i, path := range s.TLS.CA {
		if t.RootCAs == nil {
			if t.RootCAs, err = x509.SystemCertPool(); err != nil {
				return t, read, fmt.Errorf("reading the certificates that this machine trusts: %w", err)
			}
		}
		where := s.Where("tls-ca", i)
		data, err := readPEM(where, path)
		if err != nil {
			return t, read, err
		}
		if err := addCertificates(t.RootCAs, data); err != nil {
			return t, read, &Error{Where: where, Kind: BadData, Err: fmt.Errorf("%s%w", path, err)}
		}
		read.CA = append(read.CA, data)
	}
	if s.TLS.Cert == "" {
		return t, read, nil
	}
	atCert, atKey := s.Where("tls-cert", 0), s.Where("tls-key", 0)
	if read.Cert, err = readPEM(atCert, s.TLS.Cert); err != nil {
		return t, read, err
	}
	if read.Key, err = readPEM(atKey, s.TLS.Key); err != nil {
		return t, read, err
	}
	pair, err := tls.X509KeyPair(read.Cert, read.Key)
	if err != nil {
		where := fmt.Sprintf("%s %s with %s %s", atCert, s.TLS.Cert, atKey, s.TLS.Key)
		return t, read, &Error{Where: where, Kind: BadData, Err: err}
	}
	t.Certificates = []tls.Certificate{pair}
	return t, read, nil
}

func readPEM(where, path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, openError(where, err)
	}
	return data, nil
}

// addCertificates adds all certificates in a file's content, of which there
// must be one. The text of its errors continues the file's name.
func addCertificates(pool *x509.CertPool, rest []byte) error {
	n := 0
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf(": %w", err)
		}
		pool.AddCert(cert)
		n++
	}
	if n == 0 {
		return errors.New(" holds no certificate in PEM form")
	}
	return nil
}
