package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fix-project/arcavm/internal/nearest"
)

const rootLong = `arcavm boots Arca kernel images on KVM. A guest has no network driver and no file
system: arcavm does its networking and its file work, over rings in shared memory.

Try it:
  arcavm doctor                  can this machine run guests?
  arcavm demo                    boot the built-in web server and open its page
  arcavm run kernel.elf a b c    boot your own image with three arguments

Exit codes of run and demo: the guest's own code; 70 if the guest died; 64 to 78
if it didn't start, as in sysexits.h: 64 wrong command line or --config file, 65 image
can't run, 66 file missing, 69 no usable KVM, 71 the system refused, 77 not allowed;
74 if all went well but output couldn't be written, as of any command;
130 after a second Ctrl-C, 143 after a second SIGTERM, 129 after a closed terminal, 131
after SIGQUIT. Of an rpc image the first SIGTERM is the end, with 143. --exit-file tells
a guest's own code from the others.`

const usageTemplate = `Usage:
  {{if .HasAvailableSubCommands}}{{.CommandPath}} COMMAND{{else}}{{.UseLine}}{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}

Commands:{{range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}}  {{.Short}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableSubCommands}}

"{{.CommandPath}} COMMAND --help" says more about a command.{{end}}
`

func newRootCommand(s streams) *cobra.Command {
	root := &cobra.Command{
		Use:           "arcavm",
		Short:         "Boot Arca kernel images on KVM",
		Long:          rootLong,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError("no command given; commands are %s; try: arcavm --help", strings.Join(commandNames(cmd), ", "))
			}
			return unknownCommand(cmd, args[0])
		},
	}
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetVersionTemplate("arcavm {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	root.SetUsageTemplate(usageTemplate)
	root.AddCommand(newRunCommand(s), newDemoCommand(s), newDoctorCommand(), newBenchCommand(), newInspectCommand(), newVersionCommand())
	root.SetHelpCommand(newHelpCommand(root))
	root.InitDefaultCompletionCmd()
	strictCompletion(root)
	return root
}

func newHelpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Say more about a command",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || cmd == root && len(rest) > 0 {
				return unknownCommand(root, args[0])
			}
			if len(rest) > 0 {
				return usageError("%q is one argument too many; try: %s --help", rest[0], cmd.CommandPath())
			}
			return cmd.Help()
		},
	}
}

// strictCompletion makes the completion command, which cobra adds, refuse
// shells that it doesn't know.
func strictCompletion(root *cobra.Command) {
	cmd, _, err := root.Find([]string{"completion"})
	if err != nil {
		return
	}
	cmd.Short = "Print a completion script for a shell"
	cmd.Args = cobra.ArbitraryArgs
	for _, shell := range cmd.Commands() {
		shell.Args = exactly()
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return usageError("no completion for %q; shells are %s", args[0], strings.Join(commandNames(cmd), ", "))
	}
}

func commandNames(root *cobra.Command) []string {
	var names []string
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return names
}

func unknownCommand(root *cobra.Command, name string) error {
	if near := nearest.Of(name, commandNames(root)); near != "" {
		return usageError("unknown command %q: did you mean %q? Try: arcavm %s --help", name, near, near)
	}
	if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
		return usageError("unknown command %q; to boot this file: arcavm run %s", name, name)
	}
	return usageError("unknown command %q; commands are %s", name, strings.Join(commandNames(root), ", "))
}

// flagError makes one line of an error of pflag's: the flag, its right form or
// the flag that may be meant, and the command's usage.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	text := err.Error()
	var unknown *pflag.NotExistError
	var invalid *pflag.InvalidValueError
	var number *strconv.NumError
	switch {
	case errors.As(err, &invalid) && invalid.GetFlag().Value.Type() == "bool":
		name := invalid.GetFlag().Name
		text = fmt.Sprintf("--%s: %q is neither true nor false; write --%s", name, invalid.GetValue(), name)
	case errors.As(err, &invalid) && errors.As(err, &number):
		text = fmt.Sprintf("--%s: %q is not a number that this flag takes", invalid.GetFlag().Name, number.Num)
		if errors.Is(err, strconv.ErrRange) {
			text = fmt.Sprintf("--%s: %s is out of range", invalid.GetFlag().Name, number.Num)
		}
	case errors.As(err, &invalid):
		text = fmt.Sprintf("--%s: %v", invalid.GetFlag().Name, invalid.Unwrap())
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		text = "unknown flag --" + name
		if short := unknown.GetSpecifiedShortnames(); short != "" {
			// pflag takes the letters after one dash for flags; several letters
			// are rather the name of one.
			if len(short) > 1 {
				name, _, _ = strings.Cut(short, "=")
			}
			text = "unknown flag -" + name
		}
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := nearest.Of(name, names); near != "" {
			text += ": did you mean " + flagForm(cmd.Flags().Lookup(near)) + "?"
		}
	}
	return usageError("%s (usage: %s)", strings.TrimSuffix(text, "."), cmd.UseLine())
}

// flagForm returns how a flag is written on the command line.
func flagForm(f *pflag.Flag) string {
	if f.NoOptDefVal != "" {
		return "--" + f.Name
	}
	value, _ := pflag.UnquoteUsage(f)
	return "--" + f.Name + " " + value
}

// exactly refuses fewer or more arguments than those that are named.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usageError("%s is missing (usage: %s)", names[len(args)], cmd.UseLine())
		case len(args) > len(names):
			return usageError("%q is one argument too many (usage: %s)", args[len(names)], cmd.UseLine())
		}
		if empty := slices.Index(args, ""); empty >= 0 {
			return usageError("%s is an empty name (usage: %s)", names[empty], cmd.UseLine())
		}
		return nil
	}
}
