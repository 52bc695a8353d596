package raft

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// BenchmarkPropose measures commands of 64 programs at a time, over a network and
// disks in memory.
func BenchmarkPropose(b *testing.B) {
	for _, members := range []int{1, 3} {
		b.Run(fmt.Sprintf("members=%d", members), func(b *testing.B) {
			g := newGroup(b)
			m := g.found()
			for i := 1; i < members; i++ {
				m.join(p2p.RoleStorage)
				g.voters(i + 1)
			}
			m = g.leader()
			m.must(mkdir("ready"))
			var n atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range 64 {
				wg.Go(func() {
					for {
						i := n.Add(1)
						if i > int64(b.N) {
							return
						}
						cmd := &namespace.Command{Time: time.Now().UnixNano(), Ops: []namespace.Op{mkdir(fmt.Sprint("n", i))}}
						if res, err := m.log.Propose(context.Background(), cmd); err != nil || res.Err != nil {
							b.Error(err, res.Err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N), "µs/command")
		})
	}
}
