package share

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrQuota is what would take more of the host's disk than a [Quota] has. It is
// an EDQUOT.
var ErrQuota = fmt.Errorf("the guest has used up its part of the disk: %w", unix.EDQUOT)

const (
	// nodeCost is what a file, a folder or a socket counts, beside its bytes.
	nodeCost = 4096
	// maxAccounts bounds what a Quota remembers of files. Beyond, what a file
	// has been charged isn't given back any more.
	maxAccounts = 1 << 16
)

// Quota bounds by how much a guest may make the files of its host grow, in
// bytes. Each file is charged what its size, or the space that it takes, has
// grown by since the guest came to it first, holes counted as if they were
// written; and a fixed cost for being made. What the guest removes or truncates
// is given back: of a file's bytes no more than the guest was charged for them,
// and of a file that is open not before it is closed. What other processes do
// isn't counted, but where it can't be told from what the guest does. nil is no
// limit. Its methods may be called concurrently, and don't block.
type Quota struct {
	limit int64

	mu    sync.Mutex
	used  int64 // never negative
	files map[fileID]*account
}

type fileID struct{ device, inode uint64 }

// account is what a guest has been charged for a file.
type account struct {
	id fileID

	// change is held around a call that changes the file's size, so that what
	// is seen before and after it is that call's doing. It comes before
	// Quota.mu.
	change sync.Mutex

	// The rest is guarded by Quota.mu.
	opens       int // open files, and calls at work, that use the account
	size, space int64
	charged     int64
	doomed      bool  // the file has no name any more
	node        int64 // what its end gives back beside its bytes
}

// NewQuota returns a quota of so many bytes.
func NewQuota(limit uint64) *Quota {
	return &Quota{limit: int64(min(limit, 1<<62)), files: make(map[fileID]*account)}
}

// Used returns how many bytes are charged.
func (q *Quota) Used() uint64 {
	if q == nil {
		return 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return uint64(q.used)
}

// TakeNode charges what is about to be made.
func (q *Quota) TakeNode() error { return q.take(nodeCost) }

// GiveNode gives that back.
func (q *Quota) GiveNode() { q.give(nodeCost) }

func (q *Quota) take(n int64) error {
	if q == nil || n == 0 {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if n > q.limit-q.used {
		return ErrQuota
	}
	q.used += n
	return nil
}

func (q *Quota) give(n int64) {
	if q == nil || n == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used = max(q.used-n, 0)
}

// open returns the account of an open file, of which st was seen; close must
// follow, as long as the file is open.
func (q *Quota) open(st unix.Stat_t, stat func() (unix.Stat_t, error)) (*account, error) {
	if q == nil {
		return nil, nil
	}
	a, known := q.account(fileID{st.Dev, st.Ino})
	defer a.change.Unlock()
	// What is seen now no other call of the guest's changes.
	st, err := stat()
	if err != nil {
		q.close(a)
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case !known && st.Nlink > 0:
		a.size, a.space = st.Size, space(&st)
	case st.Nlink > 0 && st.Size > 0:
	default:
		// A file that has lost its name already may have been given back: it
		// counts as long as it is open. An empty one may have the number of one
		// that is gone.
		a.doomed = a.doomed || st.Nlink == 0
		if !known || st.Nlink > 0 {
			a.size, a.space = 0, 0
			q.charge(a, &st)
		}
	}
	return a, nil
}

// account returns a file's account with its change locked, and whether there
// was one.
func (q *Quota) account(id fileID) (a *account, known bool) {
	q.mu.Lock()
	a, known = q.files[id]
	if !known {
		a = &account{id: id}
		q.files[id] = a
		a.change.Lock() // at once: no other call has it yet
	}
	a.opens++
	q.mu.Unlock()
	if known {
		a.change.Lock()
	}
	return a, known
}

// close ends the use of an account.
func (q *Quota) close(a *account) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	a.opens--
	switch {
	case a.opens > 0:
		return
	case a.doomed:
		q.used = max(q.used-a.charged-a.node, 0)
	case a.charged > 0 && len(q.files) <= maxAccounts:
		return
	}
	delete(q.files, a.id)
}

// doom has the account's charge given back when it is closed for the last time.
func (q *Quota) doom(a *account) {
	q.mu.Lock()
	defer q.mu.Unlock()
	a.doomed, a.node = true, nodeCost
}

// change does what changes a file's size. It charges before what the change may
// need at most, as need says from the file's state, and afterwards corrects
// that.
func (q *Quota) change(a *account, stat func() (unix.Stat_t, error), need func(*unix.Stat_t) int64, do func() error) error {
	if q == nil {
		return do()
	}
	a.change.Lock()
	defer a.change.Unlock()
	st, err := stat()
	if err != nil {
		return err
	}
	taken := need(&st)
	if err := q.take(taken); err != nil {
		return err
	}
	err = do()
	// What can't be seen stays charged.
	if st, serr := stat(); serr == nil {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.used = max(q.used-taken, 0)
		q.charge(a, &st)
	}
	return err
}

// charge charges what a file has become. mu is held.
func (q *Quota) charge(a *account, st *unix.Stat_t) {
	now := max(st.Size-a.size, space(st)-a.space, 0)
	q.used = max(q.used+now-a.charged, 0)
	a.charged = now
}

// space is what a file's bytes take on the disk. Some file systems take more
// for a while, behind the end.
func space(st *unix.Stat_t) int64 {
	const block = 4096
	return min(st.Blocks*512, (st.Size+block-1)&^(block-1))
}
