package main

import (
	"debug/elf"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fix-project/arcavm/vmm/image"
)

func newInspectCommand() *cobra.Command {
	var symbols bool
	cmd := &cobra.Command{
		Use:   "inspect [flags] IMAGE",
		Short: "Show what is in a kernel image",
		Long: `Show an image's entry point, its segments, the ABI that it speaks, and its symbols.
Needs no KVM. Exit code 65 if the file is not an image that could run.`,
		Example: `  arcavm inspect kernel.elf
  arcavm inspect --symbols kernel.elf | grep main`,
		Args:                  exactly("IMAGE"),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			img, err := image.Open(args[0])
			if err != nil {
				return inputError(err)
			}
			defer img.Close()
			if err := describe(cmd.OutOrStdout(), img); err != nil || !symbols {
				return err
			}
			return listSymbols(cmd.OutOrStdout(), img)
		},
	}
	cmd.Flags().BoolVar(&symbols, "symbols", false, "list the symbols: address, size and (demangled) name")
	return cmd
}

func describe(w io.Writer, img *image.Image) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	entry := ""
	if s, offset, found := img.Lookup(img.Entry); found {
		entry = fmt.Sprintf(" (%s+0x%x)", oneLine(s.Name), offset)
	}
	fmt.Fprintf(t, "image\t%s\n", oneLine(img.Name))
	fmt.Fprintf(t, "entry\t0x%x%s\n", img.Entry, entry)
	fmt.Fprintf(t, "ABI\t%s\n", abiText(img))
	if err := img.SymbolsErr(); err != nil {
		fmt.Fprintf(t, "symbols\tnone: %s\n", oneLine(err.Error()))
	} else {
		fmt.Fprintf(t, "symbols\t%d\n", img.SymbolCount())
	}
	if err := img.LinesErr(); err != nil {
		fmt.Fprintf(t, "source lines\tnone: %s\n", oneLine(err.Error()))
	} else {
		fmt.Fprintf(t, "source lines\t%d\n", img.LineCount())
	}
	fmt.Fprintf(t, "memory\t0x%x–0x%x\n", img.Segments[0].Physical, img.End())
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(t, "\nsegment\tphysical\tvirtual\tin memory\tin file\tflags")
	for _, s := range img.Segments {
		fmt.Fprintf(t, "%d\t0x%x\t0x%x\t%d\t%d\t%s\n", s.Index, s.Physical, s.Virtual, s.MemSize, s.FileSize, flags(s.Flags))
	}
	return t.Flush()
}

// abiText returns which ABI an image is run by, and from what that is known.
func abiText(img *image.Image) string {
	if img.Version != 0 {
		return img.Version.String()
	}
	abi, why := img.ABI()
	switch abi {
	case image.ABIRPC:
		return "rpc, Arca's older request/response: " + why
	case image.ABIHypercall:
		return "hypercall, Arca's oldest: " + why
	default:
		return "unknown: " + why + "; run it with --abi rpc or --abi hypercall"
	}
}

func flags(f elf.ProgFlag) string {
	text := []byte("---")
	for i, b := range []elf.ProgFlag{elf.PF_R, elf.PF_W, elf.PF_X} {
		if f&b != 0 {
			text[i] = "rwx"[i]
		}
	}
	return string(text)
}

func listSymbols(w io.Writer, img *image.Image) error {
	if err := img.SymbolsErr(); err != nil {
		return &codeError{exitData, err}
	}
	fmt.Fprintln(w)
	for s := range img.Symbols() {
		if _, err := fmt.Fprintf(w, "%016x %8d %s\n", s.Start, s.Size, oneLine(s.Name)); err != nil {
			return err
		}
	}
	return nil
}
