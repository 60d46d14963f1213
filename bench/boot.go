package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/fix-project/arcavm/kvm"
	"github.com/fix-project/arcavm/testdata/images"
)

// booting is one boot of the guest hello by a process of its own. Times are in
// ms since just before that process was made.
type booting struct{ firstInstruction, firstLog, ended float64 }

// Timing is what arcavm run --timing=json writes to its standard error as its
// last line, and with --log-format json as the record that is called timing.
type Timing struct {
	Steps []TimingStep `json:"steps"`
}

// TimingStep is a step on the way to a running guest.
type TimingStep struct {
	Name string `json:"name"`
	At   int64  `json:"at"` // when it was done, in ns since 1970
}

// firstLogStep is the name of the step that ends the boot.
const firstLogStep = "first log record of the guest"

// boot measures the way from the start of a process to the guest's first
// instruction, its first log record, and the end of the process.
func boot(s *scope, r *runner) error {
	if r.arcavm == "" {
		return fmt.Errorf("%w: the arcavm command", errMissing)
	}
	system, err := kvm.Open("")
	if err != nil {
		return fmt.Errorf("%w: %w", errMissing, err)
	}
	system.Close()
	hello, err := s.imageFile("hello")
	if err != nil {
		return err
	}
	sizes := []int{128, 1 << 10, 64 << 10}
	if r.quick {
		sizes = sizes[:2]
	}
	var sides []func() (booting, error)
	for _, mib := range sizes {
		sides = append(sides, func() (booting, error) {
			return bootOnce(s.ctx, r.arcavm, hello, mib)
		})
	}
	rows, err := interleave(s.ctx, 2*r.rounds, sides)
	if err != nil {
		return err
	}
	reportBoots(r, sizes, rows)
	return nil
}

// imageFile writes an image to a file that is removed at the scope's end.
func (s *scope) imageFile(name string) (string, error) {
	file, err := os.CreateTemp("", "arcavm-"+name+"-")
	if err != nil {
		return "", err
	}
	s.keep(closeFunc(func() { _ = os.Remove(file.Name()) }))
	_, err = file.Write(images.Bytes(name))
	return file.Name(), errors.Join(err, file.Close())
}

// reportBoots reports a row of boots for each size of memory, in MiB and in
// order. The last by the first shows whether time depends on size.
func reportBoots(r *runner, sizes []int, rows [][]booting) {
	const group = "boot of hello, since the start of its process"
	first := func(b booting) float64 { return b.firstInstruction }
	for i, mib := range sizes {
		figure := func(what string, f func(booting) float64) Figure {
			name := fmt.Sprintf("%d MiB of guest memory: %s", mib, what)
			return newFigure(group, name, "ms", pick(rows[i], f))
		}
		instruction := figure("first instruction of the guest", first).wantBelow(15)
		r.add(instruction.heads(lineBoot, i, "boot to first instruction"))
		r.add(figure("first log record", func(b booting) float64 { return b.firstLog }))
		r.add(figure("end of the process", func(b booting) float64 { return b.ended }))
	}
	if r.quick {
		return
	}
	small, large := pick(rows[0], first), pick(rows[len(rows)-1], first)
	const name = "flat: first instruction with 64 GiB by that with 128 MiB"
	flat := newFigure(group, name, "ms", large).beside("128 MiB", large, small)
	r.add(flat.wantRatioAtMost(1.2).heads(lineBootFlat, 0, "boot, 64 GiB by 128 MiB"))
}

// bootOnce boots hello. When its first instruction ran is what the guest logs,
// by its own clock, which the monitor sets by the host's.
func bootOnce(ctx context.Context, arcavm, image string, mib int) (b booting, err error) {
	cmd := exec.CommandContext(ctx, arcavm, "run", "--mem", fmt.Sprintf("%dM", mib),
		"--timing=json", "--log-format", "json", image, "--started")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	start := time.Now()
	err = cmd.Run()
	b.ended = millis(time.Since(start))
	if err != nil {
		said := bytes.TrimSpace(stderr.Bytes())
		return b, fmt.Errorf("boot of hello with %d MiB: %w: %s", mib, err, said)
	}
	since := func(ns int64) float64 { return millis(time.Unix(0, ns).Sub(start)) }
	for lines := bufio.NewScanner(&stderr); lines.Scan(); {
		var line struct {
			Timing  Timing `json:"timing"`
			Message string `json:"msg"`
		}
		if json.Unmarshal(lines.Bytes(), &line) != nil {
			continue
		}
		if text, ok := strings.CutPrefix(line.Message, "first instruction at "); ok {
			var at int64
			if _, err := fmt.Sscan(text, &at); err != nil {
				return b, fmt.Errorf("boot of hello: %q: %w", line.Message, err)
			}
			b.firstInstruction = since(at)
		}
		for _, step := range line.Timing.Steps {
			if step.Name == firstLogStep {
				b.firstLog = since(step.At)
			}
		}
	}
	if b.firstInstruction <= 0 || b.firstLog < b.firstInstruction {
		return b, fmt.Errorf("boot of hello: the first instruction after %v ms, the first record after %v ms",
			b.firstInstruction, b.firstLog)
	}
	return b, nil
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
