package emulated

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// kernel is a Debian kernel, unpacked.
type kernel struct {
	image   string // the bzImage
	modules string // the folder lib/modules/VERSION
}

// kernelPackages are the packages to ask for, the best first: the cloud kernel
// has what is needed and is a third of the other's size.
var kernelPackages = []string{"linux-image-cloud-amd64", "linux-image-amd64"}

// findKernel returns the kernel that was unpacked last into the cache folder,
// or downloads one.
func findKernel(ctx context.Context) (kernel, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return kernel{}, fmt.Errorf("%w: no folder to keep a kernel in: %w", ErrUnavailable, err)
	}
	cache = filepath.Join(cache, "arcavm", "kernels")
	if k, ok := newestKernel(cache); ok {
		return k, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return kernel{}, fmt.Errorf("make the kernel cache: %w", err)
	}
	if err := downloadKernel(ctx, cache); err != nil {
		return kernel{}, fmt.Errorf("%w: no kernel to boot, and it cannot be downloaded (needs Debian's apt-get, dpkg-deb, network, and package lists from \"apt-get update\"): %w", ErrUnavailable, err)
	}
	k, ok := newestKernel(cache)
	if !ok {
		return kernel{}, fmt.Errorf("%w: the kernel package holds no boot/vmlinuz-* with lib/modules", ErrUnavailable)
	}
	return k, nil
}

func newestKernel(cache string) (kernel, bool) {
	var found kernel
	var when time.Time
	images, _ := filepath.Glob(filepath.Join(cache, "linux-image-*", "boot", "vmlinuz-*"))
	for _, image := range images {
		root := filepath.Dir(filepath.Dir(image))
		version := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
		for _, lib := range []string{"lib", "usr/lib"} {
			modules := filepath.Join(root, lib, "modules", version)
			info, err := os.Stat(root)
			if _, missing := os.Stat(modules); err != nil || missing != nil || info.ModTime().Before(when) {
				continue
			}
			found, when = kernel{image: image, modules: modules}, info.ModTime()
		}
	}
	return found, found.image != ""
}

// downloadKernel unpacks a kernel package into a folder of its own in cache.
// It appears there whole or not at all, so that two runs at once do no harm.
func downloadKernel(ctx context.Context, cache string) error {
	name, err := resolvePackage(ctx)
	if err != nil && os.Geteuid() == 0 {
		if _, updated := run(ctx, "", "apt-get", "-qq", "update"); updated != nil {
			return updated
		}
		name, err = resolvePackage(ctx)
	}
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(cache, ".download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if _, err := run(ctx, work, "apt-get", "-qq", "download", name); err != nil {
		return err
	}
	files, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(files) != 1 {
		return fmt.Errorf("apt-get download %s left %d packages, not one", name, len(files))
	}
	unpacked := filepath.Join(work, "root")
	if _, err := run(ctx, work, "dpkg-deb", "-x", files[0], unpacked); err != nil {
		return err
	}
	final := filepath.Join(cache, strings.TrimSuffix(filepath.Base(files[0]), ".deb"))
	if err := os.Rename(unpacked, final); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	// dpkg-deb gives the folder the package's date; newestKernel goes by ours.
	now := time.Now()
	return os.Chtimes(final, now, now)
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
