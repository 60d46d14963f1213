// Package threads says how many more threads a process may start. Go's runtime
// ends a process that can't start a thread that it needs, so a program looks
// before it needs many.
package threads

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Room is what the narrowest of the limits leaves.
type Room struct {
	Left  int    // threads that may be started yet
	Bound string // by which limit, for people
}

// many is a limit of a user's processes beyond which they aren't counted.
const many = 4096

// Left returns how many more threads this process may start, and false if
// nothing that it can see bounds that. It looks at the pids controllers of its
// cgroup and of those above, and at RLIMIT_NPROC where that holds and is below
// 4096. Another process may use up the room at any time.
func Left() (Room, bool) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &limit); err != nil {
		limit.Cur = unix.RLIM_INFINITY
	}
	return left(os.DirFS("/"), limit.Cur, unix.Getuid())
}

func left(root fs.FS, nproc uint64, uid int) (least Room, bounded bool) {
	consider := func(max, used int, what string) {
		r := Room{max - used, fmt.Sprintf("%s is %d, of which %d are in use", what, max, used)}
		if !bounded || r.Left < least.Left {
			least, bounded = r, true
		}
	}
	for _, dir := range controllers(root) {
		for ; ; dir = path.Dir(dir) {
			max, err := number(root, path.Join(dir, "pids.max"))
			used, uerr := number(root, path.Join(dir, "pids.current"))
			if err == nil && uerr == nil {
				consider(max, used, "pids.max of /"+dir)
			}
			if dir == "." || dir == "sys/fs/cgroup" {
				break
			}
		}
	}
	if nproc < many && uid != 0 && !exempt(root) {
		if used := ofUser(root, uid); used > 0 {
			consider(int(nproc), used, "the limit of the user's processes and threads (ulimit -u)")
		}
	}
	return least, bounded
}

// controllers returns the folders that may be those of this process's pids
// controller, of either version.
func controllers(root fs.FS) (dirs []string) {
	text, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 {
			continue
		}
		of := path.Clean("/" + fields[2])
		switch {
		case fields[0] == "0":
			dirs = append(dirs, path.Join("sys/fs/cgroup", of), path.Join("sys/fs/cgroup/unified", of))
		case fields[1] == "pids":
			dirs = append(dirs, path.Join("sys/fs/cgroup/pids", of))
		}
	}
	return dirs
}

// number reads a file that has one; "max" is an error.
func number(root fs.FS, name string) (int, error) {
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// exempt reports whether the process has CAP_SYS_ADMIN or CAP_SYS_RESOURCE, for
// which RLIMIT_NPROC doesn't hold.
func exempt(root fs.FS) bool {
	text := status(root, "self")["CapEff"]
	caps, err := strconv.ParseUint(text, 16, 64)
	return err == nil && caps&(1<<unix.CAP_SYS_ADMIN|1<<unix.CAP_SYS_RESOURCE) != 0
}

// ofUser counts a user's threads.
func ofUser(root fs.FS, uid int) (count int) {
	processes, err := fs.ReadDir(root, "proc")
	if err != nil {
		return 0
	}
	for _, p := range processes {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		s := status(root, p.Name())
		real, _, _ := strings.Cut(s["Uid"], "\t")
		if real != strconv.Itoa(uid) {
			continue
		}
		n, _ := strconv.Atoi(s["Threads"])
		count += n
	}
	return count
}

// status is what /proc says of a process, nothing of one that is gone.
func status(root fs.FS, process string) map[string]string {
	f, err := root.Open(path.Join("proc", process, "status"))
	if err != nil {
		return nil
	}
	defer f.Close()
	fields := make(map[string]string)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}
