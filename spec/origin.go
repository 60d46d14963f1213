package spec

// origins says by key where its value was given, or each value of a list. A
// key without one was set by a program.
type origins map[string][]string

// Say records where the value of a key was given, of a list each that there is,
// in the words for messages: "--mem", or "vm.toml:3: mem". A limit's key is
// limit.NAME.
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

// say appends to where the values of a key were given.
func (s *Spec) say(key string, where ...string) {
	if s.origins == nil {
		s.origins = make(origins)
	}
	s.origins[key] = append(s.origins[key], where...)
}

// said reports whether the key's value was given by a flag or a file.
func (s *Spec) said(key string) bool {
	_, ok := s.origins[key]
	return ok
}

// Where returns where value i of a key was given, 0 for one that isn't a list:
// the words of [Spec.Say], or the key.
func (s *Spec) Where(key string, i int) string {
	if at := s.origins[key]; i < len(at) {
		return at[i]
	}
	return key
}

// Error is a value that can't be used.
type Error struct {
	// Where is where the value was given: a flag, a key, or a file, its line
	// and the key.
	Where string
	// Kind is what is wrong.
	Kind Kind
	Err  error
}

// Kind is what kind of thing is wrong with a value.
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
