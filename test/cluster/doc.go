// Package cluster says what a user may expect of Cairn on several machines, as
// tests: real processes of the real binary, each in a network namespace of its
// own, with a wire between them that can be cut. What the nodes do to each other
// they do over TCP or QUIC, and what the tests see they see through FUSE mounts and the
// output of commands.
//
// The tests need root, FUSE, and the programs ip, ss, tc, nft and nsenter. Where these are
// missing they are skipped, unless CAIRN_REQUIRE_FUSE=1 makes that a failure. They
// take minutes and are left out with -short. With CAIRN_BINARY=PATH they run that
// binary instead of one they build; CAIRN_CLUSTER_LOG=debug has nodes log more.
package cluster
