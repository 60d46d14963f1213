package printable

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"unicode/utf8"
)

func TestAppend(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"plain ~ text\n", "plain ~ text\n"},
		{"naïve 日本 – µ ①\n", "naïve 日本 – µ ①\n"},
		{"\x1b[31mred\x1b]0;title\a", `\u001b[31mred\u001b]0;title\u0007`},
		{`\x1b[31m and \u001b stay`, `\x1b[31m and \u001b stay`},
		{"\x00\t\r\x7f", `\u0000\u0009\u000d\u007f`},
		{"\u009b31m\u0080\u009f", `\u009b31m\u0080\u009f`},
		{"\x9b31m\xff\xc3", "\uFFFD31m\uFFFD\uFFFD"},
		{"\u202e\u2066\u200f\u2028\u00a0\ufeff", `\u202e\u2066\u200f\u2028\u00a0\ufeff`},
		{"\U000E0041", `\udb40\udc41`},
		{"\xed\xa0\x80", "\uFFFD\uFFFD\uFFFD"}, // a surrogate
		{"\uFFFD", "\uFFFD"},
	} {
		if got := string(Append(nil, []byte(c.in))); got != c.want {
			t.Errorf("Append(%q) = %q, want %q", c.in, got, c.want)
		}
		if got := String(c.in); got != c.want {
			t.Errorf("String(%q) = %q, want %q", c.in, got, c.want)
		}
		if got := IsClean(c.in); got != (c.in == c.want) {
			t.Errorf("IsClean(%q) = %v", c.in, got)
		}
	}
}

// Whatever is written, nothing comes out that a terminal obeys, what came out
// stays as it is, and JSON keeps its meaning.
func FuzzAppend(f *testing.F) {
	f.Add("\x1b[2J\u009b\u202e\x80\n\U000E0041")
	f.Fuzz(func(t *testing.T, in string) {
		out := Append(nil, []byte(in))
		if i := bytes.IndexFunc(out, steers); i >= 0 {
			t.Errorf("%q became %q", in, out)
		}
		if !utf8.Valid(out) {
			t.Errorf("%q became %q, which isn't UTF-8", in, out)
		}
		if again := Append(nil, out); !bytes.Equal(again, out) {
			t.Errorf("%q became %q, and %q then", in, out, again)
		}
		encoded, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		var want, got string
		if err := json.Unmarshal(encoded, &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(Append(nil, encoded), &got); err != nil || got != want {
			t.Errorf("%q came back as %q, %v", want, got, err)
		}
	})
}

func steers(r rune) bool {
	return r < ' ' && r != '\n' || 0x7F <= r && r <= 0x9F || 0x200B <= r && r <= 0x200F || 0x2028 <= r && r <= 0x202E || 0x2066 <= r && r <= 0x2069
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestWriter(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	for _, text := range []string{"a\x1b", "b\n"} {
		if n, err := NewWriter(&out).Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
	if got := out.String(); got != "a\\u001bb\n" {
		t.Errorf("got %q", got)
	}
	broken := errors.New("broken")
	if n, err := NewWriter(failing{broken}).Write([]byte("a")); n != 0 || err != broken {
		t.Errorf("%d, %v", n, err)
	}
}
