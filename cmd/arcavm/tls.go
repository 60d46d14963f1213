package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/relay"
)

// tlsFlags name the files of what arcavm trusts and shows where it does TLS for the guest.
type tlsFlags struct {
	ca        []string
	cert, key string
	flags     *pflag.FlagSet
}

func (f *tlsFlags) add(flags *pflag.FlagSet) {
	f.flags = flags
	flags.StringArrayVar(&f.ca, "tls-ca", nil, "where the guest is a TLS client, trust the certificates in `FILE`\n(PEM), too; as often as you like")
	flags.StringVar(&f.cert, "tls-cert", "", "where the guest is a TLS server, show the certificate in `FILE`\n(PEM, intermediate ones after it); without it, it can't be one")
	flags.StringVar(&f.key, "tls-key", "", "the private key of that certificate is in `FILE` (PEM)")
}

// load reads and checks the files.
func (f *tlsFlags) load() (t relay.TLS, err error) {
	// One that is given but empty is more likely a variable of the user's that isn't set than a wish.
	if (f.flags.Changed("tls-cert") || f.flags.Changed("tls-key")) && (f.cert == "" || f.key == "") {
		return t, usageError("--tls-cert and --tls-key go together: write --tls-cert FILE --tls-key FILE")
	}
	for _, path := range f.ca {
		if t.RootCAs == nil {
			if t.RootCAs, err = x509.SystemCertPool(); err != nil {
				return t, fmt.Errorf("reading the certificates that this machine trusts: %w", err)
			}
		}
		if err := addCertificates(t.RootCAs, path); err != nil {
			return t, err
		}
	}
	if f.cert == "" {
		return t, nil
	}
	cert, err := os.ReadFile(f.cert)
	if err != nil {
		return t, inputError(fmt.Errorf("--tls-cert: %w", err))
	}
	key, err := os.ReadFile(f.key)
	if err != nil {
		return t, inputError(fmt.Errorf("--tls-key: %w", err))
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return t, &codeError{exitData, fmt.Errorf("--tls-cert %s with --tls-key %s: %w", f.cert, f.key, err)}
	}
	t.Certificates = []tls.Certificate{pair}
	return t, nil
}

// addCertificates adds all certificates in a file, of which there must be one.
func addCertificates(pool *x509.CertPool, path string) error {
	rest, err := os.ReadFile(path)
	if err != nil {
		return inputError(fmt.Errorf("--tls-ca: %w", err))
	}
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
			return &codeError{exitData, fmt.Errorf("--tls-ca: %s: %w", path, err)}
		}
		pool.AddCert(cert)
		n++
	}
	if n == 0 {
		return &codeError{exitData, fmt.Errorf("--tls-ca: %s holds no certificate in PEM form", path)}
	}
	return nil
}

// rootsInside is one of the files where Go's programs look for what the machine trusts.
const rootsInside = "/etc/ssl/certs/ca-certificates.crt"

// inside returns the files for an emulated machine, which trusts whom this one does, and the flags that name them there.
func (f *tlsFlags) inside() (files []emulated.File, flags []string) {
	for _, path := range []string{
		os.Getenv("SSL_CERT_FILE"), rootsInside, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem",
	} {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			files = append(files, emulated.File{Name: rootsInside, Source: path})
			break
		}
	}
	add := func(flag, name, source string) {
		files = append(files, emulated.File{Name: name, Source: source})
		flags = append(flags, flag+"="+name)
	}
	for i, path := range f.ca {
		add("--tls-ca", fmt.Sprintf("/tls/ca%d", i), path)
	}
	if f.cert != "" {
		add("--tls-cert", "/tls/cert", f.cert)
		add("--tls-key", "/tls/key", f.key)
	}
	return files, flags
}
