package main

import (
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/fix-project/arcavm/emulated"
	"github.com/fix-project/arcavm/spec"
)

// The description for the arcavm inside names files where they are copied to,
// and has all else that the one outside has, but for what only the outside
// does.
func TestInside(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	cert, key := certificateFiles(t)
	file := writeFile(t, "vm.toml", []byte(`
emulated = true
cpus = 2
mem = "64M"
share = ["`+folder+`", "in=`+folder+`"]
rules = ["allow 10.9.0.0/16", "deny *"]
publish = ["8080:80", "0.0.0.0:0:53/udp"]
nat64 = ["2001:db8:64::/96"]
own-addresses = ["192.0.2.0/24"]
tls-ca = ["`+cert+`"]
tls-cert = "`+cert+`"
tls-key = "`+key+`"
limit.streams = 5
log-level = "debug"
log-format = "json"
timing = "json"
exit-file = "exit"
`))
	s, err := spec.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	s.Image, s.Args = imageFile(t, "hello"), []string{"a"}
	loaded, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Close()
	got, files, err := inside(loaded)
	if err != nil {
		t.Fatal(err)
	}
	own := got.Network.Own
	if len(own) < 2 || own[0] != netip.MustParsePrefix("192.0.2.0/24") || own[1] != netip.MustParsePrefix(emulated.Network) {
		t.Errorf("own addresses %v", own)
	}
	got.Network.Own = nil
	text, err := got.TOML()
	if err != nil {
		t.Fatal(err)
	}
	want := `cpus = 2
mem = "64M"
share = ["/share", "in=/shares/in"]
rules = ["allow 10.9.0.0/16", "deny *"]
publish = ["127.0.0.1:80:80/tcp", "127.0.0.1:53:53/udp"]
nat64 = ["2001:db8:64::/96"]
tls-ca = ["/tls/ca0"]
tls-cert = "/tls/cert"
tls-key = "/tls/key"
limit.streams = 5
log-level = "debug"
log-format = "json"
timing = "json"
`
	if string(text) != want {
		t.Errorf("got\n%swant\n%s", text, want)
	}
	secret, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, source := range map[string]string{"/share": folder, "/shares/in": folder, "/tls/ca0": "", "/tls/cert": "", "/tls/key": ""} {
		i := slices.IndexFunc(files, func(f emulated.File) bool { return f.Name == name })
		if i < 0 || files[i].Source != source || (source == "") != (len(files[i].Data) > 0) {
			t.Errorf("%s isn't copied in, or not from %q", name, source)
		}
		if name == "/tls/key" && i >= 0 && string(files[i].Data) != string(secret) {
			t.Error("another key is copied in")
		}
	}
	// What the one outside was told is as it was.
	if len(s.Shares) != 2 || s.Shares[0].Dir != folder || s.Network.Publish[0].Host.Port() != 8080 || s.TLS.Key != key {
		t.Errorf("the description has changed: %+v", s)
	}
}
