package emulated

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// makeKernel writes what passes for a kernel below root, with its modules in
// lib.
func makeKernel(t *testing.T, root, lib, version string) kernel {
	t.Helper()
	k := kernel{image: filepath.Join(root, "boot", "vmlinuz-"+version), modules: filepath.Join(root, lib, "modules", version)}
	image := make([]byte, 4096)
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x20e:], 0x300)
	copy(image[0x500:], version+" (somebody@somewhere)\x00")
	binary.LittleEndian.PutUint32(image[0x1f4:], 200) // 3,200 bytes after the first 512
	writeFile(t, k.image, image)
	writeFile(t, filepath.Join(k.modules, "kernel", "kvm-amd.ko"), makeELF(t, []string{"depends=kvm"}))
	writeFile(t, filepath.Join(k.modules, "kernel", "kvm.ko"), makeELF(t, []string{"depends="}))
	writeFile(t, filepath.Join(k.modules, "kernel", "unneeded.ko"), makeELF(t, nil))
	writeFile(t, filepath.Join(k.modules, builtinList), []byte("kernel/virtio_pci.ko\nkernel/virtio_console.ko\nkernel/virtio_net.ko\n"))
	return k
}

func TestNewestKernel(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	if k, ok := newestKernel(cache); ok {
		t.Errorf("found %v in an empty folder", k)
	}
	now := time.Now()
	age := func(root string, hours int) {
		must(t, os.Chtimes(root, now, now.Add(time.Duration(hours)*time.Hour)))
	}
	older, newer := filepath.Join(cache, "linux-image-2_amd64"), filepath.Join(cache, "linux-image-1_amd64")
	old, want := makeKernel(t, older, "lib", "6.1"), makeKernel(t, newer, "usr/lib", "6.1")
	age(older, 0)
	age(newer, 1)
	without := filepath.Join(cache, "linux-image-3_amd64")
	must(t, os.RemoveAll(makeKernel(t, without, "lib", "6.1").modules))
	age(without, 2)
	if k, ok := newestKernel(cache); !ok || k != want {
		t.Errorf("found %+v, want %+v", k, want)
	}
	for name, spoil := range map[string]func() error{
		"an image that is cut off": func() error { return os.Truncate(want.image, 1000) },
		"an empty module": func() error {
			makeKernel(t, newer, "usr/lib", "6.1")
			return os.Truncate(filepath.Join(want.modules, "kernel", "kvm.ko"), 0)
		},
		"a missing module": func() error {
			makeKernel(t, newer, "usr/lib", "6.1")
			return os.Remove(filepath.Join(want.modules, "kernel", "kvm.ko"))
		},
	} {
		must(t, spoil())
		age(newer, 1)
		if k, ok := newestKernel(cache); !ok || k != old {
			t.Errorf("with %s: found %+v, want %+v", name, k, old)
		}
	}
}

func TestGivenKernel(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "a b")
	want := makeKernel(t, root, "lib", "6.9-x")
	here := filepath.Join(want.modules, "vmlinuz") // as some distributions have it
	data, err := os.ReadFile(want.image)
	must(t, err)
	writeFile(t, here, data)
	for _, name := range []string{want.image, root, here} {
		k, err := findKernel(t.Context(), name, func(string) {})
		if err != nil || k.modules != want.modules {
			t.Errorf("%s: %+v, %v", name, k, err)
		}
	}
	alone := filepath.Join(t.TempDir(), "vmlinuz")
	writeFile(t, alone, data)
	for name, text := range map[string]string{
		filepath.Join(root, "none"): "no such file", alone: "modules",
		filepath.Join(want.modules, builtinList): "no bzImage", t.TempDir(): "boot/vmlinuz-*",
	} {
		if _, err := findKernel(t.Context(), name, func(string) {}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want an error that says %q", name, err, text)
		}
	}
}

// A package that is there needs no network; half of one, or what a killed
// download left, does no harm.
func TestKernelPackage(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("there is no dpkg-deb to make a package with: apt-get install dpkg")
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	cache, err := kernelCache()
	must(t, err)
	left := filepath.Join(cache, ".download-killed")
	must(t, os.MkdirAll(left, 0o755))
	must(t, os.Chtimes(left, time.Time{}, time.Now().Add(-2*staleAfter)))

	root, dir := t.TempDir(), t.TempDir()
	makeKernel(t, root, "lib", "6.9-x")
	writeFile(t, filepath.Join(root, "DEBIAN", "control"), []byte("Package: linux-image-x\nVersion: 1\nArchitecture: amd64\nMaintainer: X <x@example.com>\nDescription: x\n"))
	must(t, os.Chmod(filepath.Join(root, "DEBIAN"), 0o755)) // whatever the umask
	file := filepath.Join(dir, "linux-image-x_1_amd64.deb")
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "-b", root, file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var steps []string
	step := func(s string) { steps = append(steps, s) }
	k, err := findKernel(t.Context(), file, step)
	must(t, err)
	if !strings.HasPrefix(k.image, cache) || len(steps) != 1 {
		t.Errorf("the kernel is %+v after %q", k, steps)
	}
	if _, err := os.Stat(filepath.Join(k.modules, "kernel", "unneeded.ko")); !os.IsNotExist(err) {
		t.Errorf("a module that isn't needed is kept: %v", err)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("what a killed download left is there: %v", err)
	}
	if again, err := findKernel(t.Context(), file, step); err != nil || again != k || len(steps) != 1 {
		t.Errorf("again it is %+v, %v, after %q", again, err, steps)
	}
	must(t, os.Truncate(k.image, 100))
	if again, err := findKernel(t.Context(), file, step); err != nil || again != k || len(steps) != 2 {
		t.Errorf("after damage it is %+v, %v, after %q", again, err, steps)
	}
	data, err := os.ReadFile(file)
	must(t, err)
	half := filepath.Join(dir, "half.deb")
	writeFile(t, half, bytes.Clone(data[:len(data)/2]))
	if _, err := findKernel(t.Context(), half, step); !errors.Is(err, ErrUnavailable) {
		t.Errorf("half a package: %v", err)
	}
}

// A cache folder that can't be made is named, with the variable that moves it.
func TestKernelCacheUnwritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	writeFile(t, file, nil)
	_, err := workFolder(filepath.Join(file, "kernels"))
	if err == nil || !strings.Contains(err.Error(), "XDG_CACHE_HOME") {
		t.Error(err)
	}
}
