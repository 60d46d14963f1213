// Package doccheck holds this module's own rule about its documents, as a test:
// each file that README, PROTOCOL.md or a page of docs names is there, and so
// is each link's target.
package doccheck
