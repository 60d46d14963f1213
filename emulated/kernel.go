package emulated

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// kernel is a Linux kernel with the modules that the machine needs.
type kernel struct {
	image   string // the bzImage
	modules string // the folder lib/modules/VERSION
}

// kernelVariable names a kernel where Config.Kernel doesn't.
const kernelVariable = "ARCAVM_EMULATED_KERNEL"

// kernelPackages are the packages to ask for, the best first: the cloud kernel
// has what is needed and is a third of the other's size.
var kernelPackages = []string{"linux-image-cloud-amd64", "linux-image-amd64"}

// neededModules are what a machine may load.
var neededModules = []string{"virtio_pci", "virtio_console", "kvm_amd", "virtio_net"}

// findKernel returns, in this order, the kernel that the caller names, the one
// in the cache folder, this machine's own, or one that it downloads. step is
// called with a sentence about what takes a while.
func findKernel(ctx context.Context, given string, step func(string)) (kernel, error) {
	if given = cmp.Or(given, os.Getenv(kernelVariable)); given != "" {
		k, err := givenKernel(ctx, given, step)
		if err != nil {
			return kernel{}, fmt.Errorf("%w: the kernel %s can't be used: %w", ErrUnavailable, given, err)
		}
		return k, nil
	}
	if k, ok := kernelHere(); ok {
		return k, nil
	}
	k, err := downloadKernel(ctx, step)
	if err != nil {
		return kernel{}, fmt.Errorf("%w: there is no Linux kernel to boot, and none can be downloaded: %w; "+
			"that takes Debian's apt-get, dpkg-deb and a network, once; or set %s to a file linux-image-….deb or vmlinuz-…", ErrUnavailable, err, kernelVariable)
	}
	return k, nil
}

// kernelHere is one that takes no network.
func kernelHere() (kernel, bool) {
	if cache, err := kernelCache(); err == nil {
		if k, ok := newestKernel(cache); ok {
			return k, true
		}
	}
	k, err := kernelBelow("/")
	return k, err == nil
}

// Kernel returns the file of the kernel that Run would use without a
// Config.Kernel, or "" if it would download one.
func Kernel() string {
	if given := os.Getenv(kernelVariable); given != "" {
		return given
	}
	k, _ := kernelHere()
	return k.image
}

// kernelCache is the folder for downloaded kernels, which needn't be there.
func kernelCache() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no folder to keep it in: %w", err)
	}
	return filepath.Join(cache, "arcavm", "kernels"), nil
}

// givenKernel is a bzImage, a package, or a folder with boot and lib/modules.
func givenKernel(ctx context.Context, name string, step func(string)) (kernel, error) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return kernel{}, err
	case info.IsDir():
		return kernelBelow(name)
	case filepath.Ext(name) != ".deb":
		return kernelOf(name)
	}
	cache, err := kernelCache()
	if err != nil {
		return kernel{}, err
	}
	unpacked := filepath.Join(cache, strings.TrimSuffix(filepath.Base(name), ".deb"))
	if old, err := os.Stat(unpacked); err == nil && old.ModTime().After(info.ModTime()) {
		if k, err := kernelBelow(unpacked); err == nil {
			return k, nil
		}
	}
	if name, err = filepath.Abs(name); err != nil {
		return kernel{}, err
	}
	work, err := workFolder(cache)
	if err != nil {
		return kernel{}, err
	}
	defer os.RemoveAll(work)
	return unpackKernel(ctx, work, name, unpacked, step)
}

// kernelOf finds the modules that belong to a bzImage: beside the folder it is
// in, as packages have it, in that folder, or where this machine has its own.
func kernelOf(image string) (kernel, error) {
	version, err := kernelVersion(image)
	if err != nil {
		return kernel{}, err
	}
	folder := filepath.Dir(image)
	broken := fmt.Errorf("%s is Linux %s, whose modules are neither in %s nor in /lib/modules", image, version, filepath.Join(folder, "../lib/modules"))
	for _, modules := range []string{
		filepath.Join(folder, "../lib/modules", version), filepath.Join(folder, "../usr/lib/modules", version),
		folder, filepath.Join("/lib/modules", version),
	} {
		if _, err := os.Stat(filepath.Join(modules, "kernel")); err != nil {
			continue
		}
		if _, err := loadModules(modules, neededModules); err != nil {
			broken = err
			continue
		}
		return kernel{image: image, modules: modules}, nil
	}
	return kernel{}, broken
}

// kernelVersion reads a bzImage's version, and finds out whether the file has
// all of it (Documentation/arch/x86/boot.rst).
func kernelVersion(image string) (string, error) {
	f, err := os.Open(image)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	head := make([]byte, 64<<10)
	n, err := io.ReadFull(f, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return "", err
	}
	const sectors, paragraphs, magic, version, least = 0x1f1, 0x1f4, 0x202, 0x20e, 0x210
	if head = head[:n]; n < least || string(head[magic:magic+4]) != "HdrS" {
		return "", fmt.Errorf("%s is no bzImage of Linux", image)
	}
	setup := (int64(head[sectors]) + 1) * 512
	size := setup + 16*int64(binary.LittleEndian.Uint32(head[paragraphs:]))
	if info.Size() < size {
		return "", fmt.Errorf("%s is cut off: it has %d bytes of %d", image, info.Size(), size)
	}
	at := min(int(binary.LittleEndian.Uint16(head[version:]))+512, n)
	text, _, _ := strings.Cut(string(head[at:]), " ")
	if text == "" || len(text) > 100 || strings.ContainsAny(text, "/\x00") {
		return "", fmt.Errorf("%s doesn't say which version of Linux it is", image)
	}
	return text, nil
}

// kernelBelow is the newest kernel that a folder has as a file system does.
func kernelBelow(root string) (kernel, error) {
	var found kernel
	var when time.Time
	broken := fmt.Errorf("%s has no boot/vmlinuz-* with lib/modules", root)
	images, _ := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	for _, image := range images {
		info, err := os.Stat(image)
		if err != nil || found.image != "" && info.ModTime().Before(when) {
			continue
		}
		k, err := kernelOf(image)
		if err != nil {
			broken = err
			continue
		}
		found, when = k, info.ModTime()
	}
	if found.image == "" {
		return kernel{}, broken
	}
	return found, nil
}

// newestKernel is the one that was unpacked last into the cache folder. What is
// broken there counts as missing.
func newestKernel(cache string) (kernel, bool) {
	roots, _ := filepath.Glob(filepath.Join(cache, "linux-image-*"))
	age := func(root string) time.Time {
		info, err := os.Stat(root)
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	slices.SortFunc(roots, func(a, b string) int { return age(b).Compare(age(a)) })
	for _, root := range roots {
		if k, err := kernelBelow(root); err == nil {
			return k, true
		}
	}
	return kernel{}, false
}

// staleAfter is when what a download left behind can be of none that still
// runs.
const staleAfter = time.Hour

// workFolder makes a folder for a download in cache, and removes those of
// downloads that were killed.
func workFolder(cache string) (string, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("make the folder for kernels (XDG_CACHE_HOME says where): %w", err)
	}
	const prefix = ".download-"
	left, _ := filepath.Glob(filepath.Join(cache, prefix+"*"))
	for _, folder := range left {
		if info, err := os.Stat(folder); err == nil && time.Since(info.ModTime()) > staleAfter {
			os.RemoveAll(folder)
		}
	}
	work, err := os.MkdirTemp(cache, prefix)
	if err != nil {
		return "", fmt.Errorf("make a folder for a kernel (XDG_CACHE_HOME says where): %w", err)
	}
	return work, nil
}

// downloadKernel unpacks a kernel package into a folder of its own in the
// cache.
func downloadKernel(ctx context.Context, step func(string)) (kernel, error) {
	cache, err := kernelCache()
	if err != nil {
		return kernel{}, err
	}
	work, err := workFolder(cache)
	if err != nil {
		return kernel{}, err
	}
	defer os.RemoveAll(work)
	name, err := resolvePackage(ctx)
	if err != nil && os.Geteuid() == 0 {
		step("fetching Debian's lists of packages by apt-get update")
		if _, updated := run(ctx, "", "apt-get", "-qq", "update"); updated != nil {
			return kernel{}, updated
		}
		name, err = resolvePackage(ctx)
	}
	if err != nil {
		return kernel{}, err
	}
	step(fmt.Sprintf("downloading %s%s by apt-get, this once, and keeping what is needed in %s, which XDG_CACHE_HOME moves", name, downloadSize(ctx, name), cache))
	if _, err := run(ctx, work, "apt-get", "-qq", "download", name); err != nil {
		return kernel{}, err
	}
	files, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(files) != 1 {
		return kernel{}, fmt.Errorf("apt-get download %s left %d packages, not one", name, len(files))
	}
	return unpackKernel(ctx, work, files[0], filepath.Join(cache, strings.TrimSuffix(filepath.Base(files[0]), ".deb")), step)
}

// unpackKernel unpacks what is needed of a package. It appears at final whole
// or not at all, so that two runs at once do no harm.
func unpackKernel(ctx context.Context, work, file, final string, step func(string)) (kernel, error) {
	step("unpacking " + filepath.Base(file))
	all := filepath.Join(work, "all")
	if _, err := run(ctx, work, "dpkg-deb", "-x", file, all); err != nil {
		return kernel{}, err
	}
	k, err := kernelBelow(all)
	if err != nil {
		return kernel{}, fmt.Errorf("the package %s: %w", filepath.Base(file), err)
	}
	needed := filepath.Join(work, "needed")
	if err := moveNeeded(k, needed); err != nil {
		return kernel{}, fmt.Errorf("keep a kernel: %w", err)
	}
	if _, err := kernelBelow(final); err != nil {
		os.RemoveAll(final) // broken
	}
	if err := os.Rename(needed, final); err != nil && !errors.Is(err, os.ErrExist) {
		return kernel{}, fmt.Errorf("keep a kernel: %w", err)
	}
	return kernelBelow(final)
}

// moveNeeded moves what a machine needs of a kernel below a new folder.
func moveNeeded(k kernel, root string) error {
	modules, err := loadModules(k.modules, neededModules)
	if err != nil {
		return err
	}
	folder := filepath.Join(root, "lib", "modules", filepath.Base(k.modules))
	moves := map[string]string{k.image: filepath.Join(root, "boot", filepath.Base(k.image))}
	for _, m := range modules {
		moves[m.file] = filepath.Join(folder, "kernel", filepath.Base(m.file))
	}
	for _, dir := range []string{filepath.Join(root, "boot"), filepath.Join(folder, "kernel")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if builtin := filepath.Join(k.modules, builtinList); fileExists(builtin) {
		moves[builtin] = filepath.Join(folder, builtinList)
	}
	for from, to := range moves {
		if err := os.Rename(from, to); err != nil {
			return err
		}
	}
	return nil
}

func fileExists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

var dependsLine = regexp.MustCompile(`(?m)^\s*Depends: (linux-image-\S+)$`)

// resolvePackage finds the package with the kernel itself behind the package
// that always depends on the newest one.
func resolvePackage(ctx context.Context) (string, error) {
	var last error
	for _, name := range kernelPackages {
		out, err := run(ctx, "", "apt-cache", "depends", name)
		if err != nil {
			last = err
			continue
		}
		if m := dependsLine.FindStringSubmatch(out); m != nil {
			return m[1], nil
		}
		last = fmt.Errorf("package %s depends on no kernel image", name)
	}
	return "", last
}

// A line of apt-get --print-uris: address, file, size, checksum.
var uriLine = regexp.MustCompile(`(?m)^'[^']*' \S+ (\d+) `)

// downloadSize is how large a package is, for a sentence, or "".
func downloadSize(ctx context.Context, name string) string {
	out, err := run(ctx, "", "apt-get", "-qq", "download", "--print-uris", name)
	if err != nil {
		return ""
	}
	m := uriLine.FindStringSubmatch(out)
	if m == nil {
		return ""
	}
	size, err := strconv.ParseUint(m[1], 10, 64)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (%d MB)", (size+500_000)/1_000_000)
}

// run runs a program and returns what it printed; an error carries the last
// line it printed as well.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return "", fmt.Errorf("%s: %w: %s", strings.Join(append([]string{name}, args...), " "), err, lines[len(lines)-1])
	}
	return string(out), nil
}
