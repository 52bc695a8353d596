package host

import (
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"

	"github.com/cairnfs/cairn/p2p"
)

// maxFound is how many of the addresses that an announcement has are used. Anybody
// on the local network can announce anything, and what is dialled proves itself.
const maxFound = 16

// announce has members on the local network find this node's addresses, and finds
// theirs. If that cannot be, the registered addresses have to do.
func (h *Host) announce(cluster string) {
	name := "_cairn-" + cluster[:min(len(cluster), 8)] + "._udp"
	service := mdns.NewMdnsService(mdnsHost{swarm: h.swarm}, name, found{h})
	if err := service.Start(); err != nil {
		h.log.Warn("members on the local network are not looked for", "err", err)
		_ = service.Close() // it has not started
		return
	}
	h.mdns = service
}

// found is told what nodes there are.
type found struct{ h *Host }

// HandlePeerFound implements mdns.Notifee.
func (f found) HandlePeerFound(info peer.AddrInfo) {
	if !f.h.gate.member(p2p.PeerID(info.ID.String())) || len(f.h.peers.Addrs(info.ID)) > 2*maxAddrs {
		return
	}
	f.h.peers.AddAddrs(info.ID, info.Addrs[:min(len(info.Addrs), maxFound)], peerstore.TempAddrTTL)
}

// mdnsHost is as much of a libp2p host as mDNS asks for.
type mdnsHost struct {
	host.Host // nil
	swarm     network.Network
}

func (m mdnsHost) ID() peer.ID              { return m.swarm.LocalPeer() }
func (m mdnsHost) Network() network.Network { return m.swarm }
