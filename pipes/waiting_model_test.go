package pipes_test

import (
	"fmt"
	"testing"
)

// This is a model of PROTOCOL.md section 8 as package pipes implements it: one
// ring, a producer that writes units one at a time and closes, a consumer that
// reads them. All interleavings are visited, on a machine whose stores linger
// in a store buffer as x86's do (total store order). A state in which neither
// end can go on, and one hasn't ended, is a lost wake-up.

// variant says what the ends do; a zero field leaves that step out.
type variant struct {
	size, units, min int // ring size, units to send, what the consumer waits for
	reserve          int // the consumer keeps signals back while it has more than this to read
	hold             int // for how many units a producer that goes on writing keeps signals back
	wakerFence       bool
	waiterFence      bool
	secondLook       bool
	flush            bool // a consumer that keeps signals back looks at the flag before it sleeps
	tell             bool // a producer does
	stateSignal      bool // a state change signals whatever the flag says
	stateFirst       bool // the consumer reads the state before the cursor
	lower            bool // an end that signals before it sleeps clears its own flag first
}

func correct(size, min, reserve, hold int) variant {
	return variant{size, size + 3, min, reserve, hold, true, true, true, true, true, true, true, true}
}

// rings calls f for every ring of the model, its ends taking all the right
// steps.
func rings(f func(v variant)) {
	for size := 1; size <= 4; size++ {
		for min := 1; min <= size; min++ {
			for reserve := range size/2 + 1 {
				for hold := range size/2 + 2 {
					v := correct(size, min, reserve, hold)
					f(v)
					v.lower = false // a hook waits as well
					f(v)
				}
			}
		}
	}
}

// Words of shared memory.
const (
	wWrite = iota
	wState
	wWriterWaiting
	wRead
	wReaderWaiting
	words
)

// Program counters. A step that both ends take has one name.
const (
	look = iota
	look2
	moved     // cursor stored; next: fence
	checkFlag // look at the other's flag
	exchange  // take the other's flag
	signalled // claimed the flag; next: signal
	waitFence // own flag stored; next: fence
	second    // second look
	secondB
	flushFlag // who kept signals back: the other's flag before sleeping
	flushTake
	flushSend
	sleep
	asleep
	closing
	ended
)

type store struct{ word, value int8 }

// end is one end's private state.
type end struct {
	pc     int8
	own    int8
	limit  int8
	kept   int8 // producer: units that the consumer was not yet told of
	seen   int8 // consumer: the state, or with a wrong order the cursor, that was read first
	buffer [6]store
	n      int8
	region bool // holds its mutex, between flag and sleep: a signal is delivered before or after
}

type world struct {
	memory [words]int8
	ends   [2]end
}

const (
	producer = 0
	consumer = 1
)

func (e *end) store(word, value int) {
	e.buffer[e.n] = store{int8(word), int8(value)}
	e.n++
}

func (w *world) load(who, word int) int {
	e := &w.ends[who]
	for i := e.n - 1; i >= 0; i-- {
		if int(e.buffer[i].word) == word {
			return int(e.buffer[i].value)
		}
	}
	return int(w.memory[word])
}

// drain lets the oldest store reach memory.
func (w *world) drain(who int) {
	e := &w.ends[who]
	w.memory[e.buffer[0].word] = e.buffer[0].value
	copy(e.buffer[:], e.buffer[1:])
	e.n--
	e.buffer[e.n] = store{}
}

// step performs the next step of an end, if it can take one. An error is a
// promise of section 8 that doesn't hold.
func (v variant) step(w *world, who int) (ok bool, err error) {
	e := &w.ends[who]
	flags := [2]int{wWriterWaiting, wReaderWaiting}
	mine, theirs := flags[who], flags[1-who]
	fenced := e.n == 0
	wake := func() bool {
		other := &w.ends[1-who]
		// The signaller waits for the mutex. A system call or an exit from the
		// guest drains the buffer.
		if other.region || !fenced {
			return false
		}
		if other.pc == asleep {
			other.pc = look
		}
		return true
	}
	// saw decides what follows a look, which has set e.limit.
	saw := func(closed bool, nothing int8) error {
		can := int(e.limit - e.own)
		if who == producer {
			switch {
			case int(e.own) == v.units:
				e.pc = closing
			case can >= 1:
				e.own++
				e.store(wWrite, int(e.own))
				e.pc = moved
				if e.kept++; int(e.kept) <= v.hold {
					e.pc = look // keeps the signal back
				} else {
					e.kept = 0
				}
			default:
				e.pc = nothing
			}
		} else {
			switch {
			case closed && can == 0:
				if int(e.own) != v.units {
					return fmt.Errorf("end of file after %d of %d units", e.own, v.units)
				}
				e.pc = ended
			case can >= v.min || closed:
				e.own++
				e.store(wRead, int(e.own))
				e.pc = moved
				if can-1 > v.reserve {
					e.pc = look // keeps the signal back
				}
			default:
				e.pc = nothing
			}
		}
		if e.pc != nothing && e.region {
			e.store(mine, 0)
			e.region = false
		}
		return nil
	}
	first, other := wState, wWrite
	if !v.stateFirst {
		first, other = wWrite, wState
	}
	lookSecond := func(nothing int8) error {
		e2, state := w.load(who, other), int(e.seen)
		cursor := e2
		if !v.stateFirst {
			cursor, state = int(e.seen), e2
		}
		e.limit, e.seen = int8(cursor), 0
		return saw(state != 0, nothing)
	}
	goToSleep := int8(sleep)
	if who == consumer && v.flush || who == producer && v.tell {
		goToSleep = flushFlag
	}

	switch e.pc {
	case look:
		if who == producer {
			e.limit = int8(w.load(who, wRead) + v.size)
			err = saw(false, waitFence)
			if e.pc == waitFence {
				e.store(mine, 1)
				e.region = true
			}
			return true, err
		}
		e.seen = int8(w.load(who, first))
		e.pc = look2
	case look2:
		err = lookSecond(waitFence)
		if e.pc == waitFence {
			e.store(mine, 1)
			e.region = true
		}
	case moved:
		if v.wakerFence && !fenced {
			return false, nil
		}
		e.pc = checkFlag
	case checkFlag:
		e.pc = look
		if w.load(who, theirs) != 0 {
			e.pc = exchange
		}
	case exchange, flushTake:
		if !fenced {
			return false, nil
		}
		old := w.memory[theirs]
		w.memory[theirs] = 0
		switch {
		case old != 0:
			e.pc++
		case e.pc == exchange:
			e.pc = look
		default:
			e.pc = sleep
		}
	case signalled:
		if !wake() {
			return false, nil
		}
		e.pc = look
	case waitFence:
		if v.waiterFence && !fenced {
			return false, nil
		}
		e.pc = second
		if !v.secondLook {
			e.pc = goToSleep
		}
	case second:
		if who == producer {
			e.limit = int8(w.load(who, wRead) + v.size)
			return true, saw(false, goToSleep)
		}
		e.seen = int8(w.load(who, first))
		e.pc = secondB
	case secondB:
		err = lookSecond(goToSleep)
	case flushFlag:
		owes := int(e.limit-e.own) > v.reserve
		if who == producer {
			owes = e.kept > 0
			e.kept = 0
		}
		e.pc = sleep
		if owes && w.load(who, theirs) != 0 {
			e.pc = flushTake
		}
	case flushSend:
		if e.region && v.lower {
			e.store(mine, 0)
		}
		e.region = false // gives the mutex up, signals, looks again
		if !wake() {
			return true, nil
		}
		e.pc = look
	case sleep:
		e.region = false
		e.pc = asleep
	case closing:
		if w.load(who, wState) == 0 {
			e.store(wState, 1)
			return true, nil
		}
		if !v.stateSignal {
			e.pc = ended
			return true, nil
		}
		if !wake() {
			return false, nil
		}
		e.pc = ended
	case asleep, ended:
		return false, nil
	}
	return true, err
}

// explore visits every reachable state and returns how many there are.
func (v variant) explore() (int, error) {
	var start world
	start.ends[producer].limit = int8(v.size)
	seen := map[world]bool{start: true}
	todo := []world{start}
	for len(todo) > 0 {
		w := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		stuck := true
		add := func(next world) {
			if next != w {
				stuck = false
			}
			if !seen[next] {
				seen[next] = true
				todo = append(todo, next)
			}
		}
		for who := range w.ends {
			next := w
			ok, err := v.step(&next, who)
			if err != nil {
				return len(seen), err
			}
			if ok {
				add(next)
			}
			if w.ends[who].n > 0 {
				next = w
				next.drain(who)
				add(next)
			}
		}
		if stuck && (w.ends[producer].pc != ended || w.ends[consumer].pc != ended) {
			return len(seen), fmt.Errorf("lost wake-up: producer at %d, consumer at %d, memory %v",
				w.ends[producer].pc, w.ends[consumer].pc, w.memory)
		}
	}
	return len(seen), nil
}

func TestWaitingModel(t *testing.T) {
	t.Parallel()
	rings(func(v variant) {
		n, err := v.explore()
		if err != nil {
			t.Errorf("size %d, min %d, reserve %d, hold %d: %v", v.size, v.min, v.reserve, v.hold, err)
		}
		t.Logf("size %d, min %d, reserve %d, hold %d: %d states", v.size, v.min, v.reserve, v.hold, n)
		if n < 100 {
			t.Errorf("size %d, min %d, reserve %d, hold %d: only %d states", v.size, v.min, v.reserve, v.hold, n)
		}
	})
}

// A model that can't fail proves nothing: each step that section 8 demands is
// left out once, and the model must notice.
func TestWaitingModelNoticesWhatIsMissing(t *testing.T) {
	t.Parallel()
	for name, omit := range map[string]func(*variant){
		"fence of the waker":                        func(v *variant) { v.wakerFence = false },
		"fence of the waiter":                       func(v *variant) { v.waiterFence = false },
		"second look":                               func(v *variant) { v.secondLook = false },
		"look at the flag before a consumer sleeps": func(v *variant) { v.flush = false },
		"look at the flag before a producer sleeps": func(v *variant) { v.tell = false },
		"signal after a state change":               func(v *variant) { v.stateSignal = false },
		"state before cursor":                       func(v *variant) { v.stateFirst = false },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			noticed := false
			rings(func(v variant) {
				if noticed {
					return
				}
				omit(&v)
				if _, err := v.explore(); err != nil {
					noticed = true
					t.Logf("size %d, min %d, reserve %d, hold %d: %v", v.size, v.min, v.reserve, v.hold, err)
				}
			})
			if !noticed {
				t.Error("the model found nothing wrong")
			}
		})
	}
}
