package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// An error of a --config file names the file, the line and the key, one of a
// flag that overrides it the flag.
func TestBadConfig(t *testing.T) {
	t.Parallel()
	hello, older := imageFile(t, "hello"), imageFile(t, "rpc-hello")
	folder := t.TempDir()
	fifo := filepath.Join(folder, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	image := "image = '" + hello + "'\n"
	cert, _ := certificateFiles(t)
	for _, c := range []struct {
		text string // FILE in args is a file that holds it
		args string
		code int
		want string
	}{
		{image + "cpu = 2", "run --config FILE", 64, `FILE:2: there is no key "cpu"; did you mean cpus?`},
		{image + "cpus = 2\ncpus = 2", "run --config FILE", 64, "FILE:3:1: "},
		{image + "cpus = 65", "run --config FILE", 64, "FILE:2: cpus: 65 is not in 1 to 64"},
		{image + "cpus = 65", "run --config FILE --cpus 2", 64, "FILE:2: cpus: 65 is not in 1 to 64"},
		{image + "mem = '1M'", "run --config FILE", 64, "FILE:2: mem: 1 MiB is not between 4 MiB and 256 GiB"},
		{image + "mem = '1M'", "run --config FILE --mem 3M", 64, "arcavm: --mem: 3 MiB is not"},
		{image + "abi = 'rpc'", "run --config FILE", 64, "FILE:2: abi: the note in"},
		{image + "\nlimit.streams = 200000", "run --config FILE", 64, "FILE:3: limit.streams: 200000 is not in 1 to 131072"},
		{image + "share = [\n'.', \n'none']", "run --config FILE", 64, "FILE:4: share: "},
		{image + "share = [\n'.', \n'x=none']", "run --config FILE", 66, "FILE:4: share: open "},
		{image + "share = ['" + hello + "']", "run --config FILE", 66, "FILE:2: share: " + hello + " is not a folder"},
		{image + "share = ['none']", "run --config FILE --share none", 66, "arcavm: --share: open none: no such"},
		{image + "publish = ['8080:80']", "run --config FILE --publish 8080:81", 64, "arcavm: --publish: 127.0.0.1:8080 is given to two ports of the guest: 80 and 81"},
		{image + "tls-ca = ['" + hello + "']", "run --config FILE", 65, "FILE:2: tls-ca: " + hello + " holds no certificate in PEM form"},
		{image + "tls-cert = '" + cert + "'", "run --config FILE", 64, "FILE:2: tls-cert: tls-cert and tls-key go together"},
		{image + "tls-cert = '" + cert + "'\ntls-key = '" + cert + "'", "run --config FILE", 65, "FILE:2: tls-cert " + cert + " with FILE:3: tls-key " + cert + ": "},
		{"image = 'none'", "run --config FILE", 66, "FILE:1: image: open "},
		{"image = '" + folder + "'", "run --config FILE", 65, "FILE:1: image: " + folder + ": is not a regular file"},
		{"image = '" + older + "'\nsockets = ['.']", "run --config FILE", 64, "FILE:2: sockets: " + older + " speaks one of the older ABIs"},
		{image + "limit.accepts = 5", "run --config FILE " + older, 64, "FILE:2: limit.accepts: " + older + " speaks one of the older ABIs"},
		{image + "emulated = true\nsockets = ['.']", "run --config FILE", 64, "FILE:3: sockets: not with --emulated"},
		{image + "emulated = true\nshare = ['.:rw']", "run --config FILE", 64, "FILE:3: share: with --emulated"},
		{image + "emulated = true\npublish = ['[::1]:1:1']", "run --config FILE", 64, "FILE:3: publish: with --emulated the address is an IPv4 one"},
		{"cpus = 2", "run --config FILE", 64, "IMAGE is missing: neither the command line nor FILE names it (usage:"},
		{"cpus = 2", "run --config FILE -- a b", 64, "IMAGE is missing"},
		{image, "run --config FILE --config FILE", 64, "--config: FILE is the second one; only one file is read"},
		{image, "run --config FILE --cpu 2", 64, "did you mean --cpus N?"},
		{"", "run --config - " + hello, 64, "--config: standard input is the guest's; name a file (usage:"},
		{"", "run --config= " + hello, 64, "--config: an empty name (usage:"},
		{"", "run --config " + folder + "/none " + hello, 66, "--config: open " + folder + "/none: no such file"},
		{"", "run --config " + folder + " " + hello, 65, folder + ": is not a regular file"},
		{"", "run --config " + fifo + " " + hello, 65, fifo + ": is not a regular file"},
		{"", "run --config /dev/zero " + hello, 65, "/dev/zero: is not a regular file"},
		{"", "run --print-config --cpus 65", 64, "--cpus: 65 is not in 1 to 64"},
		{"", "run --print-config --share x=. --share x=..", 64, "--share: two folders are called x"},
		{"", "run --print-config k \xff", 64, "arguments: isn't all UTF-8"},
		{"", "demo --config FILE", 64, "unknown flag --config"},
	} {
		file := writeFile(t, "vm.toml", []byte(c.text))
		got := inProcess(strings.Fields(strings.ReplaceAll(c.args, "FILE", file))...)
		if got.code != c.code || got.out != "" {
			t.Errorf("%q, %q: code %d and output %q, want %d and none", c.text, c.args, got.code, got.out, c.code)
		}
		wantLine(t, got.err, strings.ReplaceAll(c.want, "FILE", file))
	}
}

func TestConfigNoPermission(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root may read everything; run as another user")
	}
	file := writeFile(t, "vm.toml", nil)
	if err := os.Chmod(file, 0); err != nil {
		t.Fatal(err)
	}
	got := inProcess("run", "--config", file)
	if got.code != exitPermission {
		t.Errorf("code %d, want %d", got.code, exitPermission)
	}
	wantLine(t, got.err, "--config: open "+file+": permission denied")
}

// A printed description means the same wherever it is read.
func TestPrintConfig(t *testing.T) {
	t.Parallel()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, "vm.toml", []byte("image = 'k'\nargs = ['x']\ncpus = 2\nrules = ['deny 10.0.0.0/8']\nlog-format = 'json'\n"))
	args := []string{"run", "--config", file, "--print-config", "--mem", "1024M", "--share", "in=www:rw", "--allow", "localhost", "--deny", "*", "--publish", "0:80",
		"--limit", "streams=5,bytes=2M", "--limit", "streams=6", "--timing", "--exit-file", "none/exit", "--emulated", "--window=1G", "--", "a", "--cpus", "\x1b\u202e"}
	want := `image = "` + filepath.Dir(file) + `/k"
args = ["a", "--cpus", "\u001B\u202E"]
cpus = 2
mem = "1G"
window = "1G"
emulated = true
share = ["in=` + here + `/www:rw"]
rules = ["allow localhost", "deny *", "deny 10.0.0.0/8"]
publish = ["127.0.0.1:0:80/tcp"]
limit.streams = 6
limit.bytes = "2M"
log-format = "json"
timing = "text"
exit-file = "` + here + `/none/exit"
`
	got := inProcess(args...)
	if got.code != 0 || got.out != want || got.err != "" {
		t.Errorf("code %d, stderr %q\n%swant\n%s", got.code, got.err, got.out, want)
	}
	again := inProcess("run", "--print-config", "--config", writeFile(t, "again.toml", []byte(got.out)))
	if again != got {
		t.Errorf("read back it is\n%s%s", again.out, again.err)
	}
	if got := inProcess("run", "--print-config"); got != (result{}) {
		t.Errorf("nothing is %+v", got)
	}
}

// A file alone makes a machine; words and flags override it.
func TestConfig(t *testing.T) {
	t.Parallel()
	needKVM(t)
	exit := filepath.Join(t.TempDir(), "exit.json")
	file := writeFile(t, "vm.toml", []byte("image = '"+imageFile(t, "hello")+"'\nargs = ['bob', '--exit', '7']\nexit-file = '"+exit+"'\nlog-format = 'json'\n"))
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, 7, "hello, bob"},
		{[]string{"--", "alice", "--exit", "3"}, 3, "hello, alice"},
		{[]string{imageFile(t, "hello")}, 7, "hello, bob"},
		{[]string{imageFile(t, "hello"), "carol"}, 0, "hello, carol"},
		{[]string{"--"}, 7, "hello, bob"},
	} {
		got := asProcess(t, append([]string{"run", "--config", file}, c.args...)...)
		if got.code != c.code || !strings.Contains(got.err, c.want) {
			t.Errorf("%q: code %d, want %d and %q:\n%s", c.args, got.code, c.code, c.want, got.err)
		}
		if said := exitFile(t, exit); said.Code != c.code || said.Cause != causeGuest {
			t.Errorf("%q: the exit file has %+v", c.args, said)
		}
	}
}

// The file's own exit file and format count for errors, too.
func TestConfigOutcome(t *testing.T) {
	t.Parallel()
	exit := filepath.Join(t.TempDir(), "exit.json")
	file := writeFile(t, "vm.toml", []byte("image = 'none'\nexit-file = '"+exit+"'\nlog-format = 'json'\n"))
	got := inProcess("run", "--config", file)
	_, last := records(t, got.err)
	if got.code != exitNoInput || last.Code != got.code || exitFile(t, exit) != last {
		t.Errorf("%+v, and the exit file has %+v", got, exitFile(t, exit))
	}
}
