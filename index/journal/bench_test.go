package journal

import (
	"context"
	"fmt"
	"testing"
)

func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{200, 4 << 10, 128 << 10} {
		b.Run(fmt.Sprint(size, " bytes"), func(b *testing.B) {
			j, _ := openFrom(b, Options{Dir: b.TempDir() + "/journal"}, 0, everything)
			p := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := j.Append(KindCommand, 0, p); err != nil {
					b.Fatal(err)
				}
			}
			closeJ(b, j)
		})
	}
}

func BenchmarkAppendAndSync(b *testing.B) {
	for _, callers := range []int{1, 8} {
		b.Run(fmt.Sprint(callers, " callers"), func(b *testing.B) {
			j, _ := openFrom(b, Options{Dir: b.TempDir() + "/journal"}, 0, everything)
			b.SetParallelism(callers)
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, 4<<10)
				for pb.Next() {
					if _, _, err := j.Append(KindCommand, 0, p); err != nil {
						b.Error(err)
					}
					if err := j.Sync(context.Background()); err != nil {
						b.Error(err)
					}
				}
			})
			closeJ(b, j)
		})
	}
}
