package emulated

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// programVariable makes this test binary one of the programs below.
const programVariable = "EMULATED_TEST_PROGRAM"

// programs are what the tests run in the emulated machine, and as children.
var programs = map[string]func() int{
	"exit7": func() int {
		fmt.Println("to stdout:", os.Args[1:])
		fmt.Fprintln(os.Stderr, "to stderr: in", must2(os.Getwd()))
		return 7
	},
	"check": func() int {
		if !Inside() {
			return 2
		}
		fmt.Print(string(must2(os.ReadFile("/data/sub/file"))))
		if must2(os.Stat("/dev/kvm")).Mode()&os.ModeCharDevice == 0 {
			return 3
		}
		if len(must2(Steps())) < 8 {
			return 4
		}
		return 0
	},
	"signal": func() int {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGINT)
		fmt.Println("waiting")
		<-signals
		return 3
	},
	"serve": func() int {
		listener := must2(net.Listen("tcp", "127.0.0.1:8080"))
		socket := must2(net.ListenPacket("udp", "127.0.0.1:8080"))
		fmt.Println("listening")
		datagram := make([]byte, 100)
		n, from, err := socket.ReadFrom(datagram)
		must2(n, err)
		must2(socket.WriteTo(datagram[:n], from))
		conn := must2(listener.Accept())
		must2(io.Copy(conn, conn))
		conn.Close()
		return 0
	},
	"burst": func() int {
		listener := must2(net.Listen("tcp", "127.0.0.1:8080"))
		fmt.Println("listening")
		for range burst {
			conn := must2(listener.Accept())
			must2(io.Copy(conn, conn))
			conn.Close()
		}
		return 0
	},
	"clock": func() int {
		must2(os.Stdout.WriteString(time.Now().Format(time.RFC3339Nano) + "\n"))
		// The host sets it right again.
		wrong := unix.NsecToTimeval(time.Now().Add(time.Hour).UnixNano())
		must2(0, unix.Settimeofday(&wrong))
		until := time.Now().Round(0).Add(-time.Minute)
		for range time.Tick(10 * time.Millisecond) {
			if time.Now().Before(until) {
				break
			}
		}
		must2(os.Stdout.WriteString(time.Now().Format(time.RFC3339Nano) + "\n"))
		return 0
	},
	"stdin": func() int {
		b := must2(io.ReadAll(os.Stdin))
		fmt.Printf("%d bytes, %x\n", len(b), sha256.Sum256(b))
		return 0
	},
	"line": func() int {
		b := make([]byte, 1)
		for b[0] != '\n' {
			must2(os.Stdin.Read(b))
			fmt.Print(string(b))
		}
		return 0
	},
	"tell": func() int {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGINT)
		if err := Tell([]byte("a word")); err != nil {
			return 2
		}
		<-signals
		return 0
	},
	"die": func() int {
		if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
			return 1
		}
		select {}
	},
}

func must2[T any](v T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
	return v
}

func TestMain(m *testing.M) {
	Init()
	if name := os.Getenv(programVariable); name != "" {
		os.Exit(programs[name]())
	}
	goleak.VerifyTestMain(m)
}

// self returns a static build of this test binary: that of the race detector is
// none, and far too slow in the emulated machine.
func self(t *testing.T) string {
	t.Helper()
	file, err := os.Executable()
	must(t, err)
	if loader, err := interpreter(file); err == nil && loader == "" {
		return file
	}
	file = filepath.Join(t.TempDir(), "emulated.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", file, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build a static test binary: %v\n%s", err, out)
	}
	return file
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
