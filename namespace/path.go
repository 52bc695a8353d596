package namespace

import "strings"

// maxScanned bounds the entries of a directory that Path looks at.
const maxScanned = 10_000

// Path returns a path from the root that leads to ino, for a person who has to find
// it: a message about an inode number helps nobody. It is not for a program,
// because names change meanwhile and it may not find one at all: it starts from
// the names that are cached, as that of a file in use nearly always is, and gives
// up in directories of more than ten thousand entries.
func (s *State) Path(ino Ino) (string, bool) {
	var names []string
	parent, ok := s.cachedParent(ino)
	for at := ino; at != RootIno && ok; {
		var name string
		if name, ok = s.nameIn(parent, at); !ok {
			break
		}
		names = append(names, name)
		at = parent
		dir, err := s.Inode(at)
		parent, ok = dir.Parent, err == nil && len(names) < maxScanned
	}
	if !ok {
		return "", false
	}
	var path strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		path.WriteString("/" + names[i])
	}
	if path.Len() == 0 {
		return "/", true
	}
	return path.String(), true
}

// cachedParent returns a directory that is known to have a name of ino.
func (s *State) cachedParent(ino Ino) (Ino, bool) {
	if n, err := s.Inode(ino); err == nil && n.IsDir() {
		return n.Parent, true
	}
	if s.begin() != nil {
		return 0, false
	}
	defer s.mu.RUnlock()
	c := &s.cache.dentries
	for k, i := range c.at {
		if c.slot(i).val.ino == ino {
			return k.parent, true
		}
	}
	return 0, false
}

// nameIn returns the name of ino in a directory.
func (s *State) nameIn(parent, ino Ino) (name string, ok bool) {
	left := maxScanned
	err := s.ReadDir(parent, 0, func(d Dentry) bool {
		if left--; d.Ino == ino {
			name, ok = d.Name, true
		}
		return !ok && left > 0
	})
	return name, ok && err == nil
}
