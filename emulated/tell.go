package emulated

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// tellName is the FIFO in which programs tell their host something.
const tellName = "/tell"

// Tell passes up to 4,096 bytes to Config.OnTold of the Run that this process
// is in, which may join those of several calls. It waits if the host doesn't
// listen. Outside of emulated machines it does nothing.
func Tell(b []byte) error {
	if !Inside() {
		return nil
	}
	f, err := os.OpenFile(tellName, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("tell the host: %w", err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return fmt.Errorf("tell the host: %w", err)
	}
	return nil
}

// hear passes on what programs tell, to the machine's end.
func hear(frames *frameWriter) error {
	if err := unix.Mkfifo(tellName, 0o600); err != nil {
		return fmt.Errorf("make the FIFO for what programs tell: %w", err)
	}
	// Writing as well: so it has no end when a program closes it.
	f, err := os.OpenFile(tellName, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the FIFO for what programs tell: %w", err)
	}
	go func() {
		// It fails when the host is gone, who then needs to hear nothing.
		_, _ = io.Copy(stream{frames, frameTold}, f)
	}()
	return nil
}
