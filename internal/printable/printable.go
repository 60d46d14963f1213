// Package printable keeps foreign text from steering a terminal: names, log
// records and messages of guests, images and peers go through a [Writer]
// before a terminal sees them.
package printable

import (
	"fmt"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Append appends text to dst. Runes that aren't printable, as [strconv.IsPrint]
// has it, become \u and four hexadecimal digits: control characters (C0, DEL
// and C1, tabs too), marks that change the direction of writing, separators
// other than a space. One above U+FFFF becomes two such, a surrogate pair.
// Bytes that aren't UTF-8 become U+FFFD. Line feeds stay. Inside of a JSON
// string this changes nothing of its meaning.
func Append(dst, text []byte) []byte {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case strconv.IsPrint(r), r == '\n': // U+FFFD is printable
			dst = utf8.AppendRune(dst, r)
		case r > 0xFFFF:
			high, low := utf16.EncodeRune(r)
			dst = fmt.Appendf(dst, `\u%04x\u%04x`, high, low)
		default:
			dst = fmt.Appendf(dst, `\u%04x`, r)
		}
		text = text[size:]
	}
	return dst
}

// String is Append for strings.
func String(text string) string {
	if IsClean(text) {
		return text
	}
	return string(Append(nil, []byte(text)))
}

// IsClean reports whether Append would leave text as it is.
func IsClean[T string | []byte](text T) bool {
	for i := range len(text) {
		if c := text[i]; (c < ' ' || c > '~') && c != '\n' {
			return string(Append(nil, []byte(text))) == string(text)
		}
	}
	return true
}

// Writer passes text on as [Append] makes it, each Write by one Write: a rune
// that is split between two isn't put together. It may be used concurrently if
// the writer below it may.
type Writer struct{ w io.Writer }

// NewWriter returns a Writer that writes to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w} }

// Write returns the length of p, or 0 and the error of the writer below, which
// may have taken a part.
func (w *Writer) Write(p []byte) (int, error) {
	clean := p
	if !IsClean(p) {
		clean = Append(nil, p)
	}
	if _, err := w.w.Write(clean); err != nil {
		return 0, err
	}
	return len(p), nil
}
