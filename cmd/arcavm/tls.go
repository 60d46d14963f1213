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
	read      []tlsFile
}

// tlsFile is what a file held that a flag names. It is read once: a pipe, such as the <(…) of a shell, gives it but once.
type tlsFile struct {
	flag string
	data []byte
}

func (f *tlsFlags) readFile(flag, path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, inputError(fmt.Errorf("%s: %w", flag, err))
	}
	f.read = append(f.read, tlsFile{flag, data})
	return data, nil
}

func (f *tlsFlags) add(flags *pflag.FlagSet) {
	f.flags = flags
	flags.StringArrayVar(&f.ca, "tls-ca", nil, "where the guest is a TLS client, trust the certificates in `FILE`\n(PEM), too; as often as you like")
	flags.StringVar(&f.cert, "tls-cert", "", "where the guest is a TLS server, show the certificate in `FILE`\n(PEM, intermediate ones after it); without it, it can't be one")
	flags.StringVar(&f.key, "tls-key", "", "the private key of that certificate is in `FILE` (PEM)")
}

// load reads and checks the files. It waits for who writes to a pipe; until then Ctrl-C ends the process as usual.
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
		data, err := f.readFile("--tls-ca", path)
		if err != nil {
			return t, err
		}
		if err := addCertificates(t.RootCAs, path, data); err != nil {
			return t, err
		}
	}
	if f.cert == "" {
		return t, nil
	}
	cert, err := f.readFile("--tls-cert", f.cert)
	if err != nil {
		return t, err
	}
	key, err := f.readFile("--tls-key", f.key)
	if err != nil {
		return t, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return t, &codeError{exitData, fmt.Errorf("--tls-cert %s with --tls-key %s: %w", f.cert, f.key, err)}
	}
	t.Certificates = []tls.Certificate{pair}
	return t, nil
}

// addCertificates adds all certificates in a file, of which there must be one.
func addCertificates(pool *x509.CertPool, path string, rest []byte) error {
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

// inside returns what load has read for an emulated machine, which trusts whom this one does, and the flags that name it there.
func (f *tlsFlags) inside() (files []emulated.File, flags []string) {
	for _, path := range []string{
		os.Getenv("SSL_CERT_FILE"), rootsInside, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem",
	} {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			files = append(files, emulated.File{Name: rootsInside, Source: path})
			break
		}
	}
	for i, file := range f.read {
		name := fmt.Sprintf("/tls/%d", i)
		files = append(files, emulated.File{Name: name, Data: file.data})
		flags = append(flags, file.flag+"="+name)
	}
	return files, flags
}
