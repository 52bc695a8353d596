package namespace

// What Check says of patches.

// checkPatches compares the patches that there are with what inodes say of them.
func (c *checker) checkPatches() error {
	found, all := make(map[Ino]Patches), uint64(0)
	err := c.each(tagPatch, func(key, value []byte) {
		ino, number, ok := splitPatchTail(key[1:])
		m, ranges, err := decodePatch(value)
		if !ok || err != nil || len(ranges) == 0 || m.Cut > MaxFileSize {
			c.problem(ino, "patch %x cannot be read (%v)", key, err)
			return
		}
		n := c.inodes[ino]
		if n == nil || number < n.patches.First || number > n.version {
			c.problem(ino, "has patch %d, which is none of its own", number)
		}
		p := found[ino]
		p.Count, p.Cost = p.Count+1, p.Cost+patchCost(value)
		if p.First == 0 {
			p.First = number
		}
		found[ino] = p
		all += uint64(patchCost(value))
	})
	for ino, n := range c.inodes {
		p := found[ino]
		p.Cut, p.Below = n.patches.Cut, n.patches.Below
		if p != n.patches {
			c.problem(ino, "says of its patches %+v, found %+v", n.patches, p)
		}
		if p.First != 0 && (n.mode&TypeMask != TypeRegular || p.Cut < 0 || p.Below > c.meta.applied) {
			c.problem(ino, "of mode %#o has patches %+v", n.mode, p)
		}
	}
	if all != c.meta.patches {
		c.problem(0, "patches take %d bytes, found %d", c.meta.patches, all)
	}
	return err
}

// checkPastPatches sees whether a value of history has the patches that it refers to.
func (c *checker) checkPastPatches(tail, value []byte) {
	ino, _, _ := splitNumberKey(append([]byte{space}, tail...))
	r, err := decodeInode(Ino(ino), value)
	if err == nil {
		_, err = loadPatches(c.db, &r, true)
	}
	if err != nil {
		c.problem(Ino(ino), "history: %v", err)
	}
}
