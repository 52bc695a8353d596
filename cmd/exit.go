package cmd

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/tree"
	"github.com/cairnfs/cairn/mount"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/namespace/raft"
	"github.com/cairnfs/cairn/node"
	"github.com/cairnfs/cairn/node/control"
	"github.com/cairnfs/cairn/p2p/invite"
	"github.com/cairnfs/cairn/p2p/replica"
)

// Exit codes.
const (
	codeDone        = 0
	codeFailed      = 1
	codeUsage       = 2
	codeNotFound    = 3
	codeIntegrity   = 4
	codeUnavailable = 5
	codeRefused     = 6
)

const exitCodesText = `Exit codes:
  0  done (also when the reader of the output has gone away)
  1  failed: the reason is on stderr
  2  usage: a flag, an argument or a CID is malformed
  3  not found: the content, file, pin, mount or store does not exist
  4  integrity: stored bytes are not what they should be; the CID is named
  5  unavailable: another process has the store, or does not answer, or there
     is no FUSE, or too few nodes of the cluster answer
  6  refused: the cluster does not take this node any more, because it was
     removed, or its store was restored from a copy; starting again is no help
By the name mount.cairn, as mount(8) runs it, the program has the exit codes of
mount(8): 1 for usage, 2 if it cannot start, 8 if interrupted, 32 for the rest.`

func exitCodesTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit codes mean",
		Long:  exitCodesText,
	}
}

var (
	errInterrupted = errors.New("interrupted")
	// errReaderGone says that nobody reads the output any more: whoever did has
	// had enough of it.
	errReaderGone = errors.New("output is not read any more")
	// errOutExists says that there is something where get is to write.
	errOutExists = errors.New("file exists")
	// errDamage says that a check found damage, which it has reported.
	errDamage = errors.New("store is damaged")
	// errNothingCollected says that no node could collect anything.
	errNothingCollected = errors.New("nothing could be collected")
)

// usageError is an error in how a command was called.
type usageError struct {
	err error
	see string // the command whose help says how to
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// failure is what could not be done, with which object, and why.
type failure struct {
	what, object string
	err          error
}

func (e *failure) Error() string { return e.what + ": " + e.object + ": " + reason(e.err) }
func (e *failure) Unwrap() error { return e.err }

// fail returns err as a failure, nil if err is nil.
func fail(what, object string, err error) error {
	if err == nil {
		return nil
	}
	return &failure{what, object, err}
}

// reason returns the words of err without the operation and path that a
// failure has already named.
func reason(err error) string {
	if path, ok := err.(*fs.PathError); ok {
		return path.Err.Error()
	}
	return err.Error()
}

// outcome is a kind of error, its exit code and what the user can do about it.
type outcome struct {
	is   func(error) bool
	code int
	next string
}

func is(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

func as[T error](err error) bool {
	var target T
	return errors.As(err, &target)
}

// isFinal reports whether err is a refusal that no update of the program changes.
func isFinal(err error) bool {
	var r *raft.Refusal
	return errors.As(err, &r) && r.Final()
}

// outcomes lists the kinds of errors, the most telling first: an error may be
// of several.
func outcomes() []outcome {
	return []outcome{
		{is(errReaderGone), codeDone, ""},
		{is(errInterrupted), codeFailed, ""},
		{as[*usageError], codeUsage, ""},
		{isFinal, codeRefused, "its blocks stay usable: `cairn join --rejoin TOKEN` makes it a new member that has them, `cairn doctor` says more"},
		{as[*raft.Refusal], codeRefused, "update cairn on this node"},
		{is(namespace.ErrVersion), codeFailed, "update cairn on this node; nothing was changed"},
		{is(cas.ErrBadCID), codeUsage, "give a CIDv1 as `cairn add` prints it"},
		{is(node.ErrNewerFormat), codeFailed, "use the version of cairn that made it, or a newer one; nothing was changed"},
		{is(node.ErrUnknownChunker), codeFailed, "use the version of cairn that made it; nothing was changed"},
		{as[*node.InUseError], codeUnavailable, "wait for that process or stop it, or choose another store with --dir"},
		{is(control.ErrProtocol), codeUnavailable, "the store is mounted by another version of cairn; unmount it and mount it with this one"},
		{is(control.ErrUnavailable), codeUnavailable, "see if the process that has the store open still runs"},
		{is(mount.ErrNoFUSE), codeUnavailable, ""},
		{is(mount.ErrNoHelper), codeUnavailable, ""},
		{is(mount.ErrUnsupported), codeUnavailable, ""},
		{is(mount.ErrRootOnly), codeFailed, ""},
		{is(mount.ErrMounted), codeFailed, "choose another mount point, or end that mount with `cairn umount`"},
		{is(mount.ErrNotMounted), codeNotFound, "`cairn status` lists the mount points of a store"},
		{as[*mount.BusyError], codeFailed, ""},
		{is(invite.ErrNotAToken), codeUsage, ""},
		{is(invite.ErrTruncated), codeUsage, ""},
		{is(invite.ErrMistyped), codeUsage, ""},
		{is(invite.ErrVersion), codeUsage, ""},
		{is(invite.ErrTooLong), codeUsage, ""},
		{is(invite.ErrInvalid), codeUsage, ""},
		{is(node.ErrRefused), codeFailed, "ask for another invitation (`cairn invite` on a member)"},
		{is(node.ErrUnreachable), codeUnavailable, ""},
		{is(node.ErrHasStore), codeFailed, "choose another one with --dir"},
		{is(node.ErrJoined), codeFailed, "run it with `cairn mount` or `cairn serve`"},
		{is(node.ErrFounder), codeFailed, "start it, and join again if its cluster refuses it"},
		{is(node.ErrNotMember), codeFailed, "`cairn join` without --rejoin takes an empty directory"},
		{is(node.ErrListen), codeUnavailable, "choose another address with --listen"},
		{is(node.ErrKeyMode), codeFailed, ""},
		{is(node.ErrOffline), codeUnavailable, "start it with `cairn mount` or `cairn serve`"},
		{is(node.ErrNoNames), codeUnavailable, "see that the other members run and can be reached from here"},
		{is(namespace.ErrNoCluster), codeNotFound, "`cairn invite` begins one"},
		{is(namespace.ErrNoMember), codeNotFound, "`cairn peers` lists the members"},
		{is(namespace.ErrNoInvite), codeNotFound, ""},
		{is(raft.ErrTimeout), codeUnavailable, "see which members answer (`cairn peers`)"},
		{is(raft.ErrNoQuorum), codeUnavailable, "see which members answer (`cairn peers`)"},
		{is(replica.ErrTooFewCopies), codeUnavailable, "see which members answer (`cairn peers`)"},
		{is(errDamage), codeIntegrity, ""},
		{is(node.ErrDamaged), codeIntegrity, "restore the data directory from a backup"},
		{is(cas.ErrCorrupt), codeIntegrity, "`cairn check` lists all damage"},
		{is(node.ErrNoStore), codeNotFound, "`cairn mount` or `cairn add` creates one; --dir chooses another directory"},
		{is(cas.ErrNotFound), codeNotFound, "see that the CID is complete and that this is the store it was added to"},
		{is(control.ErrNotPinned), codeNotFound, "`cairn pin ls` lists what is pinned"},
		{is(cas.ErrNoSpace), codeFailed, "free space on the disk of the data directory"},
		{is(tree.ErrSpecial), codeFailed, "remove it, or add the rest by name"},
		{is(fs.ErrNotExist), codeNotFound, ""},
		{is(errOutExists), codeFailed, "choose another name with -o, or replace it with --force"},
	}
}

// exitCode returns the exit code for err.
func exitCode(err error) int {
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	for _, o := range outcomes() {
		if o.is(err) {
			return o.code
		}
	}
	return codeFailed
}

// message returns the line that tells of err: what, object, reason; next step.
func message(err error) string {
	text := oneLine(err.Error())
	var usage *usageError
	if errors.As(err, &usage) {
		return fmt.Sprintf("%s; see `%s --help`", text, usage.see)
	}
	for _, o := range outcomes() {
		if o.is(err) {
			if o.next != "" {
				text += "; " + o.next
			}
			break
		}
	}
	return text
}

// oneLine joins the lines of an error.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
