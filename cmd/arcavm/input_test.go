package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/network/networktest"
	"github.com/fix-project/arcavm/vmm"
)

// certificateFiles returns the files of a certificate and its key.
func certificateFiles(t *testing.T) (cert, key string) {
	t.Helper()
	return pemFiles(t, networktest.NewAuthority(t).Issue(t, nil))
}

func pemFiles(t *testing.T, c tls.Certificate) (cert, key string) {
	t.Helper()
	raw, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, "cert", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})),
		writeFile(t, "key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

// pipeOf returns a pipe with the content of a file, for which it has room.
func pipeOf(t *testing.T, path string) *os.File {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	_, err = w.Write(data)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return r
}

// Certificates and keys may come from pipes, as <(…) of a shell gives them.
func TestTLSFilesFromPipes(t *testing.T) {
	t.Parallel()
	cert, key := certificateFiles(t)
	for name, c := range map[string]struct {
		key, image string
		code       int
		want       string
	}{
		// The key stands in for the image, which is read after the files for
		// TLS.
		"good": {key, key, exitData, key + ": is not an ELF file"},
		"bad":  {cert, key, exitData, "--tls-cert /proc/self/fd/3 with --tls-key /proc/self/fd/4: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var said bytes.Buffer
			cmd := command(t, "run", "--tls-cert", "/proc/self/fd/3", "--tls-key", "/proc/self/fd/4", c.image)
			cmd.ExtraFiles = []*os.File{pipeOf(t, cert), pipeOf(t, c.key)}
			cmd.Stderr = &said
			if err := cmd.Run(); cmd.ProcessState.ExitCode() != c.code {
				t.Errorf("the command ended with %v, want code %d", err, c.code)
			}
			wantLine(t, said.String(), c.want)
		})
	}
}

// Ctrl-C ends a wait for a pipe that gives nothing.
func TestInterruptWhileReadingTLSFile(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd := command(t, "run", "--tls-ca", "/proc/self/fd/3", imageFile(t, "hello"))
	cmd.ExtraFiles = []*os.File{r}
	err = cmd.Start()
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	// It is more than a pipe holds: the command reads if all is written.
	if _, err := w.Write(make([]byte, 256<<10)); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	err = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGINT {
		t.Errorf("the command ended with %v, want an end by SIGINT", err)
	}
}

// A wrong input is one line on stderr, nothing on stdout, and a code of
// sysexits.h.
func TestBadInput(t *testing.T) {
	t.Parallel()
	hello := imageFile(t, "hello")
	text := writeFile(t, "text", []byte("#!/bin/sh\n"))
	good := machineCode(1, exit(0))
	edited := func(at int, value byte) string {
		data := append([]byte(nil), good...)
		data[at] = value
		return writeFile(t, "image", data)
	}
	arm, small, dynamic := edited(18, 183), edited(4, 1), edited(16, 3)
	later := writeFile(t, "later", machineCode(9, exit(0)))
	cut := writeFile(t, "cut", good[:100])
	folder := t.TempDir()
	none := filepath.Join(folder, "none")
	cert, key := certificateFiles(t)
	_, otherKey := certificateFiles(t)
	badCert := writeFile(t, "bad", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))

	tests := []struct {
		args string // separated by spaces
		code int
		want string
	}{
		{"", 64, "no command given"},
		{"rnu k", 64, `unknown command "rnu": did you mean "run"?`},
		{"instpect", 64, `did you mean "inspect"?`},
		{hello, 64, "to boot this file: arcavm run " + hello},
		{"zzzzzzzz", 64, "commands are"},
		{"--verbose run", 64, "unknown flag --verbose"},
		{"run", 64, "IMAGE is missing (usage: arcavm run [flags] IMAGE [ARGS…])"},
		{"run --cpu 2 k", 64, "unknown flag --cpu: did you mean --cpus N? (usage: arcavm run [flags] IMAGE [ARGS…])"},
		{"run --memory 2G k", 64, "unknown flag --memory: did you mean --mem SIZE?"},
		{"run --sahre=. k", 64, "unknown flag --sahre: did you mean --share DIR?"},
		{"run --timming k", 64, "did you mean --timing?"},
		{"run --abi rpc " + hello, 64, "arcavm: --abi: the note in " + hello + " says that it speaks stream, version 1, not one of the older ABIs; leave the choice to it"},
		{"run --emulated --abi rpc " + hello, 64, "arcavm: --abi: the note in "},
		{"run -c 2 k", 64, "unknown flag -c"},
		{"run -cpus 2 k", 64, "arcavm: unknown flag -cpus: did you mean --cpus N? (usage"},
		{"run -cpus=2 k", 64, "unknown flag -cpus: did you mean --cpus N?"},
		{"run -mem 2G k", 64, "did you mean --mem SIZE?"},
		{"run -emulated k", 64, "did you mean --emulated?"},
		{"run -publsh 8080:80 k", 64, "did you mean --publish"},
		{"bench -quick", 64, "did you mean --quick?"},
		{"demo -port 8080", 64, "did you mean --port PORT?"},
		{"inspect -symbols k", 64, "did you mean --symbols?"},
		{"-version", 64, "did you mean --version?"},
		{"run \u2014cpus 2 k", 64, "a dash that is too long; write --cpus"},
		{"run \u2013\u2013cpus 2 k", 64, "write --cpus"},
		{"run --cpus two k", 64, `--cpus: "two" is not a number that this flag takes (usage: arcavm run`},
		{"run --cpus", 64, "flag needs an argument: --cpus"},
		{"run --mem 512 k", 64, `arcavm: --mem: "512": a unit is missing: write 512M for MiB or 512G for GiB`},
		{"run --mem lots k", 64, "write a whole number with a unit, such as 512M or 2G"},
		{"run --mem -1G k", 64, "write a whole number with a unit"},
		{"run --mem 99999999999G k", 64, "write a whole number with a unit"},
		{"run --abi streams k", 64, `arcavm: --abi: "streams" must be one of auto, stream, rpc, hypercall; did you mean stream?`},
		{"run --log-level loud k", 64, "must be one of error, warn, info, debug, trace"},
		{"run --log-format xml k", 64, "must be one of text, json"},
		{"run --cpus 0 " + hello, 64, "--cpus: 0 is not in 1 to 64"},
		{"run --cpus -3 " + hello, 64, "--cpus: -3 is not in 1 to 64"},
		{"run --cpus 65 " + hello, 64, "--cpus: 65 is not in 1 to 64"},
		{"run --mem 3M " + hello, 64, "--mem: "},
		{"run --mem 4097K " + hello, 64, "--mem: "},
		{"run --mem 1024G " + hello, 64, "--mem: "},
		{"run --window 1M " + hello, 64, "--window: "},
		{"run " + filepath.Join(folder, "none"), 66, "no such file or directory"},
		{"run " + filepath.Join(hello, "none"), 66, "not a directory"},
		{"run " + folder, 65, "is not a regular file"},
		{"run " + text, 65, text + ": is not an ELF file"},
		{"run " + arm, 65, "is an ELF file for aarch64, Arca images are x86-64"},
		{"run " + small, 65, "is a 32-bit ELF file"},
		{"run " + dynamic, 65, "position-independent"},
		{"run " + cut, 65, "is cut off"},
		{"run " + later, 65, "speaks the ABI of unknown version 9"},
		{"run --limit streems=5 " + hello, 64, `arcavm: --limit: there is no limit "streems"; did you mean streams? (usage: arcavm run`},
		{"run --limit ring=5 " + hello, 64, "did you mean ring-memory?"},
		{"run --limit time=5 " + hello, 64, "names are streams, ring-memory, stream-files, files, accepts, bytes, operations, disk, log"},
		{"run --limit streams " + hello, 64, `"streams" is not of the form NAME=VALUE`},
		{"run --limit files=0 " + hello, 64, `files: "0" is not a whole number from 1 on, such as 500, 64K, 100M or 2G`},
		{"run --limit bytes=-1 " + hello, 64, "is not a whole number"},
		{"run --limit accepts=4G " + hello, 64, "is not a whole number"},
		{"run --limit streams=200000 " + hello, 64, "--limit streams: 200000 is not in 1 to 131072"},
		{"run --limit ring-memory=4K " + hello, 64, "--limit ring-memory: 4 KiB is not between 128 KiB and 128 GiB"},
		{"run --publish 80 " + hello, 64, `arcavm: --publish: "80" is not of the form [ADDRESS:]HOSTPORT:PORT[/tcp|/udp] (usage: arcavm run`},
		{"run --publish= " + hello, 64, `arcavm: --publish: "" is not of the form`},
		{"run --publish localhost:8080:80 " + hello, 64, `arcavm: --publish: "localhost:8080:80": "localhost" is no IP address; the form is`},
		{"run --allow ::1 " + hello, 64, `arcavm: --allow: "::1": an IPv6 address or range is written in brackets, such as [::1]`},
		{"run --allow [::1%lo] " + hello, 64, `arcavm: --allow: "[::1%lo]": only link-local addresses have a scope`},
		{"run --nat64 10.0.0.0/8 " + hello, 64, `arcavm: --nat64: "10.0.0.0/8": no range of IPv6 addresses; the form is PREFIX/LENGTH`},
		{"run --nat64 2001:db8::/97 " + hello, 64, "--nat64: \"2001:db8::/97\": its length isn't one of"},
		{"run --share= " + hello, 64, `--share: "" has no folder`},
		{"run --timing json " + hello, 64, "there is no image json; is --timing=json meant?"},
		{"run --emulated --timing text " + hello, 64, "is --timing=text meant?"},
		{"run --publish 8080:80 --publish 8081:80 " + hello, 64, "arcavm: --publish: port 80 of the guest is published twice by addresses of one family"},
		{"run --publish 8080:80 --publish 8080:81 " + hello, 64, "arcavm: --publish: 127.0.0.1:8080 is given to two ports of the guest: 80 and 81"},
		{"run --deny icmp:* " + hello, 64, `"icmp:" is no direction and no protocol`},
		{"run --emulated=maybe " + hello, 64, `--emulated: "maybe" is neither true nor false; write --emulated`},
		{"run --emulated --publish 80 " + hello, 64, "not of the form [ADDRESS:]HOSTPORT:PORT"},
		{"run --allow 10.0.0 " + hello, 64, "arcavm: --allow: \"10.0.0\" is no address, range of addresses or name; the form is [in:|out:][tcp:|udp:]HOST[:PORT[-PORT]] (usage: arcavm run"},
		{"run --deny *:99999 " + hello, 64, "--deny"},
		{"run --emulated " + filepath.Join(folder, "none"), 66, "no such file or directory"},
		{"run --emulated --share " + hello + " " + hello, 66, "--share: " + hello + " is not a folder"},
		{"run --emulated --share .:rw " + hello, 64, "--share: with --emulated"},
		{"run --share " + filepath.Join(folder, "none") + " " + hello, 66, "arcavm: --share: open " + none},
		{"run --share " + hello + " " + hello, 66, "--share: " + hello + " is not a folder"},
		{"run --share . --share .. " + hello, 64, "--share: .. is the second folder without a name; write NAME=.."},
		{"run --share a=. --share a=.. " + hello, 64, "--share: two folders are called a"},
		{"run --share a= " + hello, 64, `--share: "a=" has no folder`},
		{"run --share :rw " + hello, 64, `--share: ":rw" has no folder`},
		{"run --share ..=. " + hello, 64, `--share: ".." is not a name for a folder`},
		{"run --share a=. --share b=" + hello + " " + hello, 66, "--share: " + hello + " is not a folder"},
		{"run --emulated --sockets . " + hello, 64, "--sockets: not with --emulated"},
		{"run --sockets " + filepath.Join(folder, "none") + " " + hello, 66, "arcavm: --sockets: open " + none},
		{"run --sockets " + hello + " " + hello, 66, "--sockets: " + hello + " is not a folder"},
		{"run --sockets . --sockets .. " + hello, 64, "--sockets: .. is the second folder without a name; write NAME=.."},
		{"run --sockets :rw " + hello, 64, `--sockets: ":rw" has no folder`},
		{"run --share ./a=b " + hello, 66, "open ./a=b: no such file or directory"},
		{"run --tls-cert " + cert + " " + hello, 64, "--tls-cert and --tls-key go together: write --tls-cert FILE --tls-key FILE"},
		{"run --tls-cert= --tls-key= " + hello, 64, "--tls-cert and --tls-key go together: write --tls-cert FILE --tls-key FILE"},
		{"run --tls-key " + key + " " + hello, 64, "--tls-cert and --tls-key go together"},
		{"run --tls-cert " + none + " --tls-key " + key + " " + hello, 66, "--tls-cert: open " + none},
		{"run --tls-cert " + cert + " --tls-key " + none + " " + hello, 66, "--tls-key: open " + none},
		{"run --tls-cert " + text + " --tls-key " + key + " " + hello, 65, "--tls-cert " + text + " with --tls-key " + key + ": "},
		{"run --tls-cert " + cert + " --tls-key " + text + " " + hello, 65, "failed to find any PEM data in key input"},
		{"run --tls-cert " + cert + " --tls-key " + otherKey + " " + hello, 65, "private key does not match public key"},
		{"run --tls-ca " + none + " " + hello, 66, "--tls-ca: open " + none},
		{"run --tls-ca " + text + " " + hello, 65, "--tls-ca: " + text + " holds no certificate in PEM form"},
		{"run --tls-ca " + key + " " + hello, 65, "--tls-ca: " + key + " holds no certificate in PEM form"},
		{"run --tls-ca " + cert + " --tls-ca " + badCert + " " + hello, 65, "--tls-ca: " + badCert + ": x509: "},
		{"run --emulated --tls-ca " + text + " " + hello, 65, "--tls-ca: " + text + " holds no certificate in PEM form"},
		{"inspect", 64, "IMAGE is missing (usage: arcavm inspect [flags] IMAGE)"},
		{"inspect a b", 64, `"b" is one argument too many`},
		{"inspect " + text, 65, "is not an ELF file"},
		{"inspect " + filepath.Join(folder, "none"), 66, "no such file or directory"},
		{"demo hello", 64, `"hello" is one argument too many`},
		{"demo --port 99999", 64, "--port: 99999 is out of range (usage: arcavm demo"},
		{"demo --port -1", 64, `--port: "-1" is not a number that this flag takes`},
		{"help nosuch", 64, `unknown command "nosuch"`},
		{"completion nosuch", 64, `no completion for "nosuch"; shells are bash, fish, powershell, zsh`},
		{"completion bash x", 64, `"x" is one argument too many`},
		{"help run extra", 64, `"extra" is one argument too many; try: arcavm run --help`},
		{"help completion nosuch", 64, `"nosuch" is one argument too many; try: arcavm completion --help`},
		{"version 2", 64, "one argument too many"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			t.Parallel()
			got := inProcess(strings.Fields(test.args)...)
			if got.code != test.code || got.out != "" {
				t.Errorf("code %d, stdout %q; want %d and nothing", got.code, got.out, test.code)
			}
			wantLine(t, got.err, test.want)
		})
	}
}

func TestEmptyName(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"run", ""}, {"run", "--emulated", ""}, {"inspect", ""}} {
		got := inProcess(args...)
		if got.code != exitUsage {
			t.Errorf("%q: code %d, want %d", args, got.code, exitUsage)
		}
		wantLine(t, got.err, "IMAGE is an empty name")
	}
}

func TestNoPermission(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root may read everything; run as another user")
	}
	path := imageFile(t, "hello")
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	got := inProcess("run", path)
	if got.code != exitPermission {
		t.Errorf("code %d, want %d", got.code, exitPermission)
	}
	wantLine(t, got.err, "permission denied")
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		err  error
		code int
		want string
	}{
		{&kvm.UnavailableError{Path: "/dev/kvm", Problem: "doesn't exist", Remedy: "load the module", Err: unix.ENOENT}, exitUnavailable, "/dev/kvm doesn't exist"},
		{&kvm.UnavailableError{Path: "/dev/kvm", Problem: "may not be opened", Remedy: "join the group", Err: unix.EACCES}, exitPermission, "join the group"},
		{&kvm.UnavailableError{Path: "/dev/kvm", Problem: "doesn't exist", Remedy: "load the module", Err: unix.ENOENT}, exitUnavailable, "arcavm run --emulated"},
		{&kvm.UnavailableError{Path: "/dev/kvm", Problem: "can't be opened", Remedy: "check it", Err: unix.EMFILE}, exitOS, "arcavm: opening /dev/kvm: too many open files\n"},
		{&kvm.UnavailableError{Path: "/dev/kvm", Problem: "can't be opened", Remedy: "check it", Err: unix.ENFILE}, exitOS, "too many open files in system"},
		{&kvm.UnavailableError{Path: "/dev/kvm", Problem: "can't be opened", Remedy: "check it", Err: unix.ENOMEM}, exitOS, "cannot allocate memory"},
		{&kvm.IoctlError{Ioctl: "KVM_CREATE_VM", Err: unix.EBUSY}, exitOS, "KVM_CREATE_VM"},
		{&vmm.ConfigError{Field: "cpus", Reason: "9 are more than 8"}, exitUsage, "--cpus: 9 are more than 8"},
		{os.ErrPermission, exitPermission, "permission denied"},
		{os.ErrDeadlineExceeded, exitSoftware, "timeout"},
	}
	for _, test := range tests {
		var b strings.Builder
		if code := finish(&b, test.err); code != test.code {
			t.Errorf("%v: code %d, want %d", test.err, code, test.code)
		}
		wantLine(t, b.String(), test.want)
	}
	var b strings.Builder
	if code := finish(&b, guestExit(7)); code != 7 || b.Len() != 0 {
		t.Errorf("a guest's exit code: got %d and %q", code, b.String())
	}
}

func TestOneLine(t *testing.T) {
	t.Parallel()
	if got, want := oneLine(" a\nb\x1b[1m\n"), `a; b\u001b[1m`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// An image without a note speaks an older ABI. Where KVM lacks what such images
// need, one sentence says what is missing and how to run them nonetheless.
func TestOlderABI(t *testing.T) {
	t.Parallel()
	needKVM(t)
	system, err := kvm.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer system.Close()
	if f, err := system.Features(); err != nil {
		t.Fatal(err)
	} else if f.GiBPages && f.FSGSBASE && f.RDTSCP && f.SMAP {
		t.Skip("this KVM lacks nothing; the test needs one that does, such as kvm_pvm")
	}
	for _, abi := range []string{"rpc", "hypercall"} {
		got := inProcess("run", "--abi", abi, writeFile(t, "older", machineCode(0, exit(0))))
		if got.code != exitUnavailable {
			t.Errorf("%s: code %d, want 69", abi, got.code)
		}
		wantLine(t, got.err, "arcavm run --emulated runs it in emulated hardware")
	}
}

// The ABI of an image without a note is found by its symbols. For one without
// symbols it has to be chosen. Images of the hypercall ABI take numbers only.
func TestOlderABIs(t *testing.T) {
	t.Parallel()
	stripped := writeFile(t, "stripped", machineCode(0, exit(0)))
	calls, rpc := imageFile(t, "rpc-calls"), imageFile(t, "rpc-hello")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"run", stripped}, exitUsage, "no ABI note and no symbols; say whether it speaks the rpc or the hypercall ABI"},
		{[]string{"run", calls, "bob"}, exitUsage, `"bob" is not a number`},
		{[]string{"run", "--abi", "hypercall", imageFile(t, "hello")}, exitUsage, "the note in"},
		{[]string{"inspect", calls}, 0, "hypercall, Arca's oldest: it has no ABI note, and symbols of the kernel but none of its module pipe"},
		{[]string{"inspect", rpc}, 0, "rpc, Arca's older request/response: "},
		{[]string{"inspect", stripped}, 0, "unknown: it has no ABI note and no symbols; run it with --abi rpc or --abi hypercall"},
		{[]string{"inspect", imageFile(t, "hello")}, 0, "stream, version 1"},
	} {
		got := inProcess(c.args...)
		if got.code != c.code || !strings.Contains(got.out+got.err, c.want) {
			t.Errorf("%q: code %d\n%s%s", c.args, got.code, got.out, got.err)
		}
	}
}

// Flags that an image's ABI has no use for are refused, not ignored.
func TestStreamOnlyFlags(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		flags []string
		want  string
	}{
		"by the image": {[]string{"--sockets", t.TempDir(), imageFile(t, "rpc-hello")}, "--sockets: "},
		"by hand":      {[]string{"--abi", "rpc", "--sockets", t.TempDir(), imageFile(t, "hello")}, "--sockets: "},
		"hypercalls":   {[]string{"--sockets", t.TempDir(), imageFile(t, "rpc-calls")}, "--sockets: "},
		"their limit":  {[]string{"--limit", "accepts=5", imageFile(t, "rpc-calls")}, "--limit accepts: "},
		"a limit":      {[]string{"--limit", "files=5,accepts=5", imageFile(t, "rpc-hello")}, "--limit accepts: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := inProcess(append([]string{"run"}, c.flags...)...)
			if got.code != exitUsage {
				t.Errorf("code %d, want %d", got.code, exitUsage)
			}
			wantLine(t, got.err, c.want)
			wantLine(t, got.err, "speaks one of the older ABIs")
		})
	}
}
