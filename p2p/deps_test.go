package p2p_test

import (
	_ "github.com/anishathalye/porcupine"
	_ "github.com/hashicorp/memberlist"
	_ "github.com/libp2p/go-libp2p"
	_ "github.com/multiformats/go-multiaddr"
	_ "go.etcd.io/raft/v3"
)
