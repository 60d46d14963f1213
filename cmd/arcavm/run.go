package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fix-project/arcavm/spec"
)

func newRunCommand(s streams) *cobra.Command {
	r := &runCommand{streams: s, flags: runFlags{spec: &spec.Spec{}}}
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [ARGS…]",
		Short: "Boot a kernel image",
		Long: `Boot a kernel image and wait for its end. Everything after IMAGE goes to the guest,
words that look like flags too: arcavm's own flags come before IMAGE.

By default the guest may connect to every address but this machine's own, link-local
ones (169.254.0.0/16, fe80::/10), groups and clouds' metadata, and listen on every
address. --allow and --deny change that: the first rule that matches decides, in the
order of the command line. RULE is [in:|out:][tcp:|udp:]HOST[:PORT[-PORT]], where HOST
is *, an address, a range such as 10.0.0.0/8 or [fd00::/8], a name, *.NAME for all
names below it, or localhost. A name counts only for a guest that connects by that
name, and doesn't allow addresses that are denied by default.

--limit bounds what a guest gets. NAME is one of streams (16K by default), ring-memory (what
the window has room for), stream-files (256 on one stream), files (4K on all) and accepts
(4K), all at once, of bytes (no limit), operations (no limit) and log (256K), these in a
second, or disk (8G), by which it may make files of writable shares grow; VALUE may have a
unit: K, M, G. What comes of it: PROTOCOL.md, section 13.

The guest's console goes to stdout. A guest that opens the stdio stream reads stdin;
as long as it does, a terminal hands it each key as it is typed. Log records, the
guest's and arcavm's, go to stderr. The exit code is the guest's. If the guest dies, a
report goes to stderr and the exit code is 70.

The first Ctrl-C (or SIGTERM) asks the guest to stop; the second ends it, and says what
each of its CPUs was doing: registers and backtrace. Ctrl-\ (SIGQUIT) does so at once. An
rpc image can't be asked by SIGTERM, which ends it.

--config reads flags, the image and its arguments from a file, in TOML. Flags override
the file: what may be given several times is added, rules before the file's. Words after
IMAGE, or after -- for the file's image, replace the file's arguments. Relative paths in
the file count from its folder. Its keys: docs/config.md.`,
		Example: `  arcavm run kernel.elf
  arcavm run --cpus 4 --mem 1G kernel.elf --listen 127.0.0.1:8080
  arcavm run --share ./www httpd.elf
  arcavm run --share ./in --share out=/tmp/results:rw kernel.elf
  arcavm run --sockets /run/app:rw kernel.elf
  arcavm run --log-level debug --log-format json kernel.elf 2>log.json
  echo text | arcavm run kernel.elf
  arcavm run --timing kernel.elf
  arcavm run --exit-file exit.json --log-format json kernel.elf 2>log.json
  arcavm run --publish 8080:80 --deny out:* httpd.elf 0.0.0.0:80
  arcavm run --allow localhost:5432 --deny 10.0.0.0/8 kernel.elf
  arcavm run --tls-cert server.crt --tls-key server.key kernel.elf 0.0.0.0:443
  arcavm run --limit bytes=100M --limit streams=500 kernel.elf
  arcavm run --config vm.toml --cpus 4
  arcavm run --print-config --mem 1G kernel.elf a b >vm.toml
  arcavm run --emulated --publish 8080:80 kernel.elf 0.0.0.0 80`,
		DisableFlagsInUseLine: true,
		Args:                  r.checkWords,
		RunE:                  r.run,
	}
	addMachineFlags(cmd, r.flags.spec)
	r.flags.add(cmd)
	return cmd
}

// runCommand is the command run.
type runCommand struct {
	streams streams
	flags   runFlags
}

// onlyArgs reports whether the words follow a --, and are arguments for the
// --config file's image.
func (r *runCommand) onlyArgs(cmd *cobra.Command) bool {
	return r.flags.config.path != "" && cmd.ArgsLenAtDash() == 0
}

// checkWords refuses what can't be an image's name and its arguments.
func (r *runCommand) checkWords(cmd *cobra.Command, words []string) error {
	switch {
	case r.onlyArgs(cmd), len(words) == 0 && (r.flags.config.path != "" || r.flags.print):
		return nil
	case len(words) == 0:
		return usageError("IMAGE is missing (usage: %s)", cmd.UseLine())
	case words[0] == "":
		return usageError("IMAGE is an empty name (usage: %s)", cmd.UseLine())
	}
	if err := refuseLongDash(cmd.Flags(), words[0]); err != nil {
		return err
	}
	return refuseTimingWord(cmd.Flags(), words[0])
}

// run makes a machine of the flags, the words and the file, and runs it.
func (r *runCommand) run(cmd *cobra.Command, words []string) error {
	description := r.flags.spec
	r.takeWords(cmd, words)
	if err := r.flags.fill(cmd.Flags()); err != nil {
		return err
	}
	if r.flags.print {
		return printConfig(r.streams.out, description)
	}
	if description.Image == "" {
		return usageError("IMAGE is missing: neither the command line nor %s names it (usage: %s)", r.flags.config.path, cmd.UseLine())
	}
	if description.Emulated && len(description.Sockets) > 0 {
		return usageError("%s: not with --emulated, where this machine's sockets are out of reach", description.Where("sockets", 0))
	}
	loaded, err := description.Load()
	if err != nil {
		return inputError(err)
	}
	defer loaded.Close()
	m := newMachine(r.streams, description)
	if description.Emulated {
		return m.emulate(loaded)
	}
	if err := loaded.OpenFolders(); err != nil {
		return err
	}
	return m.boot(loaded)
}

// takeWords takes the image's name and its arguments from the command line.
func (r *runCommand) takeWords(cmd *cobra.Command, words []string) {
	description := r.flags.spec
	if len(words) > 0 && !r.onlyArgs(cmd) {
		description.Image, words = words[0], words[1:]
		description.Say("image", "")
	}
	if len(words) > 0 {
		description.Args = words
		description.Say("args", "arguments")
	}
}

// printConfig writes the description for --print-config to w, which is below
// the writer that makes output printable: the text is printable, and a change
// would make it another.
func printConfig(w io.Writer, description *spec.Spec) error {
	if err := description.Check(); err != nil {
		return err
	}
	absolute, err := description.Absolute()
	if err != nil {
		return err
	}
	text, err := absolute.TOML()
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

// refuseLongDash refuses an image's name that is rather a flag whose dashes an
// editor has joined to one.
func refuseLongDash(flags *pflag.FlagSet, name string) error {
	short := strings.TrimLeft(name, "-\u2013\u2014")
	flag, _, _ := strings.Cut(short, "=")
	if f := flags.Lookup(flag); f == nil || strings.HasSuffix(name, "-"+short) || short == name {
		return nil
	}
	return usageError("%q starts with a dash that is too long; write --%s", name, flag)
}

// refuseTimingWord refuses an image's name that is rather the value of
// --timing, which is written --timing=VALUE.
func refuseTimingWord(flags *pflag.FlagSet, name string) error {
	if !flags.Changed("timing") || !slices.Contains(spec.Timings, name) {
		return nil
	}
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return usageError("there is no image %s; is --timing=%s meant?", name, name)
}
