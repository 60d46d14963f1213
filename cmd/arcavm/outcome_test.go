package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// record is a line of --log-format json.
type record struct {
	Time, Level, Msg *string
	Exit             *outcome
	Crash            *crashRecord
	Guest            *guestRecord
	Timing           *timingJSON
	Published        *struct {
		Protocol, Address string
		Port              int
	}
}

// records reads what a command wrote to standard error. Each line must be a
// record, and the last one the only outcome.
func records(t *testing.T, text string) (all []record, last outcome) {
	t.Helper()
	for line := range strings.Lines(text) {
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.Time == nil || r.Level == nil || r.Msg == nil {
			t.Fatalf("%v in %q of:\n%s", err, line, text)
		}
		all = append(all, r)
	}
	for i, r := range all {
		if (r.Exit != nil) != (i == len(all)-1) {
			t.Fatalf("the outcome isn't the last line alone:\n%s", text)
		}
	}
	if len(all) == 0 {
		t.Fatal("nothing was written")
	}
	return all, *all[len(all)-1].Exit
}

func exitFile(t *testing.T, path string) outcome {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var o outcome
	if err := json.Unmarshal(data, &o); err != nil {
		t.Fatalf("%v in %q", err, data)
	}
	return o
}

// However a command ends, each line of standard error is JSON, the last one has
// the cause and the code, and so has the exit file.
func TestOutcome(t *testing.T) {
	t.Parallel()
	hello, missing := imageFile(t, "hello"), filepath.Join(t.TempDir(), "missing")
	text := writeFile(t, "text", []byte("#!/bin/sh\n"))
	spins := writeFile(t, "spin", machineCode(1, slices.Concat(logStart(), spin)))
	const jsonFirst = "--log-format json "
	for _, c := range []struct {
		name    string
		args    string // with EXIT for --exit-file FILE
		signals []syscall.Signal
		want    outcome // its sentence is a part
		also    func(record) bool
	}{
		{"guest", jsonFirst + "EXIT " + hello, nil, outcome{causeGuest, 0, "", "the guest ended with exit code 0"}, nil},
		{"guest's code", jsonFirst + "EXIT --log-level error " + hello + " --exit 70", nil, outcome{causeGuest, 70, "", "the guest ended with exit code 70"}, nil},
		{"crash", jsonFirst + "EXIT --cpus 2 " + imageFile(t, "crash") + " wild", nil, outcome{causeCrash, 70, "", "wild+0x"}, func(r record) bool {
			return r.Crash != nil && r.Crash.CPU == 0 && r.Crash.Reason != "" && len(r.Crash.CPUs) == 2 &&
				r.Crash.CPUs[0].CPU == 0 && r.Crash.CPUs[0].Registers["rip"] != "" && len(r.Crash.CPUs[0].Backtrace) > 1 && len(r.Crash.Log) > 0
		}},
		{"timing", jsonFirst + "EXIT --timing " + hello, nil, outcome{causeGuest, 0, "", ""}, func(r record) bool {
			return r.Timing != nil && len(r.Timing.Steps) > 7 && r.Timing.Stats.Hypercalls["EXIT"] == 1
		}},
		{"timing=json", jsonFirst + "EXIT --timing=json " + hello, nil, outcome{causeGuest, 0, "", ""}, func(r record) bool { return r.Timing != nil }},
		{"published", jsonFirst + "EXIT --publish 0:80 " + imageFile(t, "httpd") + " 0.0.0.0:80", []syscall.Signal{unix.SIGINT, unix.SIGQUIT}, outcome{causeGuest, 0, "", ""}, func(r record) bool {
			return r.Published != nil && r.Published.Port == 80 && r.Published.Protocol == "tcp" && strings.HasPrefix(r.Published.Address, "127.0.0.1:")
		}},
		{"Ctrl-C twice", jsonFirst + "EXIT " + spins, []syscall.Signal{unix.SIGINT, unix.SIGINT}, outcome{causeSignal, 130, "SIGINT", "ended by SIGINT"}, func(r record) bool {
			return r.Guest != nil && len(r.Guest.CPUs) == 1 && r.Guest.CPUs[0].Activity == "running"
		}},
		{"SIGTERM twice", jsonFirst + "EXIT " + spins, []syscall.Signal{unix.SIGTERM, unix.SIGTERM}, outcome{causeSignal, 143, "SIGTERM", "ended by SIGTERM"}, nil},
		{"SIGQUIT", jsonFirst + "EXIT " + spins, []syscall.Signal{unix.SIGQUIT}, outcome{causeSignal, 131, "SIGQUIT", "ended by SIGQUIT"}, func(r record) bool { return r.Guest != nil }},
		{"SIGHUP", jsonFirst + "EXIT " + spins, []syscall.Signal{unix.SIGHUP}, outcome{causeSignal, 129, "SIGHUP", "ended by SIGHUP"}, nil},
		{"missing image", jsonFirst + "EXIT " + missing, nil, outcome{causeMonitor, 66, "", "no such file or directory"}, nil},
		{"no image", "EXIT " + jsonFirst + text, nil, outcome{causeMonitor, 65, "", "is not an ELF file"}, nil},
		{"missing folder", "EXIT " + jsonFirst + "--share " + missing + " " + hello, nil, outcome{causeMonitor, 66, "", "--share: "}, nil},
		{"no argument", "EXIT " + jsonFirst, nil, outcome{causeUsage, 64, "", "IMAGE is missing"}, nil},
		{"bad size", "--mem 3M EXIT " + jsonFirst + hello, nil, outcome{causeUsage, 64, "", "--mem: "}, nil},
		{"bad value, first", "--mem lots --cpus 2 --timing EXIT " + jsonFirst + hello, nil, outcome{causeUsage, 64, "", "--mem: "}, nil},
		{"bad value, last", jsonFirst + "EXIT --mem lots " + hello, nil, outcome{causeUsage, 64, "", "--mem: "}, nil},
		{"unknown flag", "--bogus EXIT " + jsonFirst + hello, nil, outcome{causeUsage, 64, "", "unknown flag --bogus"}, nil},
		{"one dash", "-cpus 2 EXIT " + jsonFirst + hello, nil, outcome{causeUsage, 64, "", "unknown flag -c"}, nil},
		{"emulated, bad flag", "--emulated EXIT --publish 80 " + jsonFirst + hello, nil, outcome{causeUsage, 64, "", "--publish"}, nil},
		{"emulated, missing image", "--emulated EXIT " + jsonFirst + missing, nil, outcome{causeMonitor, 66, "", "no such file"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.want.Cause != causeUsage && c.want.Code != exitData && c.want.Code != exitNoInput {
				needKVM(t)
			}
			if c.want.Signal == "SIGHUP" {
				needHangup(t)
			}
			file := filepath.Join(t.TempDir(), "exit")
			args := append([]string{"run"}, strings.Fields(strings.ReplaceAll(c.args, "EXIT", "--exit-file="+file))...)
			var said strings.Builder
			cmd := command(t, args...)
			if len(c.signals) == 0 {
				cmd.Stderr = &said
				_ = cmd.Run()
			} else {
				signalled(t, startCommand(t, cmd, cmd.StderrPipe), c.signals, &said)
			}
			all, last := records(t, said.String())
			if diff := cmp.Diff(last, exitFile(t, file)); diff != "" {
				t.Error(diff)
			}
			if last.Code != cmd.ProcessState.ExitCode() || !strings.Contains(last.Sentence, c.want.Sentence) {
				t.Errorf("the process's code is %d, the outcome %+v", cmd.ProcessState.ExitCode(), last)
			}
			last.Sentence = c.want.Sentence
			if diff := cmp.Diff(c.want, last); diff != "" {
				t.Error(diff)
			}
			if c.also != nil && !slices.ContainsFunc(all, c.also) {
				t.Errorf("a record is missing:\n%s", &said)
			}
		})
	}
}

// signalled sends a command signals, each when the one before has been taken,
// and reads its output to the end.
func signalled(t *testing.T, r *running, signals []syscall.Signal, said *strings.Builder) {
	t.Helper()
	next := func() {
		if len(signals) > 0 {
			r.signal(signals[0])
			signals = signals[1:]
		}
	}
	for r.output.Scan() {
		line := r.output.Text()
		said.WriteString(line + "\n")
		if strings.Contains(line, "started") || strings.Contains(line, "listening on") || strings.Contains(line, "asking the guest to stop") && len(signals) > 0 && signals[0] != unix.SIGQUIT {
			next()
		}
	}
	_ = r.Wait()
}

// In text no line is JSON, however a command ends.
func TestOutcomeAsText(t *testing.T) {
	t.Parallel()
	needKVM(t)
	file := filepath.Join(t.TempDir(), "exit")
	got := asProcess(t, "run", "--exit-file", file, "--log-level", "error", imageFile(t, "hello"), "--exit", "7")
	if want := (outcome{causeGuest, 7, "", "the guest ended with exit code 7"}); got.code != 7 || got.err != "" || exitFile(t, file) != want {
		t.Errorf("%+v, %+v", got, exitFile(t, file))
	}
	got = asProcess(t, "demo", "--exit-file", file, "--cpus", "2", "x")
	if o := exitFile(t, file); o.Cause != causeUsage || o.Code != got.code {
		t.Errorf("%+v, %+v", got, o)
	}
}

// As long as the guest runs there is no exit file, even if there was an older
// one.
func TestExitFileWhileRunning(t *testing.T) {
	t.Parallel()
	needKVM(t)
	file := writeFile(t, "exit", []byte("older"))
	if err := os.Symlink(file, file+".link"); err != nil {
		t.Fatal(err)
	}
	r := start(t, false, "run", "--exit-file", file+".link", imageFile(t, "idle"))
	r.line("idle with")
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("there is an exit file: %v", err)
	}
	r.signal(unix.SIGINT)
	if code := r.exitCode(); code != 0 {
		t.Errorf("code %d", code)
	}
	if o := exitFile(t, file+".link"); o.Cause != causeGuest {
		t.Errorf("%+v", o)
	}
	names, err := filepath.Glob(filepath.Join(filepath.Dir(file), ".*"))
	if err != nil || len(names) > 0 {
		t.Errorf("left behind: %q, %v", names, err)
	}
}

// A pipe can be an exit file, too.
func TestExitFileAsPipe(t *testing.T) {
	t.Parallel()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	cmd := command(t, "run", "--exit-file", "/dev/fd/3", "missing")
	cmd.ExtraFiles = []*os.File{writer}
	_ = cmd.Run()
	writer.Close()
	var o outcome
	if err := json.NewDecoder(reader).Decode(&o); err != nil || o.Code != exitNoInput {
		t.Errorf("%+v, %v", o, err)
	}
	both := writeFile(t, "both", nil)
	f, err := os.OpenFile(both, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd = command(t, "run", "--exit-file", "/dev/stderr", "missing")
	cmd.Stderr = f
	_ = cmd.Run()
	data, err := os.ReadFile(both)
	if err != nil || strings.Count(string(data), "\n") != 2 || !strings.Contains(string(data), `"cause":"monitor"`) || !strings.Contains(string(data), "arcavm: ") {
		t.Errorf("%v: %q", err, data)
	}
}

// An exit file that can't be written is refused before a guest runs.
func TestExitFileRefused(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	fifo := filepath.Join(folder, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		filepath.Join(folder, "none", "exit"): "no such file or directory",
		folder:                                "is a directory",
		fifo:                                  "no such device or address",
	} {
		for _, how := range [][]string{{"run"}, {"run", "--emulated"}} {
			got := inProcess(append(how, "--exit-file", file, imageFile(t, "hello"))...)
			if got.code != exitOS && got.code != exitPermission {
				t.Errorf("%s: code %d", file, got.code)
			}
			wantLine(t, got.err, "--exit-file: ")
			wantLine(t, got.err, file+": "+want)
		}
	}
	file := filepath.Join(folder, "exit")
	if got := inProcess("run", "--exit-file", file, "--help"); got.code != 0 {
		t.Errorf("code %d", got.code)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("--help has written an exit file: %v", err)
	}
	// These words are the guest's.
	inProcess("run", "--bogus", "image", "--exit-file", file)
	inProcess("run", filepath.Join(folder, "none"), "--exit-file", file)
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("a guest's argument was taken for an exit file: %v", err)
	}
}
