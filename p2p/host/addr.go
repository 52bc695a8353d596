package host

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
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

// listen listens on HOST:PORT. Without a host that is IPv4 and, if the machine has
// it, IPv6, on the same port.
func (h *Host) listen(text string) error {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return err
	}
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
		if p, err := l.ValueForProtocol(ma.P_TCP); err == nil {
			a.Port, _ = strconv.Atoi(p)
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

// Addrs returns the multiaddrs at which this node listens, without its peer id: of
// all interfaces if it listens on all. Those of the machine itself (loopback) come
// last, and only if there are no others or it listens on them expressly.
func (h *Host) Addrs() []string {
	all, err := h.swarm.InterfaceListenAddresses()
	if err != nil {
		h.log.Warn("addresses of the interfaces are not known", "err", err)
	}
	express := h.swarm.ListenAddresses()
	all = slices.DeleteFunc(all, manet.IsIP6LinkLocal) // of no use without the name of an interface
	slices.SortStableFunc(all, func(a, b ma.Multiaddr) int {
		return cmp.Compare(rank(a), rank(b))
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

func rank(a ma.Multiaddr) int {
	if manet.IsIPLoopback(a) {
		return 1
	}
	return 0
}
