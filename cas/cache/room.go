package cache

// Room returns how many bytes can be put before blocks that are held leave: less than
// the limit by what the files take up, and the next one.
func (c *Cache) Room() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(0, c.o.MaxBytes-c.bytes-c.fileSize)
}
