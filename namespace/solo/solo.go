// Package solo orders the commands of a group of one: a single node that needs
// nobody's agreement, only its own journal.
//
// A command is worked out first, then written to the journal, then committed, all
// under one lock, so that the journal holds the commands in the order in which
// they were applied and only those that succeed. What is refused changes nothing
// and would change nothing when replayed, so it costs no journal. Neither write is
// synced; the database never keeps a command durably that the journal might lose,
// because its flush syncs the journal first (see package index).
//
// The payload of a record is the command's index as a uvarint, then the command.
// Indexes are 1, 2, 3 and so on without gaps.
package solo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
)

// MaxCommand is the largest encoded command, in bytes.
const MaxCommand = journal.MaxPayload - binary.MaxVarintLen64

// Errors of Propose and Replay.
var (
	// ErrTooLarge says that a command exceeds MaxCommand.
	ErrTooLarge = fmt.Errorf("command is larger than %d bytes", MaxCommand)
	// ErrDiverged says that a command which had succeeded when it was written
	// to the journal is refused when it is replayed: the database does not
	// belong to this journal, or one of them is damaged.
	ErrDiverged = errors.New("replayed command is refused")
)

// GapError says that the journal does not go on where the namespace stands.
type GapError struct {
	Seq        journal.Seq // of the record
	Have, Next uint64      // index applied, index found
}

func (e *GapError) Error() string {
	return fmt.Sprintf("journal record %d has command %d, but the namespace is at %d", e.Seq, e.Next, e.Have)
}

// DecodeError says that a journal record is not a command. It unwraps to the
// cause.
type DecodeError struct {
	Seq journal.Seq
	Err error
}

func (e *DecodeError) Error() string { return fmt.Sprintf("journal record %d: %v", e.Seq, e.Err) }

func (e *DecodeError) Unwrap() error { return e.Err }

// Log is a namespace.Log over a journal of this node. It may be used from any
// number of goroutines.
type Log struct {
	state   *namespace.State
	journal *journal.Journal
	mark    func() uint64

	mu      sync.Mutex // orders commands
	applied journal.Seq
	prefix  []byte
}

var _ namespace.Log = (*Log)(nil)

// Open returns a log that applies to state and writes to j. mark says up to where
// blocks have been stored so far (see cas/segment), so that no command survives
// whose blocks do not; it is called for each command that refers to some. Hand the journal's records
// to Replay before the first Propose.
func Open(state *namespace.State, j *journal.Journal, mark func() uint64) *Log {
	return &Log{state: state, journal: j, mark: mark}
}

// Replay applies a record that the journal held when it was opened. Records of
// other kinds, and commands that the namespace already contains, are passed over.
// Applying may wait for a flush of the database and with it for a sync of the
// journal, which is not possible before journal.Replay has returned: with a
// barrier in place, collect the records first.
//
// Errors: *GapError, *DecodeError, ErrDiverged, and those of State.Apply. After
// any of them the log must not be used.
func (l *Log) Replay(rec journal.Record) error {
	if rec.Kind != journal.KindCommand {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	index, n := binary.Uvarint(rec.Payload)
	if n <= 0 {
		return &DecodeError{rec.Seq, fmt.Errorf("%w: no index", namespace.ErrCorrupt)}
	}
	have := l.state.Applied()
	if index <= have {
		l.applied = rec.Seq
		return nil
	}
	if index != have+1 {
		return &GapError{Seq: rec.Seq, Have: have, Next: index}
	}
	var cmd namespace.Command
	if err := cmd.UnmarshalBinary(rec.Payload[n:]); err != nil {
		return &DecodeError{rec.Seq, err}
	}
	result, err := l.state.Apply(index, &cmd)
	if err != nil {
		return fmt.Errorf("replay command %d: %w", index, err)
	}
	if result.Err != nil {
		return fmt.Errorf("command %d of journal record %d: %w: %w", index, rec.Seq, ErrDiverged, result.Err)
	}
	l.applied = rec.Seq
	return nil
}

// Propose applies cmd and writes it to the journal. A command that is refused
// takes no index and no space. The context is looked at before anything is done,
// never after.
//
// Errors: ErrTooLarge and the journal's ENOSPC, after which nothing has happened
// and the log goes on; otherwise the journal or the namespace has failed, and so
// does every later call.
func (l *Log) Propose(ctx context.Context, cmd *namespace.Command) (namespace.Result, error) {
	if err := ctx.Err(); err != nil {
		return namespace.Result{}, err
	}
	encoded, err := cmd.AppendBinary(nil)
	if err != nil {
		return namespace.Result{Err: err}, nil
	}
	if len(encoded) > MaxCommand {
		return namespace.Result{}, ErrTooLarge
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	index := l.state.Applied() + 1
	prepared, err := l.state.Prepare(index, cmd)
	if err != nil {
		return namespace.Result{}, err
	}
	result := prepared.Result()
	if result.Err != nil {
		prepared.Abort()
		return result, nil
	}
	l.prefix = binary.AppendUvarint(l.prefix[:0], index)
	mark := uint64(0)
	if cmd.RefersToBlocks() {
		mark = l.mark()
	}
	seq, _, err := l.journal.Append(journal.KindCommand, mark, l.prefix, encoded)
	if err != nil {
		prepared.Abort()
		return namespace.Result{}, fmt.Errorf("propose: %w", err)
	}
	if err := prepared.Commit(); err != nil {
		return namespace.Result{}, err
	}
	l.applied = seq
	return result, nil
}

// Sync returns when everything proposed before survives a power loss.
func (l *Log) Sync(ctx context.Context) error { return l.journal.Sync(ctx) }

// Applied returns the number of the last command's record. All commands up to it
// are in the namespace; once the database is flushed they are durable there, and
// the journal may be trimmed as far as its commands are concerned.
func (l *Log) Applied() journal.Seq {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.applied
}
