package spec

// origins has for a key the origin of its value, or of each value of a list. A
// value without an origin was set by a program.
type origins map[string][]string

// Say records where the value of a key was given, or each value that a list
// has, in the words for messages, such as "--mem". Call it when the value is
// set, once for a key.
func (s *Spec) Say(key, where string) {
	n := 1
	if k := keyNamed(key); k != nil {
		n = k.count(s)
	}
	for range n {
		s.say(key, where)
	}
	if n == 0 {
		s.say(key)
	}
}

// say appends origins of a key.
func (s *Spec) say(key string, where ...string) {
	if s.origins == nil {
		s.origins = make(origins)
	}
	s.origins[key] = append(s.origins[key], where...)
}

// said reports whether the key's value has an origin, even if it is the default
// or an empty list.
func (s *Spec) said(key string) bool {
	_, ok := s.origins[key]
	return ok
}

// Where returns the origin of value i of a key, where i is 0 if the key is no
// list. Without an origin it is the key.
func (s *Spec) Where(key string, i int) string {
	if at := s.origins[key]; i < len(at) {
		return at[i]
	}
	return key
}

// Error is a value that can't be used.
type Error struct {
	// Where is the origin of the value, such as "--mem", "vm.toml:3: mem" or
	// "mem", or a file alone. It may be empty.
	Where string
	// Kind is what kind of thing is wrong.
	Kind Kind
	Err  error
}

// Kind is what kind of thing is wrong with a value. A command makes its exit
// code of it.
type Kind int

const (
	// Invalid is a value that is wrong itself.
	Invalid Kind = iota
	// BadData is a file that doesn't hold what it should.
	BadData
	// Missing is a file or folder that doesn't exist or isn't one.
	Missing
	// Refused is a file or folder that the system doesn't let be used: Err says
	// why.
	Refused
)

func (e *Error) Error() string {
	if e.Where == "" {
		return e.Err.Error()
	}
	return e.Where + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }
