package emulated

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
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
		if len(must2(Steps())) < 7 {
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
	"random": func() int {
		b := make([]byte, 16)
		must2(unix.Getrandom(b, 0))
		fmt.Printf("%x %s", b, must2(os.ReadFile("/proc/sys/kernel/random/uuid")))
		return 0
	},
	"describe": func() int {
		describe()
		return 0
	},
	"die": func() int {
		if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
			return 1
		}
		select {}
	},
}

// describe prints what a program can see of the machine, but for what is never
// the same.
func describe() {
	must2(0, filepath.WalkDir("/", func(name string, _ fs.DirEntry, err error) error {
		must2(0, err)
		switch name {
		case "/proc", "/sys", "/dev":
			return filepath.SkipDir
		case "/", "/steps.json", "/tell": // init's own
			return nil
		}
		var st unix.Stat_t
		must2(0, unix.Lstat(name, &st))
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			st.Size = 0
		}
		if name == "/tmp" { // mounted at boot
			st.Mtim.Sec = 0
		}
		fmt.Println(name, st.Mode, st.Nlink, st.Size, st.Uid, st.Gid, st.Mtim.Sec)
		return nil
	}))
	devices := must2(os.ReadDir("/dev"))
	fmt.Println(devices)
	fmt.Println(os.Environ(), os.Args[1:], must2(os.Getwd()), must2(os.Executable()))
	for _, name := range []string{"/proc/mounts", "/proc/modules", "/proc/self/limits", "/etc/hosts", "/proc/net/route"} {
		// Sizes that depend on the memory's, and addresses of modules.
		changing := regexp.MustCompile(`size=\w+,nr_inodes=\w+|0xffff\w+|(?m)^Max (processes|pending signals).*`)
		fmt.Printf("%s:\n%s", name, changing.ReplaceAll(must2(os.ReadFile(name)), nil))
	}
	for _, i := range must2(net.Interfaces()) {
		fmt.Println(i.Index, i.Name, i.MTU, i.HardwareAddr, must2(i.Addrs())[0])
	}
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
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if made := madeSnapshots.Load(); made != nil {
			os.RemoveAll(*made)
		}
		os.Exit(code)
	}))
}

// snapshots is the folder for the snapshots of all tests.
var (
	madeSnapshots atomic.Pointer[string]
	snapshots     = sync.OnceValues(func() (string, error) {
		folder, err := os.MkdirTemp("", "arcavm-snapshots-")
		if err == nil {
			madeSnapshots.Store(&folder)
		}
		return folder, err
	})
)

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
