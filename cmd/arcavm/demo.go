package main

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/fix-project/arcavm/spec"
	"github.com/fix-project/arcavm/testdata/images"
	"github.com/fix-project/arcavm/vmm/image"
)

func newDemoCommand(s streams) *cobra.Command {
	m := newMachine(s, &spec.Spec{ABI: image.ABIStream})
	var port uint16
	cmd := &cobra.Command{
		Use:   "demo [flags]",
		Short: "Boot the built-in web server guest",
		Long: `Boot a guest kernel that serves a web page, and print the URL to open. The guest is
part of this program; it listens on 127.0.0.1 only. Ctrl-C ends it.`,
		Example: `  arcavm demo
  arcavm demo --port 8080 --cpus 2
  curl http://127.0.0.1:PORT/              the page
  curl http://127.0.0.1:PORT/bytes/1000    a thousand bytes
  curl --data hello http://127.0.0.1:PORT/echo`,
		DisableFlagsInUseLine: true,
		Args:                  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			img, err := image.ParseBytes(images.Bytes("httpd"), "httpd")
			if err != nil {
				return err
			}
			m.onListen = func(address netip.AddrPort) {
				fmt.Fprintf(s.out, "open http://%v/ (Ctrl-C ends it)\n", address)
			}
			m.spec.Args = []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))}
			sayFlags(cmd.Flags(), m.spec)
			loaded, err := m.spec.LoadImage(img)
			if err != nil {
				return err
			}
			defer loaded.Close()
			return m.boot(loaded)
		},
	}
	addMachineFlags(cmd, m.spec)
	cmd.Flags().Uint16Var(&port, "port", 0, "TCP `PORT` to listen on; 0 takes one that is free")
	return cmd
}
