package spec

import (
	"fmt"
	"strings"

	"github.com/fix-project/arcavm/share"
)

// Folder is a folder of the host that a guest may reach.
type Folder struct {
	Name     string // of a folder at the guest's top; "": it is the top
	Dir      string
	Writable bool
}

// ParseFolder reads a folder in the form [NAME=]DIR[:ro|:rw]. A DIR whose first
// part has an = in it is written with a slash before that, as ./A=B.
func ParseFolder(text string) (Folder, error) {
	f := Folder{Dir: text}
	if dir, ok := strings.CutSuffix(f.Dir, ":rw"); ok {
		f.Dir, f.Writable = dir, true
	} else {
		f.Dir = strings.TrimSuffix(f.Dir, ":ro")
	}
	if name, dir, ok := strings.Cut(f.Dir, "="); ok && !strings.Contains(name, "/") {
		if err := share.CheckName(name); err != nil {
			return Folder{}, fmt.Errorf("%w; write NAME=DIR, or ./A=B for a folder with = in its name", err)
		}
		f.Name, f.Dir = name, dir
	}
	if f.Dir == "" {
		return Folder{}, fmt.Errorf("%q has no folder; write DIR, DIR:rw, NAME=DIR or NAME=DIR:rw", text)
	}
	return f, nil
}

// String is the text that [ParseFolder] reads the folder from.
func (f Folder) String() string {
	text := f.Dir
	if f.Name != "" {
		text = f.Name + "=" + f.Dir
	} else if first, _, ok := strings.Cut(f.Dir, "="); ok && !strings.Contains(first, "/") {
		text = "./" + f.Dir
	}
	switch {
	case f.Writable:
		text += ":rw"
	case strings.HasSuffix(text, ":rw"), strings.HasSuffix(text, ":ro"):
		text += ":ro"
	}
	return text
}

// checkFolders returns the index of the first folder that is wrong or can't be
// beside those before it.
func checkFolders(folders []Folder) (at int, err error) {
	seen := make(map[string]bool)
	for i, f := range folders {
		if f.Name != "" {
			if err := share.CheckName(f.Name); err != nil {
				return i, err
			}
		}
		switch {
		case strings.Contains(f.Name, "="):
			return i, fmt.Errorf("the name %q has a = in it", f.Name)
		case f.Dir == "":
			return i, fmt.Errorf("%q has no folder", f)
		case seen[f.Name] && f.Name == "":
			return i, fmt.Errorf("%s is the second folder without a name; write NAME=%s", f.Dir, f.Dir)
		case seen[f.Name]:
			return i, fmt.Errorf("two folders are called %s", f.Name)
		}
		seen[f.Name] = true
	}
	return 0, nil
}
