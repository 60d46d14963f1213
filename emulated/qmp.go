package emulated

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// monitor speaks QMP with QEMU (docs/interop/qmp-spec.txt). Not for concurrent
// use.
type monitor struct {
	conn    *net.UnixConn
	answers *bufio.Scanner // nil before the first command
}

// monitorPatience bounds the wait for an answer. QEMU answers at once where it
// gets a processor.
const monitorPatience = 30 * time.Second

// maxAnswer bounds an answer, in bytes.
const maxAnswer = 1 << 20

// do executes a command. arguments is what JSON makes an object of, or nil.
func (m *monitor) do(command string, arguments any) (json.RawMessage, error) {
	return m.send(command, arguments, nil)
}

// give hands a file to QEMU, under a name.
func (m *monitor) give(name string, f *os.File) error {
	_, err := m.send("getfd", map[string]string{"fdname": name}, unix.UnixRights(int(f.Fd())))
	return err
}

// human executes a command of the monitor for people, and returns what it
// prints.
func (m *monitor) human(command string) (string, error) {
	answer, err := m.do("human-monitor-command", map[string]string{"command-line": command})
	if err != nil {
		return "", err
	}
	var text string
	return text, json.Unmarshal(answer, &text)
}

func (m *monitor) send(command string, arguments any, rights []byte) (json.RawMessage, error) {
	if err := m.conn.SetDeadline(time.Now().Add(monitorPatience)); err != nil {
		return nil, err
	}
	if err := m.greet(); err != nil {
		return nil, fmt.Errorf("QEMU's greeting: %w", err)
	}
	answer, err := m.exchange(command, arguments, rights)
	if err != nil {
		return nil, fmt.Errorf("QEMU's %s: %w", command, err)
	}
	return answer, nil
}

// greet leaves the mode in which QEMU takes no other commands.
func (m *monitor) greet() error {
	if m.answers != nil {
		return nil
	}
	m.answers = bufio.NewScanner(m.conn)
	m.answers.Buffer(nil, maxAnswer)
	if _, err := m.next(); err != nil {
		return err
	}
	_, err := m.exchange("qmp_capabilities", nil, nil)
	return err
}

func (m *monitor) exchange(command string, arguments any, rights []byte) (json.RawMessage, error) {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return nil, err
	}
	if _, _, err := m.conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		return nil, err
	}
	return m.next()
}

// message is what QEMU says: a greeting, an event, or an answer.
type message struct {
	QMP    json.RawMessage
	Event  string
	Return json.RawMessage
	Error  *struct{ Desc string }
}

// await waits for an event, which comes after the last answer.
func (m *monitor) await(event string) error {
	for {
		got, err := m.read()
		if err != nil || got.Event == event {
			return err
		}
	}
}

// next reads an answer, past the events before it.
func (m *monitor) next() (json.RawMessage, error) {
	for {
		answer, err := m.read()
		switch {
		case err != nil:
			return nil, err
		case answer.Error != nil:
			return nil, errors.New(answer.Error.Desc)
		case answer.QMP != nil:
			return answer.QMP, nil
		case answer.Return != nil:
			return answer.Return, nil
		}
	}
}

func (m *monitor) read() (got message, err error) {
	if m.answers.Scan() {
		return got, json.Unmarshal(m.answers.Bytes(), &got)
	}
	if err := m.answers.Err(); err != nil {
		return got, err
	}
	return got, errors.New("it closed its monitor")
}
