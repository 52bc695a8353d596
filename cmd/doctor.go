package cmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairnfs/cairn/node/control"
)

// finding is something that is wrong, and what to do about it.
type finding struct {
	// Problem says that it does not pass by itself, or that something cannot be
	// done meanwhile; else it is to be known.
	Problem bool   `json:"problem"`
	What    string `json:"what"`
	Do      string `json:"do"`
}

// When something is worth telling.
const (
	clockOff    = 5 * time.Second
	clockFarOff = time.Hour // from here on the log does not follow a single clock
	nearlyFull  = 20        // a disk is with less left than this share of it
)

var errUnwell = errors.New("something is wrong, see above")

func (a *app) doctorCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "doctor",
		GroupID: groupStore,
		Short:   "Say what is wrong, and what to do about it",
		Long: `Doctor looks at the state of this node and of its cluster, and says for everything
that is wrong what it means and which command helps. It changes nothing. The exit
code is 1 if there is a problem: something that cannot be done meanwhile, or does
not pass by itself. What it does not look at is the content: that is "cairn check".`,
		Example: example("cairn doctor", "cairn doctor --json"),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.inspect(c.Context(), func(n control.Node) error { return a.doctor(c.Context(), n, asJSON) })
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of objects: problem, what, do")
	return c
}

func (a *app) doctor(ctx context.Context, n control.Node, asJSON bool) error {
	s, err := n.Status(ctx)
	if err != nil {
		return err
	}
	found := diagnose(s)
	if asJSON {
		out := json.NewEncoder(a.Out)
		out.SetIndent("", "  ")
		err = out.Encode(append([]finding{}, found...))
	} else {
		err = a.printFindings(found)
	}
	if err != nil {
		return err
	}
	if slices.ContainsFunc(found, func(f finding) bool { return f.Problem }) {
		return errUnwell
	}
	return nil
}

func (a *app) printFindings(found []finding) error {
	if len(found) == 0 {
		_, err := fmt.Fprintln(a.Out, "nothing is wrong")
		return err
	}
	for _, f := range found {
		kind := "note"
		if f.Problem {
			kind = "problem"
		}
		if _, err := fmt.Fprintf(a.Out, "%s: %s\n  %s\n", kind, f.What, f.Do); err != nil {
			return err
		}
	}
	return nil
}

// diagnose says what is wrong with a node that has the given status, the worst first.
func diagnose(s control.Status) []finding {
	var all []finding
	for _, look := range []func(control.Status) []finding{
		lookRefused, lookQuorum, lookDisk, lookBlocks, lookPeers, lookClocks, lookVersion,
	} {
		all = append(all, look(s)...)
	}
	slices.SortStableFunc(all, func(a, b finding) int {
		switch {
		case a.Problem == b.Problem:
			return 0
		case a.Problem:
			return -1
		}
		return 1
	})
	return all
}

// lookRefused sees whether the cluster takes the node.
func lookRefused(s control.Status) []finding {
	if s.Cluster == nil {
		return nil
	}
	if r := s.Cluster.Refused; r != nil {
		do := "get a token with `cairn invite` on a member and run `cairn join --rejoin TOKEN` here: it becomes a new member that has its blocks; " +
			"what only this node had of names is lost"
		if r.Kind == "restored" {
			do = "if another copy of this data directory is in use, go on with that one and delete this; else " + do +
				" (of a cluster of two nodes, run `cairn recover --force-new-cluster` on the other one first)"
		}
		return []finding{{true, r.Reason, do}}
	}
	if s.Node == nil {
		return []finding{{true, "this node is a member of a cluster and does not run", "start it with `cairn mount` or `cairn serve`"}}
	}
	return nil
}

// answers reports whether a member does.
func answers(p control.PeerStatus) bool { return p.State != "dead" && p.State != "suspect" }

// lookQuorum sees whether changes are possible.
func lookQuorum(s control.Status) []finding {
	if s.Node == nil || s.Raft == nil || s.Cluster.Refused != nil {
		return nil
	}
	if s.Raft.Leader != "" {
		if s.Raft.Session == 0 {
			return []finding{{true, "this node has no session: files can be read here and not be changed",
				"it gets one within seconds once it reaches the leader; see that " + shortID(s.Raft.Leader) + " can be reached from here"}}
		}
		return nil
	}
	voters, missing := 0, []string{}
	if s.Raft.Voter {
		voters++
	}
	for _, p := range s.Peers {
		if !p.Voter {
			continue
		}
		if voters++; !answers(p) {
			missing = append(missing, describePeer(p))
		}
	}
	if 2*(voters-len(missing)) > voters {
		return []finding{{true, "there is no leader, so nothing can be changed, although most of the nodes that vote answer",
			"an election takes some seconds; if it goes on, see that the nodes reach each other on their ports, in both directions, and read their logs"}}
	}
	what := fmt.Sprintf("nothing can be changed: of %d nodes that vote, %d do not answer: %s", voters, len(missing), strings.Join(missing, ", "))
	return []finding{{true, what, "bring them back, or enough of them that most answer. Only if they are lost for good: stop this node, the one that knows most, and run " +
		"`cairn recover --force-new-cluster` on it. WARNING: changes that never reached it are lost, and the others must not be used again but with `cairn join --rejoin`"}}
}

func describePeer(p control.PeerStatus) string {
	seen := "never seen since this node started"
	if t, err := time.Parse(time.RFC3339, p.LastSeen); err == nil {
		seen = "last seen " + t.Local().Format("15:04:05 on 2 January")
	}
	return fmt.Sprintf("%s (%s), %s", shortID(p.ID), printable(p.Name), seen)
}

// lookDisk sees whether there is space.
func lookDisk(s control.Status) []finding {
	if s.Store.DiskBytes == 0 {
		return nil
	}
	switch left := s.Store.AvailBytes; {
	case left <= 0:
		return []finding{{true, "the disk is full up to the reserve: new content is refused here", "free space on the disk of " + s.Dir}}
	case left < s.Store.DiskBytes/nearlyFull:
		return []finding{{false, bytesText(left) + " are left on the disk until the reserve is reached", "free space on the disk of " + s.Dir}}
	}
	return nil
}

// lookBlocks sees whether blocks have their copies.
func lookBlocks(s control.Status) []finding {
	if s.Blocks == nil {
		return nil
	}
	var all []finding
	if s.Blocks.Lost > 0 {
		all = append(all, finding{true, "blocks are damaged here and were found on no other node", "`cairn check` lists them; restore those files from a backup, or bring back the nodes that have them"})
	}
	if n := s.Blocks.UnderReplicated; n > 0 {
		do := "they are being copied; `cairn status` says how many are left"
		if !slices.ContainsFunc(s.Peers, answers) {
			do = "bring back other nodes, or add some with `cairn invite`"
		}
		all = append(all, finding{false, fmt.Sprintf("%d blocks held here lack a copy on some node that should have one", n), do})
	}
	return all
}

// lookPeers sees which members do not answer.
func lookPeers(s control.Status) []finding {
	var all []finding
	for _, p := range s.Peers {
		if s.Node == nil || answers(p) {
			continue
		}
		all = append(all, finding{false, "a member does not answer: " + describePeer(p),
			"if it is lost for good, `cairn peers remove " + shortID(p.ID) + "` has its blocks copied from the others at once"})
	}
	return all
}

// lookClocks sees whether clocks agree.
func lookClocks(s control.Status) []finding {
	var all []finding
	for _, p := range s.Peers {
		off := time.Duration(p.ClockAheadMillis) * time.Millisecond
		if off.Abs() < clockOff {
			continue
		}
		way := "ahead of"
		if off < 0 {
			way = "behind"
		}
		all = append(all, finding{off.Abs() >= clockFarOff,
			fmt.Sprintf("the clock of %s (%s) is %v %s this one's: times of files are wrong on one of the two", shortID(p.ID), printable(p.Name), off.Abs().Round(time.Second), way),
			"have both synchronise their clocks (systemd-timesyncd, chrony)"})
	}
	return all
}

// lookVersion sees whether all members run what is needed for the latest formats.
func lookVersion(s control.Status) []finding {
	if s.Cluster == nil || s.Node == nil || s.Cluster.Version >= s.Cluster.Knows {
		return nil
	}
	var who []string
	for _, id := range s.Cluster.Lagging {
		who = append(who, shortID(id))
	}
	what := fmt.Sprintf("the cluster is at version %d, this node's program knows %d: what came with it waits", s.Cluster.Version, s.Cluster.Knows)
	if len(who) == 0 {
		return []finding{{false, what, "it is raised within seconds"}}
	}
	return []finding{{false, what, "update cairn on " + strings.Join(who, ", ") + ", or remove them if they are gone"}}
}
