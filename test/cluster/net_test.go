//go:build linux

package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// lan is a network of its own: a namespace with a switch in it, and one namespace
// for each machine, with a cable to the switch. Nothing of it shows in the network
// of the host.
type lan struct {
	prefix string // of the names of namespaces
	subnet [3]byte
	hosts  []netns
}

// netns is the network namespace of a machine.
type netns struct {
	name string
	addr netip.Addr
}

// lans counts the networks of this process.
var lans atomic.Int32

// command runs a program and returns an error that says what it said.
func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// commands runs several, each a line of words.
func commands(lines ...string) error {
	for _, line := range lines {
		words := strings.Fields(line)
		if err := command(words[0], words[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// tryNamespace says why no network can be made, if so.
var tryNamespace = sync.OnceValue(func() error {
	name := fmt.Sprintf("cairn-%d-try", os.Getpid())
	if err := commands("ip netns add "+name, "ip -n "+name+" link add sw type bridge"); err != nil {
		return errors.Join(err, command("ip", "netns", "del", name))
	}
	return commands("nsenter --net=/run/netns/"+name+" nft add table inet cut", "ip netns del "+name)
})

// newLAN makes a network without machines.
func newLAN(t testing.TB) *lan {
	t.Helper()
	n := lans.Add(1)
	l := &lan{
		prefix: fmt.Sprintf("cairn-%d-%d-", os.Getpid(), n),
		subnet: [3]byte{10, byte(1 + os.Getpid()%250), byte(n)},
	}
	sw := l.prefix + "sw"
	t.Cleanup(func() { _ = command("ip", "netns", "del", sw) })
	err := commands("ip netns add "+sw, "ip -n "+sw+" link add sw type bridge", "ip -n "+sw+" link set sw up")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// plug adds a machine.
func (l *lan) plug(t testing.TB) netns {
	t.Helper()
	i := len(l.hosts) + 1
	ns := netns{
		name: fmt.Sprint(l.prefix, i),
		addr: netip.AddrFrom4([4]byte{l.subnet[0], l.subnet[1], l.subnet[2], byte(i)}),
	}
	l.hosts = append(l.hosts, ns)
	sw, port := l.prefix+"sw", fmt.Sprint("port", i)
	t.Cleanup(func() { _ = command("ip", "netns", "del", ns.name) })
	err := commands(
		"ip netns add "+ns.name,
		"ip -n "+sw+" link add "+port+" type veth peer name eth0 netns "+ns.name,
		"ip -n "+sw+" link set "+port+" master sw up",
		fmt.Sprintf("ip -n %s addr add %v/24 dev eth0", ns.name, ns.addr),
		"ip -n "+ns.name+" link set lo up",
		"ip -n "+ns.name+" link set eth0 up",
		fmt.Sprintf("ip -n %s route add default dev eth0", ns.name), // for multicast
	)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// inside returns the words that start a program in the namespace. Unlike `ip netns
// exec` it leaves the program among the mounts of the test, and the process that is
// started is the program's.
func (ns netns) inside(args ...string) []string {
	return append([]string{"nsenter", "--net=/run/netns/" + ns.name, "--"}, args...)
}

// refuse makes the machine lose all packets from and to others, as a cable does
// that was pulled somewhere between: connections stay and hang.
func (ns netns) refuse(others []netns) error {
	if len(others) == 0 {
		return nil
	}
	var addrs []string
	for _, o := range others {
		addrs = append(addrs, o.addr.String())
	}
	set := "{ " + strings.Join(addrs, ", ") + " }"
	rules := fmt.Sprintf(`add table inet cut
add chain inet cut in { type filter hook input priority 0; }
add chain inet cut out { type filter hook output priority 0; }
add rule inet cut in ip saddr %s drop
add rule inet cut out ip daddr %s drop
`, set, set)
	return ns.nft(rules)
}

// nft adds rules to those of the machine.
func (ns netns) nft(rules string) error {
	words := ns.inside("nft", "-f", "-")
	c := exec.Command(words[0], words[1:]...)
	c.Stdin = strings.NewReader(rules)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// refuseTCP makes the machine lose all packets of TCP, as a firewall may.
func (ns netns) refuseTCP() error {
	return ns.nft(`add table inet cut
add chain inet cut in { type filter hook input priority 0; }
add chain inet cut out { type filter hook output priority 0; }
add rule inet cut in meta l4proto tcp iifname eth0 drop
add rule inet cut out meta l4proto tcp oifname eth0 drop
`)
}

// hide adds a machine behind a router, which gives what the machine sends its own
// address and lets in nothing but answers.
func (l *lan) hide(t testing.TB) netns {
	t.Helper()
	router := l.plug(t)
	ns := netns{name: router.name + "-behind", addr: netip.AddrFrom4([4]byte{192, 168, 77, 2})}
	t.Cleanup(func() { _ = command("ip", "netns", "del", ns.name) })
	forward := router.inside("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
	err := errors.Join(
		commands(
			"ip netns add "+ns.name,
			"ip -n "+router.name+" link add inside type veth peer name eth0 netns "+ns.name,
			"ip -n "+router.name+" addr add 192.168.77.1/24 dev inside",
			"ip -n "+router.name+" link set inside up",
			fmt.Sprintf("ip -n %s addr add %v/24 dev eth0", ns.name, ns.addr),
			"ip -n "+ns.name+" link set lo up",
			"ip -n "+ns.name+" link set eth0 up",
			"ip -n "+ns.name+" route add default via 192.168.77.1",
		),
		command(forward[0], forward[1:]...),
		router.nft(`add table ip nat
add chain ip nat out { type nat hook postrouting priority 100; }
add rule ip nat out oifname eth0 masquerade
add chain ip nat through { type filter hook forward priority 0; }
add rule ip nat through iifname eth0 ct state established,related accept
add rule ip nat through iifname eth0 drop
`))
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// admit undoes refuse.
func (ns netns) admit() error {
	words := ns.inside("nft", "flush", "ruleset")
	return command(words[0], words[1:]...)
}
