package threads

import (
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"
)

func TestLeft(t *testing.T) {
	t.Parallel()
	const none = uint64(unix.RLIM_INFINITY)
	status := func(uid, threads, caps string) string {
		return "Name:\tx\nUid:\t" + uid + "\t0\t0\t0\nThreads:\t" + threads + "\nCapEff:\t" + caps + "\n"
	}
	for name, c := range map[string]struct {
		files map[string]string
		nproc uint64
		uid   int
		want  int
		bound string // "": nothing bounds
	}{
		"no /proc": {nproc: none},
		"no limit": {files: map[string]string{
			"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/pids.max": "max\n", "sys/fs/cgroup/a/pids.current": "3\n",
		}, nproc: none},
		"version 2, the cgroup's own": {files: map[string]string{
			"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/pids.max": "20\n", "sys/fs/cgroup/a/b/pids.current": "15\n",
			"sys/fs/cgroup/a/pids.max": "100\n", "sys/fs/cgroup/a/pids.current": "90\n",
		}, nproc: none, want: 5, bound: "pids.max of /sys/fs/cgroup/a/b is 20, of which 15 are in use"},
		"version 2, one above": {files: map[string]string{
			"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/pids.max": "max\n", "sys/fs/cgroup/a/b/pids.current": "15\n",
			"sys/fs/cgroup/a/pids.max": "100\n", "sys/fs/cgroup/a/pids.current": "98\n",
		}, nproc: none, want: 2, bound: "/sys/fs/cgroup/a is"},
		"version 2, a namespace of its own": {files: map[string]string{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/pids.max": "64\n", "sys/fs/cgroup/pids.current": "4\n",
		}, nproc: none, want: 60, bound: "/sys/fs/cgroup is"},
		"version 1": {files: map[string]string{
			"proc/self/cgroup": "9:pids:/x\n0::/\n", "sys/fs/cgroup/pids/x/pids.max": "7\n", "sys/fs/cgroup/pids/x/pids.current": "7\n",
		}, nproc: none, want: 0, bound: "/sys/fs/cgroup/pids/x is"},
		"user": {files: map[string]string{
			"proc/self/status": status("7", "3", "0"), "proc/1/status": status("0", "9", "0"),
			"proc/20/status": status("7", "3", "0"), "proc/21/status": status("7", "2", "0"), "proc/uptime": "1",
		}, nproc: 8, uid: 7, want: 3, bound: "ulimit -u) is 8, of which 5 are in use"},
		"user, large limit": {files: map[string]string{
			"proc/self/status": status("7", "3", "0"), "proc/20/status": status("7", "3", "0"),
		}, nproc: many, uid: 7},
		"user with a capability": {files: map[string]string{
			"proc/self/status": status("7", "3", "0000000001000000"), "proc/20/status": status("7", "3", "0"),
		}, nproc: 8, uid: 7},
		"root": {files: map[string]string{
			"proc/self/status": status("0", "3", "0"), "proc/20/status": status("0", "3", "0"),
		}, nproc: 8},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := make(fstest.MapFS)
			for name, text := range c.files {
				root[name] = &fstest.MapFile{Data: []byte(text)}
			}
			got, ok := left(root, c.nproc, c.uid)
			if ok != (c.bound != "") || got.Left != c.want || !strings.Contains(got.Bound, c.bound) {
				t.Errorf("%+v, %v; want %d by %q", got, ok, c.want, c.bound)
			}
		})
	}
}
