package namespace

import "bytes"

// stagedValue is a record, other than an inode or an entry, that a command has looked at.
type stagedValue struct {
	key        []byte
	old, value []byte // nil: no record
}

// stagedValues are those of a command. There are few, or as many as a session has locks
// and outcomes when it ends.
type stagedValues struct {
	all []*stagedValue
	at  map[string]*stagedValue // by key; nil while there are few
}

// fewValues are found faster one by one.
const fewValues = 32

func (s *stagedValues) drop() {
	clear(s.all)
	s.all, s.at = s.all[:0], nil
}

func (s *stagedValues) find(key []byte) *stagedValue {
	if s.at != nil {
		return s.at[string(key)]
	}
	for _, v := range s.all {
		if bytes.Equal(v.key, key) {
			return v
		}
	}
	return nil
}

// add adds a record as it is stored, which is not among them.
func (s *stagedValues) add(key, old []byte) *stagedValue {
	v := &stagedValue{key: key, old: old, value: old}
	s.all = append(s.all, v)
	switch {
	case s.at != nil:
		s.at[string(key)] = v
	case len(s.all) > fewValues:
		s.at = make(map[string]*stagedValue, 2*fewValues)
		for _, v := range s.all {
			s.at[string(v.key)] = v
		}
	}
	return v
}

// value loads another record.
func (t *txn) value(key []byte) (*stagedValue, error) {
	if v := t.values.find(key); v != nil {
		return v, nil
	}
	old, _, err := get(t.s.db, key)
	if err != nil {
		return nil, t.fail(err)
	}
	return t.values.add(key, old), nil
}
