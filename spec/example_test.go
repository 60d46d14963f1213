package spec_test

import (
	"fmt"

	"github.com/fix-project/arcavm/spec"
)

// A file's description, with another number of CPUs over it, as a file.
func Example() {
	file, err := spec.Parse("vm.toml", []byte("image = 'httpd.elf'\nargs = ['0.0.0.0:80']\ncpus = 2\n"))
	if err != nil {
		fmt.Println(err)
		return
	}
	over := &spec.Spec{CPUs: 4}
	over.Say("cpus", "--cpus")
	text, err := file.Override(over).TOML()
	fmt.Print(string(text), err)
	// Output:
	// image = "httpd.elf"
	// args = ["0.0.0.0:80"]
	// cpus = 4
	// <nil>
}
