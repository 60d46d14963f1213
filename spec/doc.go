// Package spec describes a virtual machine as data: a [Spec] is filled by
// flags, by a TOML file ([Read]) or by JSON, and [Spec.Load] makes of it what
// package vmm runs. It is the one place where sizes, limits, folders, rules and
// ports are read from text.
//
// Its words:
//
//   - key: what a document names a value by; most are the names of flags
//   - document: a description in TOML or JSON
//   - place: the file and line of a key or of a list's value
//   - origin: where a value was given, in the words of messages
//   - machine: a description's configuration, with what was opened for it
package spec
