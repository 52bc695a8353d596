package host

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/quic-go/quic-go"
)

// maxAddrs is how many addresses of a member are used.
const maxAddrs = 32

// parseAddrs reads multiaddrs, with the peer id at the end or without. It returns
// those that it can read, and why it cannot the others.
func parseAddrs(texts []string) (addrs []ma.Multiaddr, bad error) {
	for _, text := range texts[:min(len(texts), maxAddrs)] {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			bad = errors.Join(bad, fmt.Errorf("%q: %w", text, err))
			continue
		}
		if a, _ = peer.SplitAddr(a); len(a) > 0 {
			addrs = append(addrs, a)
		}
	}
	return addrs, bad
}

// listen listens on HOST:PORT, by TCP and, if that can be, by QUIC. Without a host
// that is IPv4 and, if the machine has it, IPv6, on the same port.
func (h *Host) listen(text string) error {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return err
	}
	if err := h.listenAt(text, host, port); err != nil {
		return err
	}
	h.listenQUIC(port == "0")
	return nil
}

func (h *Host) listenAt(text, host, port string) error {
	if host != "" {
		a, err := net.ResolveTCPAddr("tcp", text)
		if err != nil {
			return err
		}
		return h.listenTCP(a)
	}
	a, err := net.ResolveTCPAddr("tcp4", net.JoinHostPort("0.0.0.0", port))
	if err != nil {
		return err
	}
	if err := h.listenTCP(a); err != nil {
		return err
	}
	for _, l := range h.swarm.ListenAddresses() {
		if at, err := tcpAddr(l); err == nil {
			a.Port = at.Port
		}
	}
	if err := h.listenTCP(&net.TCPAddr{IP: net.IPv6zero, Port: a.Port}); err != nil {
		h.log.Info("not listening on IPv6", "err", err)
	}
	return nil
}

func (h *Host) listenTCP(a *net.TCPAddr) error {
	addr, err := manet.FromNetAddr(a)
	if err != nil {
		return err
	}
	return h.swarm.AddListenAddr(addr)
}

// listenUDP listens by QUIC on a port of UDP.
func (h *Host) listenUDP(a *net.TCPAddr) error {
	addr, err := quicreuse.ToQuicMultiaddr(&net.UDPAddr{IP: a.IP, Port: a.Port}, quic.Version1)
	if err != nil {
		return err
	}
	return h.swarm.AddListenAddr(addr)
}

func tcpAddr(a ma.Multiaddr) (*net.TCPAddr, error) {
	n, err := manet.ToNetAddr(a)
	if err != nil {
		return nil, err
	}
	at, ok := n.(*net.TCPAddr)
	if !ok {
		return nil, fmt.Errorf("%s is no address of TCP", a)
	}
	return at, nil
}

// Addrs returns the multiaddrs at which this node listens, without its peer id, in
// the same order each time: of all interfaces if it listens on all. Those of TCP come
// before those of QUIC. Those of the machine itself (loopback) come last, and only if
// there are no others or it listens on them expressly.
func (h *Host) Addrs() []string {
	all, err := h.swarm.InterfaceListenAddresses()
	if err != nil {
		h.log.Warn("addresses of the interfaces are not known", "err", err)
	}
	express := h.swarm.ListenAddresses()
	all = slices.DeleteFunc(all, manet.IsIP6LinkLocal) // of no use without the name of an interface
	slices.SortFunc(all, func(a, b ma.Multiaddr) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.String(), b.String()))
	})
	var out []string
	for _, a := range all {
		if manet.IsIPLoopback(a) && len(out) > 0 && !ma.Contains(express, a) && !manet.IsIPLoopback(all[0]) {
			continue
		}
		out = append(out, a.String())
	}
	return slices.Compact(out)
}

// rank says which addresses come first: there may be more than are told to others.
func rank(a ma.Multiaddr) (r int) {
	if manet.IsIPLoopback(a) {
		r += 2
	}
	if !isTCP(a) {
		r++
	}
	return r
}
