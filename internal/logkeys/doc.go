// Package logkeys has no code, only a test: the keys of this module's log
// records are those that docs/output.md lists, and each has one name.
package logkeys
