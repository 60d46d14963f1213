package spec_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/spec"
	"github.com/fix-project/arcavm/vmm/image"
)

// complete has every key, each with a value that isn't its default, in the
// order in which keys are written.
const complete = `image = "/kernels/httpd.elf"
args = ["0.0.0.0:80", "a \"b\"\u0007", ""]
abi = "rpc"
cpus = 4
mem = "512M"
window = "2G"
emulated = true
share = ["/srv/www", "out=/srv/results:rw"]
sockets = ["/run/app:rw"]
rules = ["allow tcp:localhost:5432", "deny 10.0.0.0/8"]
publish = ["127.0.0.1:8080:80/tcp", "[::1]:0:53/udp"]
nat64 = ["2001:db8:64::/96"]
own-addresses = ["10.0.2.0/24"]
tls-ca = ["/tls/ca.pem"]
tls-cert = "/tls/cert.pem"
tls-key = "/tls/key.pem"
limit.streams = 500
limit.ring-memory = "64M"
limit.stream-files = 10
limit.files = "4K"
limit.accepts = 7
limit.bytes = "100M"
limit.operations = 9000
limit.disk = "1T"
limit.log = "64K"
log-level = "debug"
log-format = "json"
timing = "text"
exit-file = "/run/exit.json"
`

func parse(t testing.TB, text string) *spec.Spec {
	t.Helper()
	s, err := spec.Parse("vm.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// print returns the description as TOML.
func print(t testing.TB, s *spec.Spec) string {
	t.Helper()
	text, err := s.TOML()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// data compares descriptions without origins.
var data = cmp.Options{cmpopts.IgnoreUnexported(spec.Spec{}), cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{}), cmpopts.EquateEmpty()}

// A description with every key is read as it was written, from TOML and JSON.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	s := parse(t, complete)
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	if got := print(t, s); got != complete {
		t.Error(cmp.Diff(complete, got))
	}
	for _, key := range spec.Keys() {
		if !strings.Contains(complete, "\n"+key+" = ") && key != "image" {
			t.Errorf("the test has no %s", key)
		}
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var again spec.Spec
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(*s, again, data); diff != "" {
		t.Errorf("by JSON %s:\n%s", text, diff)
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]spec.Spec{
		"":                    {},
		"# nothing\n\n":       {},
		"image = 'k'\r\n":     {Image: "k"},
		"args = []":           {},
		"args = ['''a\nb''']": {Args: []string{"a\nb"}},
		"emulated = false":    {},
		"abi = 'HyperCall'":   {ABI: image.ABIHypercall},
		"cpus = 0x10":         {CPUs: 16},
		"limit = { streams = 1_000, bytes = '2K' }": {Limits: spec.Limits{Streams: 1000, Bytes: 2048}},
		"[limit]\nlog = 5\n":                        {Limits: spec.Limits{Log: 5}},
		"share = ['./A=B', 'a=b:rw:ro']":            {Shares: []spec.Folder{{Dir: "./A=B"}, {Name: "a", Dir: "b:rw"}}},
		"rules = ['allow  *.example.com']":          {Network: spec.Network{Rules: []spec.Rule{{Allow: true, Match: "*.example.com"}}}},
	} {
		s, err := spec.Parse("vm.toml", []byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if diff := cmp.Diff(want, *s, data); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	}
}

// A wrong document is refused with the line and a sentence.
func TestParseErrors(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"cpu = 2":                            `vm.toml:1: there is no key "cpu"; did you mean cpus?`,
		"\n\nimage = 'k'\nmemory = '2G'":     `vm.toml:4: there is no key "memory"; did you mean mem?`,
		"zzzzzzzzz = 2":                      `vm.toml:1: there is no key "zzzzzzzzz"`,
		"allow = ['*']":                      `vm.toml:1: there is no key "allow"; write rules = ["allow …"]`,
		"config = 'x'":                       `vm.toml:1: there is no key "config"`,
		"[machine]\ncpus = 2":                `vm.toml:1: there is no key "machine"`,
		"[[share]]\ndir = '.'":               `vm.toml:1: share: must be a string, and is a table`,
		"a.b = 2":                            `vm.toml:1: there is no key "a"`,
		"'limit.streams' = 2":                `vm.toml:1: there is no key "limit.streams" in quotes; leave them out`,
		"cpus = 2\ncpus = 3":                 "vm.toml:2:",
		"[limit]\nlog = 1\n[limit]\nlog = 2": "vm.toml:3:",
		"cpus":                               "vm.toml:1:",
		"cpus = ":                            "vm.toml:1:",
		"cpus = 'two'":                       "vm.toml:1: cpus: must be a whole number, and is a string",
		"cpus = 1.5":                         "vm.toml:1: cpus: must be a whole number, and is a number with a fraction",
		"cpus = 0":                           "vm.toml:1: cpus: 0 is not in 1 to 64",
		"cpus = -1":                          "vm.toml:1: cpus: -1 is not in 1 to 64",
		"cpus = 9223372036854775807":         "vm.toml:1: cpus: 9223372036854775807 is not in 1 to 64",
		"cpus = 99999999999999999999":        "vm.toml:1:",
		"cpus = 1979-05-27":                  "vm.toml:1: cpus: must be a whole number, and is a date or a time",
		"mem = 512":                          `vm.toml:1: mem: "512": a unit is missing: write 512M for MiB or 512G for GiB`,
		"mem = true":                         "vm.toml:1: mem: must be a string, and is true or false",
		"mem = '0M'":                         "vm.toml:1: mem: a guest needs some",
		"mem = '99999999T'":                  "vm.toml:1: mem: ",
		"image = ''":                         "vm.toml:1: image: is empty; leave it out",
		`image = "a\u0000b"`:                 "vm.toml:1: image: ",
		`args = ["a\u0000b"]`:                "vm.toml:1: args: ",
		"args = 'a b'":                       "vm.toml:1: args: must be a list of strings, and is a string",
		"args = [\n'a',\n5,\n]":              "vm.toml:", // numbers' own lines aren't known
		"abi = 'streams'":                    `vm.toml:1: abi: "streams" must be one of auto, stream, rpc, hypercall; did you mean stream?`,
		"share = [\n  'a',\n  'x=',\n]":      `vm.toml:3: share: "x=" has no folder`,
		"share = ['..=a']":                   `vm.toml:1: share: ".." is not a name for a folder`,
		"rules = [\n'allow *',\n# no\n'deny *:99999']": `vm.toml:4: rules: "*:99999": "99999" is no port`,
		"rules = ['*']":                           `vm.toml:1: rules: "*" begins with neither allow nor deny`,
		"rules = ['Allow *']":                     "vm.toml:1: rules: ",
		"publish = ['80']":                        `vm.toml:1: publish: "80" is not of the form`,
		"nat64 = ['10.0.0.0/8']":                  "vm.toml:1: nat64: ",
		"own-addresses = ['x']":                   "vm.toml:1: own-addresses: ",
		"limit = 5":                               "vm.toml:1: limit: must be a table, such as { streams = 500 }, and is a whole number",
		"limit.streems = 5":                       `vm.toml:1: there is no limit "streems"; did you mean streams?`,
		"\nlimit = { bytes = 'x' }":               "vm.toml:2: limit.bytes: \"x\" is not a whole number",
		"[limit]\n\nfiles = 0":                    "vm.toml:3: limit.files: \"0\" is not a whole number from 1 on",
		"limit.files = -1":                        "vm.toml:1: limit.files: \"-1\" is not",
		"limit.files = 4294967296":                "vm.toml:1: limit.files: ",
		"limit.files.x = 4":                       "vm.toml:1: limit.files: must be a whole number, or a string such as \"64K\", and is a table",
		"emulated = 'yes'":                        "vm.toml:1: emulated: must be true or false, and is a string",
		"log-level = 'loud'":                      "vm.toml:1: log-level: \"loud\" must be one of",
		"image = 'a\xff'":                         "vm.toml:1:",
		"# \xff\nimage = 'a'":                     "vm.toml:1:",
		"args = " + strings.Repeat("[", 1<<19):    "vm.toml:1:",
		"args = [" + strings.Repeat("{a=", 1<<17): "vm.toml:1:",
		strings.Repeat("a.", 1<<19) + "a = 1":     "vm.toml:1: there is no key \"a\"",
	} {
		_, err := spec.Parse("vm.toml", []byte(text))
		var given *spec.Error
		if !errors.As(err, &given) || !strings.HasPrefix(err.Error(), want) || given.Kind != spec.Invalid {
			t.Errorf("%.100q: got %.200v\nwant %s", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "toml: ") {
			t.Errorf("%.100q: %v", text, err)
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"share = ['a']\nsockets = [\n'a', \n'b']": "vm.toml:4: sockets: b is the second folder without a name; write NAME=b",
		"share = ['x=a', 'x=b']":                  "vm.toml:1: share: two folders are called x",
		"publish = ['80:80', '81:80']":            "vm.toml:1: publish: port 80 of the guest is published twice by addresses of one family",
		"publish = ['80:80', '80:81']":            "vm.toml:1: publish: 127.0.0.1:80 is given to two ports of the guest: 80 and 81",
		"\ntls-cert = 'c'":                        "vm.toml:2: tls-cert: tls-cert and tls-key go together",
		"\n\ntls-key = 'c'":                       "vm.toml:3: tls-key: tls-cert and tls-key go together",
	} {
		if err := parse(t, text).Check(); err == nil || err.Error() != want {
			t.Errorf("%q: got %v\nwant %s", text, err, want)
		}
	}
	for want, s := range map[string]spec.Spec{
		"cpus: 65 is not in 1 to 64":                                                                {CPUs: 65},
		"log-level: \"loud\" must be one of error, warn, info, debug, trace":                        {Output: spec.Output{LogLevel: "loud"}},
		"args: \"a\\x00\" has a NUL in it":                                                          {Args: []string{"", "a\x00"}},
		"limit.files: \"4294967295\" is not a whole number from 1 on, such as 500, 64K, 100M or 2G": {Limits: spec.Limits{Files: 1<<32 - 1}},
		"share: \"\" has no folder":                                                                 {Shares: []spec.Folder{{}}},
		"share: the name \"a=b\" has a = in it":                                                     {Shares: []spec.Folder{{Name: "a=b", Dir: "."}}},
		"rules: \"\": the host is missing; the form is " + network.RuleForm:                         {Network: spec.Network{Rules: []spec.Rule{{}}}},
	} {
		if err := s.Check(); err == nil || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
}

// Values of a description give way to those of one that overrides it.
func TestOverride(t *testing.T) {
	t.Parallel()
	file := parse(t, `image = "/k"
args = ["a"]
cpus = 4
mem = "512M"
emulated = true
share = ["/www", "in=/in", "out=/out"]
rules = ["deny 10.0.0.0/8"]
publish = ["8080:80", "[::1]:8080:80", "53:53/udp"]
tls-ca = ["/a", "/b"]
limit.bytes = "1M"
limit.files = 5
`)
	over := parse(t, `args = ["b", "c"]
cpus = 2
emulated = false
share = ["new=/new", "in=/other:rw"]
rules = ["allow 10.1.0.0/16"]
publish = ["9090:80"]
tls-ca = ["/b", "/c"]
limit.bytes = "2M"
`)
	over.Say("args", "words")
	over.Say("window", "--window") // given, though at its default
	got := file.Override(over)
	want := `image = "/k"
args = ["b", "c"]
cpus = 2
mem = "512M"
share = ["/www", "out=/out", "new=/new", "in=/other:rw"]
rules = ["allow 10.1.0.0/16", "deny 10.0.0.0/8"]
publish = ["[::1]:8080:80/tcp", "127.0.0.1:53:53/udp", "127.0.0.1:9090:80/tcp"]
tls-ca = ["/a", "/b", "/c"]
limit.files = 5
limit.bytes = "2M"
`
	if diff := cmp.Diff(want, print(t, got)); diff != "" {
		t.Error(diff)
	}
	for key, where := range map[string][]string{
		"mem": {"vm.toml:4: mem"}, "cpus": {"vm.toml:2: cpus"}, "share": {"vm.toml:6: share", "vm.toml:6: share", "vm.toml:4: share"},
		"rules": {"vm.toml:5: rules", "vm.toml:7: rules"}, "abi": {"abi"},
	} {
		for i, at := range where {
			if got := got.Where(key, i); got != at {
				t.Errorf("%s %d is from %q, want %q", key, i, got, at)
			}
		}
	}
	// The first description hasn't changed.
	if len(file.Shares) != 3 || file.CPUs != 4 || file.Where("cpus", 0) != "vm.toml:3: cpus" {
		t.Errorf("it has changed: %+v", file)
	}
}

// Relative paths count from the file's folder, and names in the guest stay.
func TestRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "vm.toml")
	text := "image = 'k'\nargs = ['a']\nshare = ['www', 'x=../in:rw', '/abs']\nsockets = ['.']\ntls-ca = ['ca']\ntls-cert = 'c'\ntls-key = '/k'\nexit-file = 'e'\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := spec.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	want := spec.Spec{
		Image: dir + "/k", Args: []string{"a"},
		Shares:  []spec.Folder{{Dir: dir + "/www"}, {Name: "x", Dir: dir + "/../in", Writable: true}, {Dir: "/abs"}},
		Sockets: []spec.Folder{{Dir: dir}},
		TLS:     spec.TLS{CA: []string{dir + "/ca"}, Cert: dir + "/c", Key: "/k"},
		Output:  spec.Output{ExitFile: dir + "/e"},
	}
	if diff := cmp.Diff(want, *got, data); diff != "" {
		t.Error(diff)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if got, err := spec.Read(link); err != nil || got.Image != filepath.Dir(link)+"/k" {
		t.Errorf("by a link: %+v, %v", got, err)
	}
}

func TestReadErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo, large := dir+"/fifo", dir+"/large"
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.WriteFile(large, make([]byte, spec.MaxFile+1), 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]struct {
		kind spec.Kind
		text string
	}{
		dir + "/none": {spec.Missing, "no such file"},
		fifo + "/x":   {spec.Missing, "not a directory"},
		dir:           {spec.BadData, dir + ": is not a regular file"},
		fifo:          {spec.BadData, fifo + ": is not a regular file"},
		"/dev/zero":   {spec.BadData, "is not a regular file"},
		large:         {spec.BadData, large + ": has more than 1M, too much for a description"},
	} {
		_, err := spec.Read(path)
		var given *spec.Error
		if !errors.As(err, &given) || given.Kind != want.kind || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestJSONErrors(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"cpu": 2}`:                             `there is no key "cpu"; did you mean cpus?`,
		`{"cpus": 2, "cpus": 3}`:                 `the key "cpus" is there twice`,
		`{"cpus": 2.0}`:                          "cpus: must be a whole number, and is a number with a fraction",
		`{"cpus": 1e1}`:                          "cpus: must be a whole number, and is a number with a fraction",
		`{"cpus": null}`:                         "cpus: must be a whole number, and is null",
		`{"cpus": 99999999999999999999}`:         "99999999999999999999 is out of range",
		`{"mem": 5}`:                             `mem: "5": a unit is missing`,
		`{"limit": {"log": 0}}`:                  `limit.log: "0" is not`,
		`{"limit.log": 5}`:                       "in quotes",
		`{"share": [{}]}`:                        "share: must be a string, and is a table",
		`[]`:                                     "the description is no JSON object",
		`{"image": "k"} x`:                       "invalid character",
		`{"args": ` + strings.Repeat("[", 1<<20): "",
		"{\"image\": \"\xff\"}":                  "isn't all UTF-8",
	} {
		var s spec.Spec
		if err := s.UnmarshalJSON([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.100s: got %v\nwant %s", text, err, want)
		}
	}
}

// TOML and JSON hold no text that isn't UTF-8.
func TestNotUTF8(t *testing.T) {
	t.Parallel()
	s := &spec.Spec{Args: []string{"a", "\xff"}}
	if _, err := s.TOML(); err == nil || err.Error() != "args: isn't all UTF-8, which a document has to be" {
		t.Error(err)
	}
	if _, err := json.Marshal(s); err == nil {
		t.Error("it has JSON")
	}
}

// A description that was read is written so that it is read as it was.
func FuzzParse(f *testing.F) {
	f.Add([]byte(complete))
	f.Add([]byte("limit = { streams = 5 }\nshare = ['./a=b', 'a:rw:ro']\n[limit]\n"))
	f.Add([]byte("args = [\"\\u202E\\U0001F600\\u007f\", '''\n''']\nrules = ['deny   [fe80::1%lo]:5-6']"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := spec.Parse("vm.toml", text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "vm.toml") {
				t.Errorf("%v", err)
			}
			return
		}
		_ = s.Check()
		written := print(t, s)
		again := parse(t, written)
		if diff := cmp.Diff(*s, *again, data); diff != "" {
			t.Errorf("%q: %s", written, diff)
		}
		if twice := print(t, again); twice != written {
			t.Errorf("%q, and then %q", written, twice)
		}
		inJSON, err := json.Marshal(s)
		var third spec.Spec
		if err == nil {
			err = json.Unmarshal(inJSON, &third)
		}
		if err != nil || !cmp.Equal(*s, third, data) {
			t.Errorf("%s: %v", inJSON, err)
		}
	})
}

// A folder's text is read as the folder, whatever is in its name and path.
func FuzzFolder(f *testing.F) {
	f.Add("", "a=b", false)
	f.Add("x", "d:rw:ro", false)
	f.Add("", "./=:ro", true)
	f.Fuzz(func(t *testing.T, name, dir string, writable bool) {
		want := spec.Folder{Name: name, Dir: dir, Writable: writable}
		s := spec.Spec{Shares: []spec.Folder{want}}
		if s.Check() != nil {
			return
		}
		got, err := spec.ParseFolder(want.String())
		if got.Dir == "./"+dir && name == "" {
			got.Dir = dir
		}
		if err != nil || got != want {
			t.Errorf("%+v is %q, read as %+v, %v", want, want, got, err)
		}
	})
}

// A path with .. after a link means what the kernel makes of it, in a document
// and made absolute: else another folder would be shared.
func TestParentOfLink(t *testing.T) {
	folder := t.TempDir()
	if err := errors.Join(
		os.MkdirAll(filepath.Join(folder, "real/sub"), 0o700), os.Mkdir(filepath.Join(folder, "p"), 0o700),
		os.Symlink("../real/sub", filepath.Join(folder, "p/link")),
		os.WriteFile(filepath.Join(folder, "p/vm.toml"), []byte(`share = ["link/..:rw"]`), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Join(folder, "p"))
	want, err := os.Stat(filepath.Join(folder, "real"))
	if err != nil {
		t.Fatal(err)
	}
	read, err := spec.Read("vm.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*spec.Spec{read, {Shares: read.Shares}, {Shares: []spec.Folder{{Dir: "link/.."}}}} {
		absolute, err := s.Absolute()
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{s.Shares[0].Dir, absolute.Shares[0].Dir} {
			if got, err := os.Stat(dir); err != nil || !os.SameFile(got, want) {
				t.Errorf("%s is another folder, %v", dir, err)
			}
		}
		if !filepath.IsAbs(absolute.Shares[0].Dir) {
			t.Errorf("%s isn't absolute", absolute.Shares[0].Dir)
		}
	}
}
