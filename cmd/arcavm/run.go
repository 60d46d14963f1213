package main

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fix-project/arcavm/vmm/image"
)

func newRunCommand(s streams) *cobra.Command {
	m := newMachine(s)
	abiName := choice{value: image.ABIAuto.String(), choices: image.ABINames()}
	var shares, sockets []string
	var inEmulation bool
	var network networkFlags
	var tls tlsFlags
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
rpc image can't be asked by SIGTERM, which ends it.`,
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
  arcavm run --emulated --publish 8080:80 kernel.elf 0.0.0.0 80`,
		DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return usageError("IMAGE is missing (usage: %s)", cmd.UseLine())
			case args[0] == "":
				return usageError("IMAGE is an empty name (usage: %s)", cmd.UseLine())
			}
			if err := refuseLongDash(cmd.Flags(), args[0]); err != nil {
				return err
			}
			return m.refuseTimingWord(args[0])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			abi, err := image.ParseABI(abiName.value)
			if err != nil {
				return err
			}
			if m.tls, err = tls.load(); err != nil {
				return err
			}
			if inEmulation && len(sockets) > 0 {
				return usageError("--sockets: not with --emulated, where this machine's sockets are out of reach")
			}
			img, err := image.Open(args[0])
			if err != nil {
				return inputError(err)
			}
			defer img.Close()
			if err := refuseStreamOnly(cmd.Flags(), m.limits, img, abi); err != nil {
				return err
			}
			if inEmulation {
				if _, err := m.config(img, args[1:], abi); err != nil {
					return err
				}
				return runEmulated(cmd.Flags(), s, newLogger(s, m.level.value, m.format.value), args, shares, network, tls)
			}
			m.policy = network.policy()
			shared, err := openShares("--share", shares)
			if err != nil {
				return err
			}
			defer shared.Close()
			if m.sockets, err = openShares("--sockets", sockets); err != nil {
				return err
			}
			defer m.sockets.Close()
			return m.boot(img, args[1:], abi, shared)
		},
	}
	m.addFlags(cmd)
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.Var(&abiName, "abi", "how the guest talks: stream (PROTOCOL.md), rpc (Arca's older\nrequest/response), hypercall (the oldest), auto (what the image's note\nsays, or without one its symbols)")
	f.StringArrayVar(&shares, "share", nil, "let the guest read the files below `DIR`; without it, none. DIR:rw lets\nit write, too; /:rw is the whole host. NAME=DIR, as often\nas you like: DIR is the top-level folder NAME (for a DIR with = in it\nwrite ./A=B)")
	f.StringArrayVar(&sockets, "sockets", nil, "let the guest connect to UNIX sockets below `DIR`; without it, to none.\nDIR:rw lets it listen there, too. NAME=DIR as for --share")
	f.BoolVar(&inEmulation, "emulated", false, "run in hardware with KVM that QEMU emulates: slow, but it needs\nno /dev/kvm, and has what rpc images need; DIR is copied in.\nThe first time it downloads a Linux kernel, unless\nARCAVM_EMULATED_KERNEL names one")
	f.Var(&m.limits, "limit", "how much the guest gets at most, as often as you like; see above")
	network.add(f)
	tls.add(f)
	complete(cmd, "abi", image.ABINames())
	_ = cmd.RegisterFlagCompletionFunc("limit", cobra.FixedCompletions(completeLimits(), cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.MarkFlagDirname("share")
	_ = cmd.MarkFlagDirname("sockets")
	return cmd
}

// refuseLongDash refuses a flag whose dashes an editor has joined.
func refuseLongDash(flags *pflag.FlagSet, name string) error {
	short := strings.TrimLeft(name, "-\u2013\u2014")
	flag, _, _ := strings.Cut(short, "=")
	if f := flags.Lookup(flag); f == nil || strings.HasSuffix(name, "-"+short) || short == name {
		return nil
	}
	return usageError("%q starts with a dash that is too long; write --%s", name, flag)
}

// refuseTimingWord refuses an image's name that is rather meant for --timing, whose value is not a word of its own.
func (m *machine) refuseTimingWord(name string) error {
	if !m.flags.Changed("timing") || !slices.Contains(timingFormats, name) {
		return nil
	}
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return usageError("there is no image %s; is --timing=%s meant?", name, name)
}

// refuseStreamOnly refuses what guests of the older ABI can't make use of.
func refuseStreamOnly(flags *pflag.FlagSet, limits limitFlag, img *image.Image, abi image.ABI) error {
	if abi == image.ABIAuto {
		abi, _ = img.ABI()
	}
	if !abi.Older() {
		return nil
	}
	var useless []string
	for _, name := range []string{"sockets", "tls-ca", "tls-cert"} {
		if flags.Changed(name) {
			useless = append(useless, name)
		}
	}
	for _, name := range limits.names {
		if !slices.Contains(olderLimits, name) {
			useless = append(useless, "limit "+name)
		}
	}
	if len(useless) > 0 {
		return usageError("--%s: %s speaks one of the older ABIs, which can't make use of it; leave it out", useless[0], oneLine(img.Name))
	}
	return nil
}
