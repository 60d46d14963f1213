package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fix-project/arcavm/internal/exitcode"
	"github.com/fix-project/arcavm/internal/printable"
	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/spec"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
)

// Exit codes for what isn't the guest's own end.
const (
	exitUsage       = exitcode.Usage
	exitData        = exitcode.Data
	exitNoInput     = exitcode.NoInput
	exitUnavailable = exitcode.Unavailable
	exitSoftware    = exitcode.Software
	exitOS          = exitcode.OS
	exitIO          = exitcode.IO
	exitPermission  = exitcode.Permission
	exitSignal      = exitcode.Signal
)

// codeError gives an error an exit code.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }

func (e *codeError) Unwrap() error { return e.err }

// signalError is the end of a command by a signal.
type signalError struct {
	signal syscall.Signal
	guest  *vmm.Report // what the guest was doing; nil if that isn't known
}

func (e *signalError) Error() string { return "ended by " + unix.SignalName(e.signal) }

func usageError(format string, args ...any) error {
	return &codeError{exitUsage, fmt.Errorf(format, args...)}
}

// explain returns the exit code and the sentence of an error that is neither
// the guest's end nor a signal.
func explain(err error) (code int, text string) {
	code, text = exitSoftware, err.Error()
	var (
		coded   *codeError
		given   *spec.Error
		config  *vmm.ConfigError
		load    *image.LoadError
		format  *image.FormatError
		device  *kvm.UnavailableError
		missing *vmm.MissingError
		errno   unix.Errno
	)
	switch {
	case errors.As(err, &coded):
		code = coded.code
	case errors.As(err, &given):
		code = codeOf(given)
	case errors.As(err, &config) && config.Field == "image":
		code, text = exitData, config.Reason
	case errors.As(err, &config):
		code = exitUsage
		if key := spec.KeyOf(config.Field); key != "" {
			text = "--" + key + ": " + config.Reason
		}
	case errors.As(err, &load) && load.Need != 0:
		code = exitUsage
		text += "; give it more with --mem"
	case errors.As(err, &load), errors.As(err, &format):
		code = exitData
	case errors.As(err, &missing):
		code = exitUnavailable
		text += "; arcavm run --emulated runs it in emulated hardware that has them"
	case errors.As(err, &device) && exhausted(device):
		code, text = exitOS, fmt.Sprintf("opening %s: %v", device.Path, device.Err)
	case errors.As(err, &device):
		code = exitUnavailable
		if errors.Is(err, fs.ErrPermission) {
			code = exitPermission
		}
		text += "; arcavm doctor says more, and " + withoutKVM
	case errors.Is(err, fs.ErrPermission):
		code = exitPermission
	case errors.As(err, &errno):
		code = exitOS
	}
	return code, text
}

// codeOf returns the exit code for a value of a description that can't be used.
func codeOf(e *spec.Error) int {
	switch e.Kind {
	case spec.Invalid:
		return exitUsage
	case spec.BadData:
		return exitData
	case spec.Missing:
		return exitNoInput
	}
	code, _ := explain(e.Err)
	return code
}

// withoutKVM ends the sentences about a KVM that can't be used.
const withoutKVM = "arcavm run --emulated needs no KVM"

// exhausted reports whether the system had no descriptor or memory left, which
// says nothing about KVM.
func exhausted(device *kvm.UnavailableError) bool {
	return errors.Is(device, unix.EMFILE) || errors.Is(device, unix.ENFILE) || errors.Is(device, unix.ENOMEM)
}

// oneLine makes one printable line of an error's text, whose lines are the
// errors that were joined.
func oneLine(s string) string {
	return printable.String(strings.ReplaceAll(strings.TrimSpace(s), "\n", "; "))
}

// inputError gives the error of opening an input file or folder its exit code.
func inputError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return &codeError{exitNoInput, err}
	}
	return err
}
