package placement

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/cairnfs/cairn/p2p"
)

// large has the distribution tested with ten million blocks and a thousand
// members: minutes of CPU time.
var large = flag.Bool("large", false, "test with 10 million blocks and 1,000 members")

// hashOf returns the hash of the n-th block.
func hashOf(n uint64) [32]byte {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	return blake3.Sum256(b[:])
}

// view returns members of the given capacities in GiB.
func view(copies int, gib ...uint64) p2p.View {
	v := p2p.View{Copies: copies}
	for i, c := range gib {
		v.Members = append(v.Members, p2p.Member{
			ID:   p2p.PeerID(fmt.Sprintf("12D3KooW%04d", i)),
			Role: p2p.RoleStorage, State: p2p.Active, Capacity: c << 30,
		})
	}
	return v
}

// sizes returns n capacities of 1 to 8 TiB.
func sizes(n int) []uint64 {
	rng := rand.New(rand.NewPCG(1, 2))
	gib := make([]uint64, n)
	for i := range gib {
		gib[i] = 1024 << rng.IntN(4)
	}
	return gib
}

func TestTheAnswerIsTheSameOnEveryMachineAndInEveryVersion(t *testing.T) {
	table := New(view(3, 100, 200, 1000, 50, 4000))
	for n, want := range []string{"[4 2 0 1 3]", "[4 0 2 1 3]", "[4 2 3 1 0]", "[4 2 3 0 1]"} {
		hash := hashOf(uint64(n))
		var got []int
		for _, id := range table.Rank(&hash, nil) {
			got = append(got, int(id[len(id)-1]-'0'))
		}
		if fmt.Sprint(got) != want {
			t.Errorf("block %d: %v, want %v", n, got, want)
		}
	}
}

func TestTheLogarithmIsRightToTwoThousandths(t *testing.T) {
	check := func(h uint64) {
		got := float64(negLog2(h)) / (1 << 32)
		want := 64 - math.Log2(float64(h))
		if h > 1<<63 { // float64 has no digits left for h itself
			want = -math.Log1p(-float64(-h)/(1<<64)) / math.Ln2
		}
		if math.Abs(got-want) > want*0.002+1e-9 {
			t.Errorf("-log2(%#x / 2^64) = %v, want %v", h, got, want)
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for shift := range 64 {
		check(1 << shift)
		check(math.MaxUint64 >> shift)
		check(-(uint64(1) << shift))
		for range 100 {
			if h := rng.Uint64() >> shift; h > 0 {
				check(h)
				check(-h)
			}
		}
	}
	if got := negLog2(0); got != 64<<32 {
		t.Errorf("of 0: %#x", got)
	}
	if got := negLog2(math.MaxUint64); got < 1 {
		t.Errorf("of the largest number: %d", got)
	}
	for i := range log2Cells {
		if want := math.Log2(1 + float64(i)/log2Cells); math.Abs(float64(log2Table[i])/(1<<32)-want) > 1e-9 {
			t.Errorf("table[%d] = %d", i, log2Table[i])
		}
	}
}

func TestRankHasEveryOwningMemberOnceAndOwnersAreItsBeginning(t *testing.T) {
	v := view(3, sizes(40)...)
	v.Members[3].State = p2p.Draining
	v.Members[5].State = p2p.Away
	v.Members[7].Role = p2p.RoleClient
	for _, n := range []int{0, 1, 2, 3, 9, 16, 17, 18, 40} {
		v := v
		v.Members = v.Members[:n]
		table := New(v)
		owning := 0
		for i := range v.Members {
			if v.Members[i].Owns() {
				owning++
			}
		}
		for b := range uint64(50) {
			hash := hashOf(b)
			rank := table.Rank(&hash, nil)
			owners := table.Owners(&hash, nil)
			if len(rank) != owning || len(owners) != v.Owners() || !slices.Equal(owners, rank[:len(owners)]) {
				t.Fatalf("%d members: rank %v, owners %v", n, rank, owners)
			}
			seen := make(map[p2p.PeerID]bool)
			for _, id := range rank {
				if !v.Member(id).Owns() || seen[id] {
					t.Fatalf("%d members: %s in %v", n, id, rank)
				}
				seen[id] = true
			}
			for i := range v.Members {
				id := v.Members[i].ID
				if table.Owns(&hash, id) != slices.Contains(owners, id) {
					t.Fatalf("Owns(%s) is wrong", id)
				}
			}
		}
	}
}

func TestAllCopiesMayBeMoreThanFewMembers(t *testing.T) {
	table := New(view(30, sizes(40)...))
	hash := hashOf(1)
	if got := table.Owners(&hash, nil); len(got) != 30 || !slices.Equal(got, table.Rank(&hash, nil)[:30]) {
		t.Errorf("owners %v", got)
	}
}

func TestTheOrderOfTheMembersInTheViewDoesNotMatter(t *testing.T) {
	v := view(3, sizes(20)...)
	table := New(v)
	mixed := v
	mixed.Members = slices.Clone(v.Members)
	slices.Reverse(mixed.Members)
	other := New(mixed)
	for b := range uint64(100) {
		hash := hashOf(b)
		if !slices.Equal(table.Rank(&hash, nil), other.Rank(&hash, nil)) {
			t.Fatalf("block %d is ranked differently", b)
		}
	}
}

// scale is the size of the tests of distribution.
func scale() (blocks uint64, members int) {
	if *large {
		return 10_000_000, 1000
	}
	return 100_000, 20
}

func TestBlocksSpreadByWeightWithinTenPercent(t *testing.T) {
	blocks, members := scale()
	for _, gib := range [][]uint64{{1000, 1000, 1000}, {1000, 8000}, sizes(members)} {
		table := New(view(1, gib...))
		count := make(map[p2p.PeerID]float64)
		var buf []p2p.PeerID
		for b := range blocks {
			hash := hashOf(b)
			buf = table.Owners(&hash, buf)
			count[buf[0]]++
		}
		var sum uint64
		for _, m := range table.members {
			sum += m.weight
		}
		for _, m := range table.members {
			want := float64(blocks) * float64(m.weight) / float64(sum)
			if got := count[m.id]; math.Abs(got-want) > want/10 {
				t.Errorf("%d members: %s has %v blocks, want %.0f", len(gib), m.id, got, want)
			}
		}
	}
}

func TestAJoinMovesItsShareAndNothingElse(t *testing.T) {
	blocks, members := scale()
	gib := sizes(members)
	before, after := New(view(3, gib...)), New(view(3, append(gib, 4096)...))
	joined := after.members[len(after.members)-1].id
	moved, lost := 0.0, 0
	var old, now []p2p.PeerID
	for b := range blocks {
		hash := hashOf(b)
		old, now = before.Owners(&hash, old), after.Owners(&hash, now)
		if slices.Contains(now, joined) {
			moved++
		}
		for _, id := range now {
			if id != joined && !slices.Contains(old, id) {
				lost++
			}
		}
	}
	// What the member must get is what it would have been given at first: the
	// share is computed by simulation of the same draw with real numbers.
	want := expectedShare(after, joined, 3) * float64(blocks)
	if math.Abs(moved-want) > want/10 || lost > 0 {
		t.Errorf("%v blocks moved to the new member, want %.0f; %d moved between old ones", moved, want, lost)
	}
}

// expectedShare returns the probability that the member is among the n best.
func expectedShare(t *Table, id p2p.PeerID, n int) float64 {
	rng := rand.New(rand.NewPCG(5, 6))
	const draws = 20_000
	hits := 0
	for range draws {
		var own float64
		costs := make([]float64, 0, len(t.members))
		for _, m := range t.members {
			c := rng.ExpFloat64() / float64(m.weight)
			if m.id == id {
				own = c
			}
			costs = append(costs, c)
		}
		slices.Sort(costs)
		if own <= costs[n-1] {
			hits++
		}
	}
	return float64(hits) / draws
}

func TestASmallTableDoesNotAllocate(t *testing.T) {
	table := New(view(3, sizes(10)...))
	buf := make([]p2p.PeerID, 0, 16)
	hash := hashOf(1)
	if n := testing.AllocsPerRun(100, func() {
		buf = table.Rank(&hash, buf)
		buf = table.Owners(&hash, buf)
		_ = table.Owns(&hash, buf[0])
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAMemberWithoutCapacityCountsAsOneGiB(t *testing.T) {
	v := view(1, 0, 1)
	v.Members[1].Capacity = math.MaxUint64
	table := New(v)
	if got := []uint64{table.members[0].weight, table.members[1].weight}; got[0] != 1 || got[1] != 1<<34 {
		t.Errorf("weights %v", got)
	}
}

func BenchmarkOwners(b *testing.B) {
	for _, n := range []int{3, 10, 1000} {
		b.Run(fmt.Sprintf("%d members", n), func(b *testing.B) {
			table := New(view(3, sizes(n)...))
			buf := make([]p2p.PeerID, 0, 16)
			hash := hashOf(1)
			for i := range b.N {
				binary.LittleEndian.PutUint64(hash[:], uint64(i)*mixer)
				buf = table.Owners(&hash, buf)
			}
		})
	}
}
