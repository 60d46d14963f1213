package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/testdata/images"
)

// hostile is text that steers a terminal, in each way, and text that would
// steer one if its quotes were taken off once too often.
const hostile = "a\x1b[31mb\x1b]0;t\x07c\x9b31md\u009b31me\u202ef\u2066g\x7fh\x08i\x00j\tk\rl\nm\xffn\U000E0041o" +
	` \x1b[31m \u001b[31m \033[31m \\x1b[31m "q" \"\x1b[31m\" time=1 level=ERROR =`

// coloured matches the escape sequences that a record's line may have, for its
// time, level and keys.
var coloured = regexp.MustCompile("\x1b\\[(0|2|91|92|93|95)m")

// steering returns the first place where text steers a terminal, -1 if none.
func steering(text []byte, colours bool) int {
	if colours {
		text = coloured.ReplaceAll(text, nil)
	}
	for i, r := range string(text) {
		switch {
		// A terminal's driver writes a line feed so.
		case r == '\n', r == '\r' && i+1 < len(text) && text[i+1] == '\n':
		case r < ' ', 0x7F <= r && r <= 0x9F, 0x200B <= r && r <= 0x200F, 0x2028 <= r && r <= 0x202E, 0x2066 <= r && r <= 0x2069, 0xE0000 <= r && r <= 0xE0FFF:
			return i
		}
	}
	if !utf8.Valid(text) {
		return len(bytes.ToValidUTF8(text, nil))
	}
	return -1
}

func wantHarmless(t *testing.T, text []byte, colours bool) {
	t.Helper()
	if i := steering(text, colours); i >= 0 {
		t.Errorf("at byte %d: %q", i, text)
	}
}

type stringer string

func (s stringer) String() string { return string(s) }

type marshaler string

func (m marshaler) MarshalText() ([]byte, error) { return []byte(m), nil }

type failingMarshaler string

func (m failingMarshaler) MarshalText() ([]byte, error) { return nil, errors.New(string(m)) }

func (m failingMarshaler) MarshalJSON() ([]byte, error) { return nil, errors.New(string(m)) }

type valuer string

func (v valuer) LogValue() slog.Value { return slog.GroupValue(slog.String(string(v), string(v))) }

type panicking string

func (p panicking) String() string { panic(string(p)) }

// Whatever a record holds, on a terminal and in a file it is one line that
// steers nothing.
func TestForeignRecords(t *testing.T) {
	t.Parallel()
	values := map[string]any{
		"string": hostile, "error": errors.New(hostile), "stringer": stringer(hostile), "marshaler": marshaler(hostile),
		"failing marshaler": failingMarshaler(hostile), "valuer": valuer(hostile), "panicking": panicking(hostile),
		"bytes": []byte(hostile), "named bytes": rawBytes(hostile), "strings": []string{hostile}, "map": map[string]string{hostile: hostile},
		"struct": struct{ A, B any }{hostile, []any{hostile, []byte(hostile)}}, "pointer": &struct{ A string }{hostile},
		"group": slog.GroupValue(slog.String(hostile, hostile), slog.Group(hostile, slog.Any(hostile, errors.New(hostile)))),
		"level": slog.LevelInfo, "time": time.Unix(0, 0), "duration": time.Second, "source": &slog.Source{Function: hostile, File: hostile, Line: 3},
		"nil": nil, "joined": errors.Join(errors.New(hostile), errors.New(hostile)), "rune": '\x1b', "number": 1.5, "empty": "",
		"path error": &os.PathError{Op: "open", Path: hostile, Err: unix.ENOENT},
	}
	for _, how := range []struct {
		name              string
		terminal, colours bool
		format            string
	}{
		{"coloured", true, true, "text"}, {"text", false, false, "text"}, {"json on a terminal", true, false, "json"}, {"json", false, false, "json"},
	} {
		for name, value := range values {
			t.Run(how.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				var out bytes.Buffer
				log := newLogger(onto(&out, how.terminal), "trace", how.format)
				lines := 0
				for _, logged := range []*slog.Logger{log, log.With(hostile, value), log.WithGroup(hostile), log.WithGroup(hostile).With("a", value).WithGroup("g")} {
					for _, key := range []string{"err", hostile, slog.TimeKey, slog.LevelKey, slog.MessageKey, ""} {
						for _, level := range []slog.Level{slog.LevelError, slog.LevelWarn, slog.LevelInfo, slog.LevelDebug, slog.LevelDebug - 4, 3} {
							logged.LogAttrs(context.Background(), level, hostile, slog.Any(key, value))
							lines++
						}
					}
				}
				wantHarmless(t, out.Bytes(), how.colours)
				if got := bytes.Count(out.Bytes(), []byte("\n")); got != lines {
					t.Errorf("%d lines of %d records", got, lines)
				}
			})
		}
	}
}

type rawBytes []byte

// onto returns streams to w, as execute makes them.
func onto(w io.Writer, terminal bool) streams {
	s := streams{err: w, terminal: terminal}
	s.protect()
	return s
}

// A person finds time, level, message and attributes in a record's line.
func TestRecordOnTerminal(t *testing.T) {
	t.Parallel()
	for _, colours := range []bool{true, false} {
		var out bytes.Buffer
		options := slog.HandlerOptions{Level: slog.LevelDebug - 4, ReplaceAttr: shortTime}
		log := slog.New(slog.NewTextHandler(display{&out, colours}, &options))
		log = log.With("cpu", 1).WithGroup("g")
		at := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
		for _, r := range []struct {
			level slog.Level
			msg   string
		}{{slog.LevelInfo, "plain"}, {slog.LevelDebug - 4, `say "hi" a=b`}, {slog.LevelWarn + 1, ""}} {
			record := slog.NewRecord(at, r.level, r.msg, 0)
			record.AddAttrs(slog.String("to", "a b"), slog.Int("n", 2))
			if err := log.Handler().Handle(context.Background(), record); err != nil {
				t.Fatal(err)
			}
		}
		want := "03:04:05.006 INF plain cpu=1 g.to=\"a b\" g.n=2\n" +
			"03:04:05.006 TRC say \"hi\" a=b cpu=1 g.to=\"a b\" g.n=2\n" +
			"03:04:05.006 WARN+1  cpu=1 g.to=\"a b\" g.n=2\n"
		got := out.String()
		if colours {
			first := "\x1b[2m03:04:05.006\x1b[0m \x1b[92mINF\x1b[0m plain \x1b[2mcpu=\x1b[0m1 \x1b[2mg.to=\x1b[0m\"a b\" \x1b[2mg.n=\x1b[0m2\n"
			if !strings.HasPrefix(got, first) {
				t.Errorf("got  %q\nwant %q first", got, first)
			}
			got = coloured.ReplaceAllString(got, "")
		}
		if got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

// hostileGuest is an image that logs a record and, with panics, dies by a
// panic. All its texts are hostile.
func hostileGuest(abi uint32, panics bool) []byte {
	le := binary.LittleEndian
	const recordSize, panicSize, jump = 96, 24, 5
	texts := uint64(codeAddress + jump + recordSize + panicSize)
	record := make([]byte, recordSize+panicSize)
	put := func(at int) {
		le.PutUint64(record[at:], texts)
		le.PutUint64(record[at+8:], uint64(len(hostile)))
	}
	record[0] = 2
	put(8)
	record[24] = 1
	put(32)
	record[48], record[52] = 1, 7
	record[56] = 1
	put(64)
	put(80)
	put(recordSize)
	code := le.AppendUint32([]byte{0xE9}, uint32(len(record)+len(hostile)))
	code = append(append(code, record...), hostile...)
	call := func(number byte, address uint64) {
		code = le.AppendUint64(append(code, 0x48, 0xBF), address)
		// mov $number, %eax; xor %edx, %edx; out %al, %dx
		code = append(code, 0xB8, number, 0, 0, 0, 0x31, 0xD2, 0xEE)
	}
	call(1, codeAddress+jump)
	if panics {
		call(5, codeAddress+jump+recordSize)
	}
	return machineCode(abi, append(code, exit(5)...))
}

// hostileSymbols is an image whose symbols have hostile names.
func hostileSymbols(t *testing.T, name string) []byte {
	t.Helper()
	data := images.Bytes(name)
	for was, is := range map[string]string{"program_main": "\x1b]0;ow\x07\u009b!", "exception_common": "\x1b[31m\u202e\x1b[2J\x9b"} {
		if len(was) < len(is) {
			t.Fatalf("%q is longer than %q", is, was)
		}
		data = bytes.ReplaceAll(data, []byte("\x00"+was+"\x00"), []byte("\x00"+is+strings.Repeat("\x00", len(was)-len(is)+1)))
	}
	return data
}

// onTerminal runs a command whose standard error, and with stdout its standard
// output, are a terminal with colours. It returns what the terminal was sent.
func onTerminal(t *testing.T, stdout bool, args ...string) (shown []byte, code int) {
	t.Helper()
	master, slave := openPTY(t)
	cmd := command(t, args...)
	cmd.Env = append(slices.DeleteFunc(cmd.Env, func(v string) bool { return strings.HasPrefix(v, "NO_COLOR=") }), "TERM=xterm")
	cmd.Stderr = slave
	if stdout {
		cmd.Stdout = slave
	}
	err := cmd.Start()
	slave.Close()
	if err != nil {
		t.Fatal(err)
	}
	shown, _ = io.ReadAll(master) // until its end, which is EIO
	_ = cmd.Wait()
	return shown, cmd.ProcessState.ExitCode()
}

// No foreign text steers the terminal of arcavm's user: not what a guest logs
// and dies of, no names of files, hosts and symbols, and no arguments.
func TestForeignTextOnTerminal(t *testing.T) {
	t.Parallel()
	argument := strings.ReplaceAll(hostile, "\x00", "")
	folder := t.TempDir()
	name := strings.NewReplacer("/", "", "\x00", "").Replace(hostile)
	symbols := writeFile(t, name, hostileSymbols(t, "crash"))
	logs, dies := writeFile(t, name, hostileGuest(1, false)), writeFile(t, name, hostileGuest(1, true))
	for _, c := range []struct {
		name   string
		guest  bool // it boots one
		stdout bool
		code   int
		want   string
		args   []string
	}{
		{"log record", true, false, 5, `\x1b[31m`, []string{"run", logs}},
		{"log record as JSON", true, false, 5, "x1b[31m", []string{"run", "--log-format", "json", logs}},
		{"panic", true, false, 70, "backtrace", []string{"run", dies}},
		{"panic as JSON", true, false, 70, "x1b[31m", []string{"run", "--log-format", "json", dies}},
		{"symbols of a backtrace", true, false, 70, `\x1b]0;ow`, []string{"run", symbols, "wild"}},
		{"file", true, false, 1, "README", []string{"run", "--log-level", "trace", "--share", folder, imageFile(t, "cat"), "README" + argument}},
		{"socket", true, false, 1, "connect", []string{"run", "--log-level", "trace", "--sockets", folder, imageFile(t, "unix"), "connect", "x" + argument}},
		{"host", true, false, 1, "connect failed", []string{"run", "--log-level", "trace", imageFile(t, "connect"), argument + ":80"}},
		{"timing", true, false, 5, "timing", []string{"run", "--timing", logs}},
		{"inspect", false, true, 0, `\u001b]0;ow`, []string{"inspect", "--symbols", symbols}},
		{"missing image", false, false, 66, "no such file", []string{"run", argument}},
		{"no image", false, false, 65, "not an ELF file", []string{"run", writeFile(t, name, []byte("text"))}},
		{"command", false, false, 64, "unknown command", []string{argument}},
		{"flag", false, false, 64, "unknown flag", []string{"run", "--" + argument}},
		{"short flag", false, false, 64, "unknown flag", []string{"run", "-" + argument}},
		{"number", false, false, 64, "--cpus", []string{"run", "--cpus", argument, logs}},
		{"rule", false, false, 64, "--allow", []string{"run", "--allow", argument, logs}},
		{"limit", false, false, 64, "--limit", []string{"run", "--limit", argument + "=1", logs}},
		{"published", false, false, 64, "--publish", []string{"run", "--publish", argument, logs}},
		{"folder", false, false, 66, "--share", []string{"run", "--share", folder + "/" + argument, logs}},
		{"certificate", false, false, 66, "--tls-ca", []string{"run", "--tls-ca", argument, logs}},
		{"help", false, false, 64, "unknown command", []string{"help", argument}},
		{"shell", false, false, 64, "no completion", []string{"completion", argument}},
		{"too many", false, false, 64, "too many", []string{"doctor", argument}},
		{"pattern", false, false, 64, "--run", []string{"bench", "--run", argument + "("}},
		{"report", false, false, 66, "--compare", []string{"bench", "--compare", argument}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.guest {
				needKVM(t)
			}
			shown, code := onTerminal(t, c.stdout, c.args...)
			wantHarmless(t, shown, true)
			if code != c.code || !bytes.Contains(shown, []byte(c.want)) {
				t.Errorf("code %d, want %d and %q in:\n%q", code, c.code, c.want, shown)
			}
		})
	}
}

// Text of a guest of the older ABI steers no terminal either.
func TestForeignTextOnTerminalOfOlderABI(t *testing.T) {
	t.Parallel()
	needOlderABI(t)
	argument := strings.ReplaceAll(hostile, "\x00", "")
	for _, c := range []struct {
		code int
		args []string
	}{
		{5, []string{"--abi=rpc", writeFile(t, "image", hostileGuest(0, false))}},
		{70, []string{"--abi=rpc", writeFile(t, "image", hostileGuest(0, true))}},
		{5, []string{"--abi=hypercall", writeFile(t, "image", hostileGuest(0, false))}},
		// Rust's strings are UTF-8.
		{0, []string{imageFile(t, "rpc-file"), "open:r:" + strings.ToValidUTF8(argument, "")}},
		{0, []string{imageFile(t, "rpc-hello"), argument}},
	} {
		t.Run(fmt.Sprintf("%.20q", c.args), func(t *testing.T) {
			t.Parallel()
			shown, code := onTerminal(t, false, append([]string{"run", "--log-level", "trace"}, c.args...)...)
			wantHarmless(t, shown, true)
			if code != c.code {
				t.Errorf("code %d, want %d; shown:\n%q", code, c.code, shown)
			}
		})
	}
}

// needOlderABI skips a test where guests of the older ABI can't run.
func needOlderABI(t *testing.T) {
	t.Helper()
	needKVM(t)
	system, err := kvm.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer system.Close()
	f, err := system.Features()
	if err != nil {
		t.Fatal(err)
	}
	if !f.GiBPages || !f.FSGSBASE || !f.RDTSCP || !f.SMAP {
		t.Skip("this KVM lacks what images of the older ABI need; make test-emulated has it")
	}
}

// The guest's console is its own output, and passed on as it is.
func TestConsoleIsNotTouched(t *testing.T) {
	t.Parallel()
	needKVM(t)
	text := "\x1b[31m\u009b\u202e\xff\x00"
	got := asProcess(t, "run", writeFile(t, "image", machineCode(1, slices.Concat(write(text), exit(0)))))
	if got.code != 0 || got.out != text {
		t.Errorf("%+v", got)
	}
}
