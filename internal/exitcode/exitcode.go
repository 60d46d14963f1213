// Package exitcode has the exit codes of this module's programs for what isn't
// a guest's own end. They are those of sysexits.h.
package exitcode

const (
	Usage       = 64 // the command line is wrong
	Data        = 65 // the image or program can't run
	NoInput     = 66 // an input file or folder is missing
	Unavailable = 69 // no KVM that is good enough
	Software    = 70 // the guest died, or a fault of the program's own
	OS          = 71 // the system refused something
	IO          = 74 // the output can't be written
	Permission  = 77 // not allowed

	// Signal plus its number is for a program that a signal has ended.
	Signal = 128
)
