// Package spec describes a virtual machine as data: a [Spec] is filled by
// flags, by a TOML file ([Read]) or by JSON, and [Spec.Load] makes of it what
// package vmm runs. It is the one place where sizes, limits, folders, rules and
// ports are read from text.
//
// Its words:
//
//   - description: a [Spec]
//   - document: a description in TOML or JSON
//   - key: the name of a value in a document; most are names of run's flags
//   - entry: a key of a document that is being read, with its value
//   - place: the file and the lines of an entry
//   - origin: where a value was given, in the words that messages use
//   - machine: a configuration of package vmm that a description was made into,
//     with what was opened for it
package spec
