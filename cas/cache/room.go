package cache

// Room returns how many bytes can be put before blocks that are held leave: less than
// the limit by what the files take up, what is on its way to them, and the next file.
func (c *Cache) Room() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	waiting := int64(c.writing+1) * min(maxPiece, c.fileSize)
	return max(0, c.o.MaxBytes-c.bytes-waiting-c.fileSize)
}
