package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/spec"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
)

// addMachineFlags adds the flags that run and demo have in common. They fill a
// description.
func addMachineFlags(cmd *cobra.Command, s *spec.Spec) {
	f := cmd.Flags()
	f.IntVar(&s.CPUs, "cpus", 0, fmt.Sprintf("give the guest `N` virtual CPUs, 1 to %d (default 1, rpc images %d)", vmm.MaxCPUs, vmm.DefaultRPCCPUs))
	f.Var(&s.Memory, "mem", "RAM, a multiple of 2M; it costs only what is in use (default 256M,\nrpc images 16G)")
	f.Var(&s.Window, "window", "memory shared with the guest for its streams, a multiple of 2M;\nit costs only what is in use")
	f.Lookup("window").DefValue = spec.Size(vmm.DefaultWindow).String()
	out := &s.Output
	f.Var(&choice{&out.LogLevel, "info", spec.LogLevels}, "log-level", "least important log records to show")
	f.Var(&choice{&out.LogFormat, "text", spec.LogFormats}, "log-format", "how log records, reports and errors are written to stderr")
	f.Var(&choice{&out.Timing, "", spec.Timings}, "timing", "at the end, print the time of each boot step, and counts of exits,\nhypercalls, interrupts and bytes; =json: one line of JSON")
	f.Lookup("timing").NoOptDefVal = "text"
	f.StringVar(&out.ExitFile, "exit-file", "", "at the end, write the cause and the exit code to `FILE`, as JSON")
	complete(cmd, "timing", spec.Timings)
	complete(cmd, "log-level", spec.LogLevels)
	complete(cmd, "log-format", spec.LogFormats)
}

// complete offers a flag's values to the shell. The flag exists, so registering
// can't fail.
func complete(cmd *cobra.Command, flag string, values []string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// runFlags are the flags of run. Most of them fill the description; those whose
// values are read when all are known are kept here.
type runFlags struct {
	spec            *spec.Spec
	shares, sockets []string
	limits          limitFlag
	config          configFlag
	print           bool
}

func (r *runFlags) add(cmd *cobra.Command) {
	f, s := cmd.Flags(), r.spec
	f.SetInterspersed(false)
	f.Var(&r.config, "config", "read what flags say from `FILE`, which is TOML (docs/config.md);\nflags override it")
	f.BoolVar(&r.print, "print-config", false, "print what the flags and the --config file mean as such a file, and\nrun nothing")
	f.Var(&abiFlag{&s.ABI}, "abi", "how the guest talks: stream (PROTOCOL.md), rpc (Arca's older\nrequest/response), hypercall (the oldest), auto (what the image's note\nsays, or without one its symbols)")
	f.StringArrayVar(&r.shares, "share", nil, "let the guest read the files below `DIR`; without it, none. DIR:rw lets\nit write, too; /:rw is the whole host. NAME=DIR, as often\nas you like: DIR is the top-level folder NAME (for a DIR with = in it\nwrite ./A=B)")
	f.StringArrayVar(&r.sockets, "sockets", nil, "let the guest connect to UNIX sockets below `DIR`; without it, to none.\nDIR:rw lets it listen there, too. NAME=DIR as for --share")
	f.BoolVar(&s.Emulated, "emulated", false, "run in hardware with KVM that QEMU emulates: slow, but it needs\nno /dev/kvm, and has what rpc images need; DIR is copied in.\nThe first time it downloads a Linux kernel, unless\nARCAVM_EMULATED_KERNEL names one")
	r.limits.to = &s.Limits
	f.Var(&r.limits, "limit", "how much the guest gets at most, as often as you like; see above")
	f.Var(&ruleFlag{&s.Network, true}, "allow", "let the guest connect to, or listen on, what matches")
	f.Var(&ruleFlag{&s.Network, false}, "deny", "keep the guest from it: EACCES")
	f.Var(&publishFlag{&s.Network}, "publish", "bind what the guest listens on at PORT to HOSTPORT of this machine;\n0 is a free one; the address is 127.0.0.1 unless given")
	f.Var(&nat64Flag{&s.Network}, "nat64", "judge an address in this range as the IPv4 address in it (RFC 6052);\n64:ff9b::/96 needs no flag")
	f.StringArrayVar(&s.TLS.CA, "tls-ca", nil, "where the guest is a TLS client, trust the certificates in `FILE`\n(PEM), too; as often as you like")
	f.StringVar(&s.TLS.Cert, "tls-cert", "", "where the guest is a TLS server, show the certificate in `FILE`\n(PEM, intermediate ones after it); without it, it can't be one")
	f.StringVar(&s.TLS.Key, "tls-key", "", "the private key of that certificate is in `FILE` (PEM)")
	complete(cmd, "abi", image.ABINames())
	_ = cmd.RegisterFlagCompletionFunc("limit", cobra.FixedCompletions(completeLimits(), cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.MarkFlagDirname("share")
	_ = cmd.MarkFlagDirname("sockets")
	_ = cmd.MarkFlagFilename("config", "toml")
}

// fill completes the description with what isn't read flag by flag, the
// --config file's values among it.
func (r *runFlags) fill(flags *pflag.FlagSet) error {
	var err error
	if r.spec.Shares, err = readFolders("--share", r.shares); err != nil {
		return err
	}
	if r.spec.Sockets, err = readFolders("--sockets", r.sockets); err != nil {
		return err
	}
	r.say(flags)
	if r.config.path == "" {
		return nil
	}
	file, err := spec.Read(r.config.path)
	if err != nil {
		if at := (*spec.Error)(nil); errors.As(err, &at) && at.Where == "" {
			at.Where = "--config"
		}
		return err
	}
	*r.spec = *file.Override(r.spec)
	return nil
}

// say tells the description which of its values flags gave.
func (r *runFlags) say(flags *pflag.FlagSet) {
	sayFlags(flags, r.spec)
	if flags.Changed("allow") || flags.Changed("deny") {
		r.spec.Say("rules", "--allow or --deny")
	}
	for _, name := range r.limits.names {
		r.spec.Say("limit."+name, "--limit "+name)
	}
}

// sayFlags is say for flags that are called as their keys.
func sayFlags(flags *pflag.FlagSet, s *spec.Spec) {
	flags.Visit(func(f *pflag.Flag) {
		if slices.Contains(spec.Keys(), f.Name) {
			s.Say(f.Name, "--"+f.Name)
		}
	})
}

// readFolders reads the values of --share or --sockets.
func readFolders(flag string, values []string) ([]spec.Folder, error) {
	var folders []spec.Folder
	for _, v := range values {
		f, err := spec.ParseFolder(v)
		if err != nil {
			return nil, usageError("%s: %w", flag, err)
		}
		folders = append(folders, f)
	}
	return folders, nil
}

// configFlag is the path of --config. It is given once: two files would need an
// order.
type configFlag struct{ path string }

func (c *configFlag) Set(text string) error {
	switch {
	case text == "":
		return errors.New("an empty name")
	case text == "-":
		return errors.New("standard input is the guest's; name a file")
	case c.path != "":
		return fmt.Errorf("%s is the second one; only one file is read", text)
	}
	c.path = text
	return nil
}

func (c *configFlag) String() string { return c.path }
func (c *configFlag) Type() string   { return "FILE" }

// choice is a flag with a fixed set of values, one of which is the default.
type choice struct {
	to       *string // "": the default
	fallback string
	choices  []string
}

// Set parses what the user wrote.
func (c *choice) Set(text string) (err error) {
	chosen, err := spec.Choose(text, c.choices)
	if err == nil {
		*c.to = chosen
	}
	return err
}

func (c *choice) String() string {
	if *c.to == "" {
		return c.fallback
	}
	return *c.to
}

// Type names the value in help texts.
func (c *choice) Type() string { return strings.Join(c.choices, "|") }

type abiFlag struct{ to *image.ABI }

func (a *abiFlag) Set(text string) error {
	name, err := spec.Choose(text, image.ABINames())
	if err != nil {
		return err
	}
	*a.to, err = image.ParseABI(name)
	return err
}

func (a *abiFlag) String() string { return a.to.String() }
func (a *abiFlag) Type() string   { return strings.Join(image.ABINames(), "|") }

// limitFlag is --limit: limits by their names.
type limitFlag struct {
	to    *spec.Limits
	names []string // of those that were set
}

// Set takes NAME=VALUE, or several with commas in between.
func (l *limitFlag) Set(text string) error {
	for one := range strings.SplitSeq(text, ",") {
		name, err := l.to.Set(one)
		if err != nil {
			return err
		}
		if !slices.Contains(l.names, name) {
			l.names = append(l.names, name)
		}
	}
	return nil
}

func (l *limitFlag) String() string { return l.to.String() }
func (l *limitFlag) Type() string   { return "NAME=VALUE" }

func completeLimits() (values []string) {
	for _, name := range spec.LimitNames() {
		values = append(values, name+"=")
	}
	return values
}

// nat64Flag appends a prefix of the network's NAT64.
type nat64Flag struct{ to *spec.Network }

func (n *nat64Flag) Set(text string) error {
	p, err := network.ParseNAT64(text)
	if err == nil {
		n.to.NAT64 = append(n.to.NAT64, p)
	}
	return err
}

func (n *nat64Flag) String() string { return "" }
func (n *nat64Flag) Type() string   { return network.NAT64Form }

// ruleFlag appends a rule to the list that --allow and --deny share, whose
// order counts.
type ruleFlag struct {
	to    *spec.Network
	allow bool
}

func (r *ruleFlag) Set(text string) error {
	rule := spec.Rule{Allow: r.allow, Match: text}
	if err := rule.Check(); err != nil {
		return err
	}
	r.to.Rules = append(r.to.Rules, rule)
	return nil
}

func (r *ruleFlag) String() string { return "" }
func (r *ruleFlag) Type() string   { return "RULE" }

// publishFlag appends a published port.
type publishFlag struct{ to *spec.Network }

func (p *publishFlag) Set(text string) error {
	m, err := network.ParsePublish(text)
	if err != nil {
		return err
	}
	ports := append(slices.Clip(p.to.Publish), m)
	if _, err := spec.CheckPublished(ports); err != nil {
		return err
	}
	p.to.Publish = ports
	return nil
}

func (p *publishFlag) String() string { return "" }
func (p *publishFlag) Type() string {
	return strings.ReplaceAll(network.PublishForm, "[/tcp|/udp]", "[/udp]")
}
