package node

import (
	"context"

	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/host"
)

// network is a node's end of the cluster's network, as host.Host describes it. Tests
// have one in memory, on which whole clusters are simulated.
type network interface {
	p2p.Transport
	SetMembers([]p2p.Member)
	OpenDoor(open bool)
	HandleStranger(p2p.Protocol, p2p.Handler)
	HandleAnyone(p2p.Protocol, p2p.Handler)
	CallStranger(ctx context.Context, to p2p.PeerID, addrs []string, p p2p.Protocol, req []byte) ([]byte, error)
	Addrs() []string
	Traffic() (sent, received int64)
	Close() error
}

func openHost(o host.Options) (network, error) {
	h, err := host.Open(o)
	if err != nil {
		return nil, err // not a nil *host.Host
	}
	return h, nil
}
