package cmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairnfs/cairn/node"
	"github.com/cairnfs/cairn/node/control"
)

// online are the flags of commands that run a node.
type online struct {
	listen     string
	name       string
	cacheSize  size
	repairRate size
}

func (o *online) flags(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&o.listen, "listen", "", "`HOST:PORT` to listen on as a member of a cluster, port 0 is any free one (default: as before, at first "+node.DefaultListen+")")
	flags.StringVar(&o.name, "name", "", "what to call this node (default: the name of the host)")
	flags.Var(&o.cacheSize, "cache-size", "disk space for blocks of other nodes that were read here (default 10 GiB)")
	flags.Var(&o.repairRate, "repair-rate", "bytes a second, at most, for bringing blocks to the nodes that lack them (default: no limit)")
	for _, name := range []string{"cache-size", "repair-rate"} {
		flags.Lookup(name).DefValue = "0" // which help does not show
	}
}

func (o *online) apply(n *node.Options) {
	n.Listen, n.Name = o.listen, o.name
	n.BlockCache, n.RepairRate = int64(o.cacheSize), int64(o.repairRate)
}

// args returns the flags as they were given, for a daemon.
func (o *online) args() (args []string) {
	if o.listen != "" {
		args = append(args, "--listen", o.listen)
	}
	if o.name != "" {
		args = append(args, "--name", o.name)
	}
	if o.cacheSize > 0 {
		args = append(args, "--cache-size", strconv.FormatInt(int64(o.cacheSize), 10))
	}
	if o.repairRate > 0 {
		args = append(args, "--repair-rate", strconv.FormatInt(int64(o.repairRate), 10))
	}
	return args
}

func (a *app) inviteCmd() *cobra.Command {
	var o control.InviteOptions
	var revoke string
	c := &cobra.Command{
		Use:     "invite",
		GroupID: groupCluster,
		Short:   "Let another machine join, by a token",
		Long: `Invite prints a token, one line, with which another machine joins: "cairn join
TOKEN" there, on an empty data directory, while this node runs. The first
invitation makes this node the first of a new cluster and has it listen.

Whoever has the token can join and then read and change everything: treat it as
a password. It is good for one node and one hour unless you say otherwise.

A node of role storage keeps its share of the blocks; one of role client keeps
only what it has read.`,
		Example: example("cairn invite", "cairn invite --ttl 10m --role client", "cairn invite --revoke TOKEN"),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), true, func(n control.Node) error {
				if revoke != "" {
					return fail("revoke", "invitation", n.RevokeInvite(c.Context(), revoke))
				}
				i, err := n.Invite(c.Context(), o)
				if err != nil {
					return fail("invite", "a node", err)
				}
				if _, err := fmt.Fprintln(a.Out, i.Token); err != nil {
					return err
				}
				fmt.Fprintf(a.Err, "cairn: good until %s; on the other machine, with an empty data directory: cairn join TOKEN\n",
					i.Expires.Local().Format("15:04:05 on 2 January"))
				if _, own := n.(*node.Node); own {
					fmt.Fprintln(a.Err, "cairn: no node is running here: start `cairn mount` or `cairn serve` first, or nobody answers who joins")
				}
				return nil
			})
		},
	}
	flags := c.Flags()
	flags.DurationVar(&o.TTL, "ttl", time.Hour, "how long the token is good")
	flags.IntVar(&o.Uses, "uses", 1, "how many nodes may join with it")
	flags.StringVar(&o.Role, "role", "storage", "what the new node is for: storage or client")
	flags.StringVar(&o.Peer, "peer", "", "`ID` of the only node that may join with it")
	flags.StringVar(&o.Listen, "listen", "", "`HOST:PORT` to listen on, for the first invitation")
	flags.StringVar(&revoke, "revoke", "", "make this `TOKEN` worthless instead")
	return c
}

func (a *app) joinCmd() *cobra.Command {
	var o node.JoinOptions
	var id bool
	c := &cobra.Command{
		Use:     "join TOKEN",
		GroupID: groupCluster,
		Short:   "Become a member of a cluster",
		Long: `Join makes the data directory, which must be empty, that of a member of the
cluster that the token is of. It returns when that is done; "cairn mount" or
"cairn serve" then runs the node. TOKEN may be - to read it from stdin. With --id it
prints the id that this node will have, for "cairn invite --peer ID".

With --rejoin the data directory is that of a former member: one that was removed,
left behind by "cairn recover", or restored from a copy. It becomes that of a new
member that keeps the blocks, so that only what it lacks has to be sent. Its names
give way to those of the cluster: what only this node had of them is lost, also
what was added to it and pinned. The node that founded the cluster must have been
refused by it: else nobody else may have its names.`,
		Example: example("cairn join cairn1-AQ…", "ssh first cairn invite | cairn join -", "cairn join --rejoin cairn1-AQ…"),
		Args: func(c *cobra.Command, args []string) error {
			if id {
				return cobra.NoArgs(c, args)
			}
			return cobra.ExactArgs(1)(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			if id {
				return a.identity()
			}
			return a.join(c.Context(), args[0], o)
		},
	}
	c.Flags().StringVar(&o.Listen, "listen", "", "`HOST:PORT` that the node will listen on (default "+node.DefaultListen+")")
	c.Flags().StringVar(&o.Name, "name", "", "what to call this node (default: the name of the host)")
	c.Flags().BoolVar(&o.Rejoin, "rejoin", false, "make a new member of a former one, with its blocks")
	c.Flags().BoolVar(&id, "id", false, "print the id that the node will have, and do nothing else")
	return c
}

// identity prints the peer id of this node.
func (a *app) identity() error {
	dir, err := a.dir()
	if err != nil {
		return err
	}
	id, err := node.Identity(dir, a.logger(a.Err))
	if err != nil {
		return fail("join", dir, err)
	}
	_, err = fmt.Fprintln(a.Out, id)
	return err
}

// maxToken bounds what is read of a token.
const maxToken = 8 << 10

// join makes the data directory that of a member.
func (a *app) join(ctx context.Context, token string, o node.JoinOptions) error {
	if token == "-" {
		text, err := io.ReadAll(io.LimitReader(a.In, maxToken))
		if err != nil {
			return fail("read", "token", err)
		}
		token = string(text)
	}
	dir, err := a.dir()
	if err != nil {
		return err
	}
	o.Dir, o.Token, o.Logger = dir, token, a.logger(a.Err)
	j, err := node.Join(ctx, o)
	if err != nil {
		return fail("join", dir, err)
	}
	_, err = fmt.Fprintf(a.Out, "joined %s as %s\n", j.Cluster, j.ID)
	if j.Former != "" {
		fmt.Fprintf(a.Err, "cairn: what this node was before is still a member; `cairn peers remove %s` ends that\n", shortID(string(j.Former)))
	}
	if j.Role == "storage" && j.Storage == 2 {
		fmt.Fprintln(a.Err, "cairn: with two nodes, both are needed for every change from now on; a third removes that")
	}
	return err
}

func (a *app) peersCmd() *cobra.Command {
	peers := &cobra.Command{
		Use:     "peers",
		GroupID: groupCluster,
		Short:   "See and change who belongs to the cluster",
		Long: `Peers lists the other members: the end of the id, name, role, whether it takes part
in ordering changes, state and how much it stores.

A member is named by its id, the last characters of it (six at least), or its
name.`,
		Example: example("cairn peers", "cairn peers remove 7Qk3mZpA", "cairn peers drain attic"),
		Args:    cobra.NoArgs,
	}
	var asJSON bool
	peers.RunE = func(c *cobra.Command, _ []string) error {
		return a.inspect(c.Context(), func(n control.Node) error {
			s, err := n.Status(c.Context())
			if err != nil {
				return err
			}
			if asJSON {
				out := json.NewEncoder(a.Out)
				out.SetIndent("", "  ")
				return out.Encode(append([]control.PeerStatus{}, s.Peers...))
			}
			return a.printPeers(s)
		})
	}
	peers.Flags().BoolVar(&asJSON, "json", false, "print a JSON array, as in status")
	remove := &cobra.Command{
		Use:   "remove PEER",
		Short: "End a membership at once",
		Long: `Remove takes a node out of the cluster: its connections are closed, it is not
listened to any more, and its blocks are copied from the other nodes that have
them. If it may be the only one that has some, drain it first. It cannot come
back as it is: "cairn join --rejoin" makes it a new member that has its blocks.`,
		Example: example("cairn peers remove 7Qk3mZpA"),
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.with(c.Context(), false, func(n control.Node) error {
				return fail("remove", args[0], n.RemovePeer(c.Context(), args[0]))
			})
		},
	}
	var wait, undo bool
	drain := &cobra.Command{
		Use:   "drain PEER",
		Short: "Have a node's blocks moved to the others",
		Long: `Drain has all blocks of a node moved to the others, so that it can be removed
without loss. With --wait it returns when that is done. What the node stores falls
to nothing, as cairn peers shows.`,
		Example: example("cairn peers drain --wait attic && cairn peers remove attic"),
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.with(c.Context(), false, func(n control.Node) error {
				if err := n.DrainPeer(c.Context(), args[0], undo); err != nil {
					return fail("drain", args[0], err)
				}
				if !wait || undo {
					return nil
				}
				return fail("drain", args[0], a.awaitDrained(c.Context(), n, args[0]))
			})
		},
	}
	drain.Flags().BoolVar(&wait, "wait", false, "return when all its blocks are elsewhere")
	drain.Flags().BoolVar(&undo, "undo", false, "let it own blocks again")
	peers.AddCommand(remove, drain)
	return peers
}

// awaitDrained waits until a member's blocks are elsewhere.
func (a *app) awaitDrained(ctx context.Context, n control.Node, peer string) error {
	p := a.newProgress("draining", -1)
	defer p.stop()
	for {
		s, err := n.Status(ctx)
		if err != nil {
			return err
		}
		if s.Node != nil && named(peer, s.Node.ID, s.Node.Name) && s.Node.Drained {
			return nil
		}
		for _, m := range s.Peers {
			if named(peer, m.ID, m.Name) && m.Drained {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// named reports whether text names the member.
func named(text, id, name string) bool {
	return text == id || text == name || len(text) >= 6 && strings.HasSuffix(id, text)
}

func (a *app) printPeers(s control.Status) error {
	if s.Cluster == nil {
		fmt.Fprintln(a.Err, "cairn: this store belongs to no cluster; `cairn invite` begins one")
		return nil
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tNAME\tROLE\tVOTES\tSTATE\tUSED\tLAST SEEN")
	for _, p := range s.Peers {
		votes, seen := "no", "never"
		if p.Voter {
			votes = "yes"
		}
		if p.State == "alive" {
			seen = "now"
		} else if t, err := time.Parse(time.RFC3339, p.LastSeen); err == nil {
			seen = t.Local().Format("15:04:05 on 2 January")
		}
		state := p.State
		if p.Drained {
			state = "drained"
		}
		if p.Away {
			state += ", away"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", shortID(p.ID), printable(p.Name), p.Role, votes, state, bytesText(p.UsedBytes), seen)
	}
	return w.Flush()
}

// shortID is the end of an id, which tells members apart.
func shortID(id string) string {
	if len(id) > 8 {
		return id[len(id)-8:]
	}
	return id
}

func (a *app) configCmd() *cobra.Command {
	config := &cobra.Command{
		Use:     "config",
		GroupID: groupCluster,
		Short:   "Change what the whole cluster goes by",
		Example: example("cairn config set copies 2"),
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	set := &cobra.Command{
		Use:   "set NAME VALUE",
		Short: "Set a value",
		Long: `Set sets a value for the whole cluster. There is one:

  copies N   how many nodes hold each block, 1 to 16 (default: 3, or as many as
             there are); "default" sets it back. More copies than now are made
             in the background, see blocks.underReplicated in "cairn status".`,
		Example: example("cairn config set copies 2"),
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if args[0] != "copies" {
				return &usageError{fmt.Errorf("no value is called %q", args[0]), "cairn config set"}
			}
			copies, err := strconv.Atoi(args[1])
			if args[1] == "default" {
				copies, err = 0, nil
			} else if err == nil && copies < 1 || copies > 16 {
				err = errors.New("out of range")
			}
			if err != nil {
				return &usageError{fmt.Errorf("copies is 1 to 16 or default, not %q", args[1]), "cairn config set"}
			}
			return a.with(c.Context(), false, func(n control.Node) error {
				return fail("set", "copies", n.SetCopies(c.Context(), copies))
			})
		},
	}
	config.AddCommand(set)
	return config
}

func (a *app) recoverCmd() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:     "recover",
		GroupID: groupCluster,
		Short:   "Make a cluster of what is left of one",
		Long: `Recover --force-new-cluster makes this node, which must not be running, the only
member of its cluster. It is for when most of the nodes that vote are lost for
good, so that nothing can be changed any more. What was acknowledged by the others
and never reached this node is lost, and so are blocks that only they had.

The other nodes are members no longer. Should any of them come back it is refused,
ends with exit code 6, and can be made a new member that has its blocks with
"cairn join --rejoin".`,
		Example: example("cairn recover --force-new-cluster"),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !force {
				return &usageError{errors.New("say --force-new-cluster, after reading `cairn recover --help`"), "cairn recover"}
			}
			dir, err := a.dir()
			if err != nil {
				return err
			}
			r, err := node.Recover(c.Context(), a.nodeOptions(dir, false))
			if err != nil {
				return fail("recover", dir, err)
			}
			_, err = fmt.Fprintf(a.Out, "cluster %s goes on with this node alone, from entry %d of term %d; generation %d\n", r.Cluster, r.Entry, r.Term, r.Generation)
			for _, m := range r.Removed {
				fmt.Fprintf(a.Err, "cairn: removed %s (%s); if it comes back, `cairn join --rejoin` there makes it a new member\n", printable(m.Name), m.ID)
			}
			fmt.Fprintln(a.Err, "cairn: changes that never reached this node are lost; run `cairn check` to see which blocks are")
			return err
		},
	}
	c.Flags().BoolVar(&force, "force-new-cluster", false, "do it")
	return c
}
