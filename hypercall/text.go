package hypercall

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Printable makes text from the guest safe for logs and terminals: what isn't
// printable is escaped as in a Go string (\n, \x1b, \u202e), invalid UTF-8
// becomes U+FFFD, and line ends at the end of the text are dropped.
func Printable(s string) string {
	return escape(strings.TrimRight(s, "\r\n"), false)
}

// printableLines is Printable for text of several lines: line feeds and tabs
// stay.
func printableLines(s string) string {
	return escape(strings.TrimRight(s, "\r\n"), true)
}

func escape(s string, lines bool) string {
	clean := 0
	for clean < len(s) && ' ' <= s[clean] && s[clean] < 0x7F {
		clean++
	}
	if clean == len(s) {
		return s
	}
	out := make([]byte, clean, len(s)+16)
	copy(out, s)
	for _, r := range s[clean:] {
		switch {
		case strconv.IsPrint(r), lines && (r == '\n' || r == '\t'):
			out = utf8.AppendRune(out, r)
		default:
			quoted := strconv.AppendQuoteRune(nil, r)
			out = append(out, quoted[1:len(quoted)-1]...)
		}
	}
	return string(out)
}

// cutRune drops the start of a UTF-8 sequence that a cut left at the end of s.
func cutRune(s string) string {
	for n := 1; n < utf8.UTFMax && n <= len(s); n++ {
		c := s[len(s)-n]
		if utf8.RuneStart(c) {
			if !utf8.FullRuneInString(s[len(s)-n:]) {
				return s[:len(s)-n]
			}
			break
		}
	}
	return s
}
