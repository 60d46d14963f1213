package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A guest of an older ABI ends as others do: with its own exit code, or with 70
// and a report where its control pipe breaks. The counters are those of its
// ABI.
func TestOlderGuests(t *testing.T) {
	t.Parallel()
	needOlderABI(t)
	const wrong = "the control pipe has ended: the guest has sent a message that breaks the protocol: " +
		"request 9 isn't one of dialects A and B; its 1 bytes are 09"
	for _, c := range []struct {
		args  []string
		code  int
		cause string
		want  []string
		not   string
	}{
		{[]string{imageFile(t, "rpc-file"), "request:9"}, exitSoftware, "crash", []string{wrong}, ""},
		{[]string{"--log-format=json", imageFile(t, "rpc-file"), "--dialect-b", "request:9"}, exitSoftware, "crash", []string{wrong, `"cause":"crash"`}, ""},
		{
			[]string{"--timing", imageFile(t, "rpc-calls"), "0", "0x7"},
			7, "guest", []string{"sockets and files of the hypercall ABI", "broken by the guest"}, "looks",
		},
		{
			[]string{"--timing", imageFile(t, "rpc-hello"), "bob", "0"},
			0, "guest", []string{"pipes of the request/response ABI", "looks for a request"}, "datagrams",
		},
	} {
		file := filepath.Join(t.TempDir(), "exit")
		got := inProcess(append([]string{"run", "--exit-file", file}, c.args...)...)
		if got.code != c.code {
			t.Errorf("%q: code %d, want %d", c.args, got.code, c.code)
		}
		for _, want := range c.want {
			if !strings.Contains(got.err, want) {
				t.Errorf("%q: no %q in\n%s", c.args, want, got.err)
			}
		}
		if c.not != "" && strings.Contains(got.err, c.not) {
			t.Errorf("%q: %q in\n%s", c.args, c.not, got.err)
		}
		var end struct {
			Cause string
			Code  int
		}
		if b, err := os.ReadFile(file); err != nil {
			t.Error(err)
		} else if err := json.Unmarshal(b, &end); err != nil || end.Cause != c.cause || end.Code != c.code {
			t.Errorf("%q: the exit file has %s, %v", c.args, b, err)
		}
	}
}
