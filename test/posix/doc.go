// Package posix says what programs may expect of a directory, as tests: one rule
// is one subtest, rules are grouped by operation, and each rule is a sentence of
// the manual page (section 2) of the calls it makes. It needs nothing but the
// path of a directory, so the same rules hold a mount of Cairn, a mount of a
// cluster, and, to test the tests, a local disk to the same standard.
//
// What file systems may differ in is not skipped but declared, as Traits.
//
// The rules run on Linux and as root, because they change users and mount.
package posix
