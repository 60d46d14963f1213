// Package message encodes and decodes the messages of Arca's request/response
// ABI, for either end.
//
// A message on a ring is its length as a little-endian u64, then a postcard
// encoding: an enum variant and integers as LEB128 varints, signed ones zigzag
// first, strings and byte vectors after a varint length, bool and u8 as one
// byte, no padding, fields in order. The functions here deal with the encoding;
// the length is the caller's, see [LengthSize].
//
// They are pure and know no operating system. Append functions append to a
// slice and return it, Decode functions never panic, whatever they are given,
// and take exactly the bytes of one message.
package message

import "errors"

// LengthSize is the size of the length before every message.
const LengthSize = 8

// ErrMalformed is in the chain of every error of a Decode function.
var ErrMalformed = errors.New("malformed message")
