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
//
// Words of this package:
//
//   - control pipe: where a guest asks for its arguments and for other pipes.
//   - dialect: how a guest numbers its requests on the control pipe, A or B.
//   - head: the first bytes of a request, enough to decode it; see [HeadSize].
//   - request, response: what a guest sends, and what the monitor answers.
//   - variant: the number at the beginning of a message that says what it is.
package message

import "errors"

// LengthSize is the size of the length before every message.
const LengthSize = 8

// ErrMalformed is in the chain of every error of a Decode function.
var ErrMalformed = errors.New("malformed message")
