// Package unsafecheck holds this module's rule about package unsafe, as a test
// over all its Go files. Unsafe is imported only in files named *_unsafe.go or
// *_unsafe_test.go, each small enough to check by eye. A pointer becomes a
// uintptr only inside the argument list of a system call, where Go keeps the
// object in place until the call returns.
package unsafecheck
