package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/guestmap"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm/vmmtest"
)

// patience bounds a hang. It is long for emulated hardware.
const patience = 5 * time.Minute

// mainVariable, if set, makes the test binary the command itself.
const mainVariable = "ARCAVM_TEST_MAIN"

// nohupVariable, if set, makes the test binary start itself again with SIGHUP
// ignored, as nohup does.
const nohupVariable = "ARCAVM_TEST_NOHUP"

// noProcVariable, if set, makes the test binary hide /proc from itself first.
// It must have a mount namespace of its own.
const noProcVariable = "ARCAVM_TEST_NO_PROC"

func TestMain(m *testing.M) {
	if os.Getenv(noProcVariable) != "" {
		if err := unix.Mount("none", procfs, "tmpfs", unix.MS_RDONLY, ""); err != nil {
			fmt.Fprintln(os.Stderr, "mount:", err)
			os.Exit(exitNoProc)
		}
	}
	if os.Getenv(leaderVariable) != "" {
		if err := lead(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv(nohupVariable) != "" {
		os.Unsetenv(nohupVariable)
		signal.Ignore(unix.SIGHUP)
		fmt.Fprintln(os.Stderr, unix.Exec("/proc/self/exe", os.Args, os.Environ()))
		os.Exit(1)
	}
	if os.Getenv(mainVariable) != "" {
		log := &journal{}
		code := process(log.over)
		if log.lostWakeUp {
			code = exitLostWakeUp
		}
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// exitNoProc is the exit code of a command of a test that can't hide /proc.
const exitNoProc = 98

// exitLostWakeUp is the exit code of a command of a test, whatever else it did,
// whose guest or monitor forgot to wake the other.
const exitLostWakeUp = 99

// journal is a writer to standard error that notices a lost wake-up.
type journal struct {
	to         io.Writer
	mu         sync.Mutex
	lostWakeUp bool
}

func (j *journal) over(to io.Writer) io.Writer {
	j.to = to
	return j
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lostWakeUp = j.lostWakeUp || bytes.Contains(p, []byte("lost wake-up"))
	return j.to.Write(p)
}

// result is how a command line ended, and its output.
type result struct {
	code     int
	out, err string
}

// inProcess runs a command line that boots no guest in this process.
func inProcess(args ...string) result {
	var out, err bytes.Buffer
	code := execute(args, streams{out: &out, err: &err})
	return result{code, out.String(), err.String()}
}

// finish prints an error as execute does, and returns the exit code.
func finish(w io.Writer, err error) int {
	return output{streams: streams{err: w}, machine: true}.finish(err)
}

// command returns a command line as a process of its own.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), mainVariable+"=1")
	return cmd
}

// asProcess runs a command line as a process of its own to its end.
func asProcess(t *testing.T, args ...string) result {
	t.Helper()
	var out, err bytes.Buffer
	cmd := command(t, args...)
	cmd.Stdout, cmd.Stderr = &out, &err
	_ = cmd.Run() // a code other than 0 is an error here, too
	return result{cmd.ProcessState.ExitCode(), out.String(), err.String()}
}

// needKVM skips the test where there is no KVM, or fails it where KVM is
// required.
func needKVM(t *testing.T) {
	t.Helper()
	system, err := kvm.Open("")
	if err != nil {
		vmmtest.Unavailable(t, err)
	}
	system.Close()
}

// imageFile writes one of the committed images to a file.
func imageFile(t *testing.T, name string) string {
	t.Helper()
	return writeFile(t, name, images.Bytes(name))
}

func writeFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const (
	codeAddress = 0x1_0010_0000
	directMap   = guestmap.DirectMap
)

// machineCode returns an image of one segment that runs the code, with an ABI
// note of the version, unless that is 0.
func machineCode(abi uint32, code []byte) []byte {
	le := binary.LittleEndian
	header := func(kind, flags uint32, offset, address, size uint64) []byte {
		p := le.AppendUint32(le.AppendUint32(nil, kind), flags)
		for _, v := range []uint64{offset, directMap | address, address, size, size, 4} {
			p = le.AppendUint64(p, v)
		}
		return p
	}
	const loadAt = 64 + 2*56
	note := le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 5), 4), 1)
	note = le.AppendUint32(append(note, "Arca\x00\x00\x00\x00"...), abi)
	programs, count := header(1, 5, loadAt, codeAddress, uint64(len(code))), uint16(1)
	if abi != 0 {
		programs, count = append(programs, header(4, 4, loadAt+uint64(len(code)), 0, uint64(len(note)))...), 2
	}
	programs = append(programs, make([]byte, 2*56-len(programs))...)

	file := []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	file = le.AppendUint32(le.AppendUint16(le.AppendUint16(file, 2), 62), 1)
	for _, v := range []uint64{directMap | codeAddress, 64, 0} {
		file = le.AppendUint64(file, v)
	}
	file = le.AppendUint32(file, 0)
	for _, v := range []uint16{64, 56, count, 0, 0, 0} {
		file = le.AppendUint16(file, v)
	}
	file = append(file, programs...)
	file = append(file, code...)
	return append(file, note...)
}

// write returns machine code that writes text to the debug console.
func write(text string) []byte {
	var code []byte
	for _, c := range []byte(text) {
		code = append(code, 0xB0, c, 0xE6, 0xE9) // mov $c, %al; out %al, $0xE9
	}
	return code
}

// logStart returns machine code that logs "guest started". It must come first.
func logStart() []byte {
	const message, jump, recordSize = "guest started", 5, 96
	le := binary.LittleEndian
	// jmp behind record and text
	code := le.AppendUint32([]byte{0xE9}, uint32(recordSize+len(message)))
	record := make([]byte, recordSize)
	record[0] = 3
	le.PutUint64(record[80:], codeAddress+jump+recordSize)
	le.PutUint64(record[88:], uint64(len(message)))
	code = append(append(code, record...), message...)
	code = le.AppendUint64(append(code, 0x48, 0xBF), codeAddress+jump) // movabs $record, %rdi
	// mov $1, %eax; xor %edx, %edx; out %al, %dx
	return append(code, 0xB8, 1, 0, 0, 0, 0x31, 0xD2, 0xEE)
}

// exit returns machine code that ends the guest.
func exit(code byte) []byte {
	// mov $code, %edi; xor %eax, %eax; xor %edx, %edx; out %al, %dx
	return []byte{0xBF, code, 0, 0, 0, 0x31, 0xC0, 0x31, 0xD2, 0xEE}
}

// spin is machine code that never ends and takes no interrupt.
var spin = []byte{0xEB, 0xFE} // jmp .

func wantLine(t *testing.T, text, want string) {
	t.Helper()
	if strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "arcavm: ") || !strings.Contains(text, want) {
		t.Errorf("got %q\nwant one line that starts with \"arcavm: \" and contains %q", text, want)
	}
}
