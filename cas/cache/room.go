package cache

import (
	"errors"
	"math"
)

// errShort says that the disk has no more space than is left to others.
var errShort = errors.New("the disk is nearly full, blocks of other nodes are not kept")

// Room returns how many bytes can be put before blocks that are held leave: less than
// the limit, and than the disk has to spare, by what is on its way to the files, and the
// next file.
func (c *Cache) Room() int64 {
	allowed := c.allowed()
	c.mu.Lock()
	defer c.mu.Unlock()
	waiting := int64(c.writing+1) * min(maxPiece, c.fileSize)
	return max(0, min(c.o.MaxBytes-c.bytes, allowed)-waiting-c.fileSize)
}

// allowed returns how many bytes more the files may take up of the disk. A file system that
// cannot tell is taken to be large.
func (c *Cache) allowed() int64 {
	if c.o.Reserve <= 0 {
		return math.MaxInt64
	}
	u, err := c.o.FS.GetDiskUsage(c.o.Dir)
	if err != nil {
		return math.MaxInt64
	}
	return int64(u.AvailBytes) - c.o.Reserve
}

// yield gives up the oldest file when others have taken up what is left to them. The
// writer's.
func (c *Cache) yield() {
	if c.allowed() >= 0 {
		return
	}
	f := c.oldest()
	if f == nil {
		return
	}
	if f == c.active {
		c.active = nil
		if err := c.endDirect(); err != nil {
			c.failed("close", err)
		}
	}
	c.drop(f)
}
