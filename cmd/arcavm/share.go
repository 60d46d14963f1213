package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/vmm"
)

// sharedFolder is a value of --share or --sockets: DIR or NAME=DIR, each as it is or with :ro or :rw.
type sharedFolder struct {
	name     string // "": it is the top
	dir      string
	writable bool
}

// parseShares reads the values of a flag, --share or --sockets. A DIR whose own first part has an = in it is written with a slash before that.
func parseShares(flag string, values []string) ([]sharedFolder, error) {
	var folders []sharedFolder
	seen := make(map[string]bool)
	for _, v := range values {
		f := sharedFolder{dir: v}
		if dir, ok := strings.CutSuffix(f.dir, ":rw"); ok {
			f.dir, f.writable = dir, true
		} else {
			f.dir = strings.TrimSuffix(f.dir, ":ro")
		}
		if name, dir, ok := strings.Cut(f.dir, "="); ok && !strings.Contains(name, "/") {
			if err := share.CheckName(name); err != nil {
				return nil, usageError("%s: %v; write NAME=DIR, or ./A=B for a folder with = in its name", flag, err)
			}
			f.name, f.dir = name, dir
		}
		switch {
		case f.dir == "":
			return nil, usageError("%s: %q has no folder; write DIR, DIR:rw, NAME=DIR or NAME=DIR:rw", flag, v)
		case seen[f.name] && f.name == "":
			return nil, usageError("%s: %s is the second folder without a name; write NAME=%s", flag, f.dir, f.dir)
		case seen[f.name]:
			return nil, usageError("%s: two folders are called %s", flag, f.name)
		}
		seen[f.name] = true
		folders = append(folders, f)
	}
	return folders, nil
}

// openShares opens what the guest may reach.
func openShares(flag string, values []string) (all vmm.Share, err error) {
	folders, err := parseShares(flag, values)
	if err != nil {
		return all, err
	}
	named := make(map[string]vmm.Share)
	for _, f := range folders {
		opened, openErr := openFolder(flag, f)
		if openErr != nil {
			all.Named = named
			return vmm.Share{}, errors.Join(openErr, all.Close())
		}
		if f.name == "" {
			all = opened
		} else {
			named[f.name] = opened
		}
	}
	all.Named = named
	return all, nil
}

func openFolder(flag string, f sharedFolder) (vmm.Share, error) {
	s, err := share.Open(f.dir, f.writable)
	if err == nil {
		return s, nil
	}
	if info, statErr := os.Stat(f.dir); statErr == nil && !info.IsDir() {
		return s, &codeError{exitNoInput, fmt.Errorf("%s: %s is not a folder", flag, f.dir)}
	}
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		err = path // the flag says what for
	}
	return s, inputError(fmt.Errorf("%s: %w", flag, err))
}
