package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/fix-project/arcavm/network"
	"github.com/fix-project/arcavm/share"
	"github.com/fix-project/arcavm/vmm"
	"github.com/fix-project/arcavm/vmm/image"
)

// Machine is a configuration for [vmm.New], and what was opened for it.
type Machine struct {
	Spec *Spec
	// Config has the image, what was read for TLS, and the network; from
	// OpenFolders on also the folders. The caller adds where output goes, and
	// hooks.
	Config vmm.Config
	// Policy is Config.Network, for a hook that tells of published ports.
	Policy *network.Policy
	// PEM is what the files for TLS held.
	PEM PEM
}

// Check finds what is wrong with the description itself. It needs no image, and
// opens no file. Errors are of type *[Error].
func (s *Spec) Check() error {
	for _, k := range keys {
		if i, err := k.check(s); err != nil {
			return s.invalid(k.name(), i, err)
		}
	}
	// The zero values are defaults, but not where they were asked for.
	if s.said("cpus") && s.CPUs == 0 {
		return s.invalid("cpus", 0, notCPUs(0))
	}
	if s.said("mem") && s.Memory == 0 {
		return s.invalid("mem", 0, errNoMemory)
	}
	if i, err := checkFolders(s.Shares); err != nil {
		return s.invalid("share", i, err)
	}
	if i, err := checkFolders(s.Sockets); err != nil {
		return s.invalid("sockets", i, err)
	}
	if i, err := CheckPublished(s.Network.Publish); err != nil {
		return s.invalid("publish", i, err)
	}
	return s.checkTLS()
}

func (s *Spec) invalid(key string, i int, err error) error {
	return &Error{Where: s.Where(key, i), Err: err}
}

// Load reads the files for TLS, opens the image, and checks all that can be
// checked without KVM and without the folders. The caller closes the machine.
// Load waits for the writer of a pipe that is named for TLS.
func (s *Spec) Load() (*Machine, error) {
	m, err := s.prepare()
	if err != nil {
		return nil, err
	}
	img, err := image.Open(s.Image)
	if err != nil {
		return nil, &Error{Where: s.Where("image", 0), Kind: Refused, Err: err}
	}
	return m.with(img)
}

// LoadImage is [Spec.Load] for an image that is open already. It is closed with
// the machine, or if there is an error.
func (s *Spec) LoadImage(img *image.Image) (*Machine, error) {
	m, err := s.prepare()
	if err != nil {
		return nil, errors.Join(err, img.Close())
	}
	return m.with(img)
}

// prepare makes a machine that has no image yet.
func (s *Spec) prepare() (*Machine, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	m := &Machine{Spec: s, Config: vmm.Config{
		Args: s.Args, CPUs: s.CPUs, Memory: uint64(s.Memory), Window: uint64(s.Window), ABI: s.ABI,
	}}
	s.Limits.apply(&m.Config)
	var err error
	if m.Policy, err = s.Network.policy(); err != nil {
		return nil, err
	}
	m.Config.Network = m.Policy
	m.Config.TLS, m.PEM, err = s.loadTLS()
	return m, err
}

// with gives the machine its image, and checks what depends on that.
func (m *Machine) with(img *image.Image) (*Machine, error) {
	m.Config.Image = img
	err := m.Spec.refuseStreamOnly(img)
	if err == nil {
		err = m.Explain(m.Config.Validate())
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// refuseStreamOnly refuses values that a guest of an older ABI can't make use
// of, if the image is of one.
func (s *Spec) refuseStreamOnly(img *image.Image) error {
	abi := s.ABI
	if abi == image.ABIAuto {
		abi, _ = img.ABI()
	}
	if !abi.Older() {
		return nil
	}
	useless := map[string]bool{"sockets": len(s.Sockets) > 0, "tls-ca": len(s.TLS.CA) > 0, "tls-cert": s.TLS.Cert != ""}
	for _, l := range limits {
		useless[limitPrefix+l.name] = !l.older && *l.of(&s.Limits) != 0
	}
	for _, k := range keys {
		if useless[k.name()] {
			return s.invalid(k.name(), 0, fmt.Errorf("%s speaks one of the older ABIs, which can't make use of it; leave it out", img.Name))
		}
	}
	return nil
}

// fieldKeys are the keys by the field that a [vmm.ConfigError] names.
var fieldKeys = map[string]string{
	"sockets": "sockets", "share": "share", "arguments": "args",
	"cpus": "cpus", "memory": "mem", "window": "window", "abi": "abi",
	"stream limit": limitPrefix + "streams", "ring limit": limitPrefix + "ring-memory",
}

// KeyOf returns the key for a field that a [vmm.ConfigError] names, or "".
func KeyOf(field string) string { return fieldKeys[field] }

// Explain returns an error of [vmm.New] as an *[Error] with the origin of the
// value that it is about. An error about something else comes back as it is.
func (m *Machine) Explain(err error) error {
	var config *vmm.ConfigError
	if !errors.As(err, &config) {
		return err
	}
	key := KeyOf(config.Field)
	if key == "" {
		return err
	}
	return m.Spec.invalid(key, 0, errors.New(config.Reason))
}

// OpenFolders opens the folders that the guest may reach, and puts them into
// Config. Call it once. Errors are of type *[Error].
func (m *Machine) OpenFolders() error {
	var err error
	if m.Config.Share, err = m.Spec.openFolders("share", m.Spec.Shares); err != nil {
		return err
	}
	m.Config.Sockets, err = m.Spec.openFolders("sockets", m.Spec.Sockets)
	return err
}

// Close closes the image and the folders. The machine must have ended.
func (m *Machine) Close() error {
	err := errors.Join(m.Config.Share.Close(), m.Config.Sockets.Close())
	if m.Config.Image != nil {
		err = errors.Join(err, m.Config.Image.Close())
	}
	return err
}

func (s *Spec) openFolders(key string, folders []Folder) (all share.Share, err error) {
	named := make(map[string]share.Share)
	for i, f := range folders {
		opened, openErr := openFolder(s.Where(key, i), f)
		if openErr != nil {
			all.Named = named
			return share.Share{}, errors.Join(openErr, all.Close())
		}
		if f.Name == "" {
			all = opened
		} else {
			named[f.Name] = opened
		}
	}
	all.Named = named
	return all, nil
}

func openFolder(where string, f Folder) (share.Share, error) {
	s, err := share.Open(f.Dir, f.Writable)
	if err == nil {
		return s, nil
	}
	if info, statErr := os.Stat(f.Dir); statErr == nil && !info.IsDir() {
		return s, notFolder(where, f)
	}
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		err = path // the origin says what for
	}
	return s, openError(where, err)
}

func notFolder(where string, f Folder) error {
	return &Error{Where: where, Kind: Missing, Err: fmt.Errorf("%s is not a folder", f.Dir)}
}
