//go:build linux

package cluster

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// paths adds the paths of all values in a JSON document.
func jsonPaths(v any, path string, all map[string]any) {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			jsonPaths(value, strings.TrimPrefix(path+"."+name, "."), all)
		}
	case []any:
		all[path] = v
		for _, value := range v {
			jsonPaths(value, path+"[]", all)
		}
	default:
		all[path] = v
	}
}

func TestStatusAndPeersSayWhatIsToBeKnown(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	fill(t, r.nodes[1], "data", 7)
	r.awaitCopies(r.nodes...)
	ids := map[string]bool{}
	leaders := 0
	for _, n := range r.nodes {
		var doc any
		out := n.must("status", "--json")
		ok(t, json.Unmarshal([]byte(out), &doc))
		got := map[string]any{}
		jsonPaths(doc, "", got)
		for _, path := range strings.Fields(`
			dir id pid mounts[] dedupRatio store.blocks store.rawBytes store.storedBytes
			namespace.files namespace.dirs namespace.logicalBytes pins.count pins.logicalBytes
			node.id node.name node.addrs[] node.role node.state node.sentBytes node.receivedBytes
			cluster.id cluster.epoch cluster.copies
			raft.role raft.leader raft.term raft.appliedIndex raft.session
			peers[].id peers[].name peers[].addrs[] peers[].role peers[].voter peers[].state peers[].lastSeen
			peers[].capacityBytes peers[].usedBytes
			blocks.underReplicated blocks.pendingReplication blocks.repaired blocks.droppable blocks.dropped blocks.checked blocks.passDone`) {
			if _, found := got[path]; !found {
				t.Errorf("%s: status has no %s: %s", n.name, path, out)
			}
		}
		s := n.status()
		ids[s.Node.ID] = true
		if s.Raft.Role == "leader" {
			leaders++
		}
		if s.Node.Name != n.name || s.Cluster.Copies != 3 || len(s.Peers) != 2 || s.Raft.Term == 0 || s.Raft.Session == 0 {
			t.Errorf("%s: %+v", n.name, s)
		}
		if got["cluster.id"] != r.nodes[0].status().Cluster.ID {
			t.Errorf("%s is in another cluster", n.name)
		}
		text := n.must("status")
		for _, part := range []string{"cluster", "3 nodes, 3 copies", "2 of 2 answer", "term", "0 blocks lack some"} {
			if !strings.Contains(text, part) {
				t.Errorf("%s: status does not say %q:\n%s", n.name, part, text)
			}
		}
		peers := n.must("peers")
		lines := strings.Split(peers, "\n")
		if len(lines) != 3 || !strings.HasPrefix(lines[0], "ID ") {
			t.Errorf("%s: peers are\n%s", n.name, peers)
		}
		for _, p := range s.Peers {
			if p.State != "alive" || !p.Voter || p.Role != "storage" {
				t.Errorf("%s: %+v", n.name, p)
			}
			if !strings.Contains(peers, p.ID[len(p.ID)-8:]) || !strings.Contains(peers, p.Name) {
				t.Errorf("%s: peers lack %s:\n%s", n.name, p.Name, peers)
			}
		}
	}
	if leaders != 1 || len(ids) != 3 {
		t.Errorf("%d leaders, %d ids", leaders, len(ids))
	}
	dead := r.others(r.leader(r.nodes...))[0]
	kill(dead)
	for _, n := range r.others(dead) {
		took := eventually(t, settleTime, "a dead node is seen to be dead", func() error {
			for _, p := range n.status().Peers {
				if p.Name == dead.name && p.State != "dead" {
					return fmt.Errorf("%s is %s", p.Name, p.State)
				}
			}
			return nil
		})
		t.Logf("%s sees it after %v", n.name, took)
		if text := n.must("peers"); !strings.Contains(text, "dead") {
			t.Errorf("peers do not tell of the dead node:\n%s", text)
		}
	}
}
