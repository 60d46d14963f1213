package emulated

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestFrames(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var link bytes.Buffer
		sent := &frameWriter{w: &link}
		kinds := rapid.SliceOfN(rapid.SampledFrom([]frameType{frameStdout, frameStderr}), 1, 5).Draw(t, "kinds")
		want := map[frameType]string{}
		for _, kind := range kinds {
			text := strings.Repeat(rapid.StringN(1, 4, -1).Draw(t, "text"), rapid.IntRange(1, 40_000).Draw(t, "repeat"))
			want[kind] += text
			if n, err := (stream{sent, kind}).Write([]byte(text)); n != len(text) || err != nil {
				t.Fatal(n, err)
			}
		}
		got := map[frameType]string{}
		for {
			kind, payload, err := readFrame(&link)
			if err == io.EOF {
				break
			}
			if err != nil || len(payload) > maxFrame {
				t.Fatal(len(payload), err)
			}
			got[kind] += string(payload)
		}
		for kind := range want {
			if got[kind] != want[kind] {
				t.Fatalf("type %d: other bytes than were sent", kind)
			}
		}
	})
}

func TestBrokenFrames(t *testing.T) {
	t.Parallel()
	for name, bytes := range map[string]string{
		"head cut":    "\x02\x01\x00",
		"payload cut": "\x02\x05\x00\x00\x00abc",
		"too long":    "\x02\x01\x00\x01\x00",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, err := readFrame(strings.NewReader(bytes))
			if err == nil || errors.Is(err, io.EOF) {
				t.Errorf("read with error %v", err)
			}
		})
	}
}
