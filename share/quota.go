package share

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrQuota refuses to take more of the host's disk than a [Quota] has left. It
// is an EDQUOT.
var ErrQuota = fmt.Errorf("the guest has used up its part of the disk: %w", unix.EDQUOT)

const (
	// nodeCost is the charge for a node, beside its bytes.
	nodeCost = 4096
	// maxAccounts is of how many files a Quota keeps an account. The charges
	// for further files aren't given back.
	maxAccounts = 1 << 16
)

// Quota bounds by how many bytes a guest may make the files of its host grow.
//
// A file is charged the growth of its size, or of its space on the disk if that
// is more, since the guest opened it first; holes count as if they were
// written. A node that the guest makes is charged a fixed cost. Removing and
// truncating give back: of a file's bytes at most what the guest was charged
// for them, and of an open file not before it is closed. Changes by other
// processes don't count, unless they can't be told from the guest's.
//
// nil is no limit. The methods may be called concurrently, and don't block.
type Quota struct {
	limit int64

	mu    sync.Mutex
	used  int64 // never negative
	files map[fileID]*account
}

type fileID struct{ device, inode uint64 }

// account is the charge of a file.
type account struct {
	id fileID

	// change is held around a call that changes the file's size, so that the
	// difference between before and after is of that call. It is taken before
	// Quota.mu.
	change sync.Mutex

	// Quota.mu guards the rest.
	opens       int // open files, and calls at work, that use the account
	size, space int64
	charged     int64
	doomed      bool  // the file has lost its last name
	node        int64 // what its end gives back beside its bytes
}

// NewQuota returns a quota of limit bytes.
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

// TakeNode charges a node that is about to be made.
func (q *Quota) TakeNode() error { return q.take(nodeCost) }

// GiveNode gives the charge of a node back.
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

// open returns the account of an open file with state st. close follows before
// the file is closed.
func (q *Quota) open(st unix.Stat_t, stat func() (unix.Stat_t, error)) (*account, error) {
	if q == nil {
		return nil, nil
	}
	a, known := q.account(fileID{st.Dev, st.Ino})
	defer a.change.Unlock()
	// No other call of the guest changes what stat returns here.
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
		// A file without a name may have been given back already, and is
		// charged as long as it is open. An empty file may have the inode
		// number of one that is gone.
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

// close ends one use of an account.
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

// doom gives the account's charge back when its last use ends.
func (q *Quota) doom(a *account) {
	q.mu.Lock()
	defer q.mu.Unlock()
	a.doomed, a.node = true, nodeCost
}

// change does a change of a file's size. It first charges the most that the
// change may need, which need says of the file's state, and afterwards what the
// change has needed.
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
	// A change that can't be seen stays charged.
	if st, serr := stat(); serr == nil {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.used = max(q.used-taken, 0)
		q.charge(a, &st)
	}
	return err
}

// charge charges the difference to a file's state. mu is held.
func (q *Quota) charge(a *account, st *unix.Stat_t) {
	now := max(st.Size-a.size, space(st)-a.space, 0)
	q.used = max(q.used+now-a.charged, 0)
	a.charged = now
}

// space is how many bytes a file takes on the disk. Some file systems reserve
// more behind its end for a while.
func space(st *unix.Stat_t) int64 {
	const block = 4096
	return min(st.Blocks*512, (st.Size+block-1)&^(block-1))
}
