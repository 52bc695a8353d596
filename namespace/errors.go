package namespace

import (
	"errors"
	"fmt"
)

// What a command or a read can fail with by its own fault. Compare with
// errors.Is; the system call error that each stands for is in brackets.
var (
	ErrNotFound     = errors.New("no such inode or name")                        // ENOENT
	ErrExist        = errors.New("name exists")                                  // EEXIST
	ErrNotDir       = errors.New("not a directory")                              // ENOTDIR
	ErrIsDir        = errors.New("is a directory")                               // EISDIR
	ErrNotEmpty     = errors.New("directory is not empty")                       // ENOTEMPTY
	ErrNameTooLong  = errors.New("name is too long")                             // ENAMETOOLONG
	ErrInvalid      = errors.New("invalid argument")                             // EINVAL
	ErrPerm         = errors.New("not permitted")                                // EPERM: a second name for a directory
	ErrTooManyLinks = errors.New("too many links")                               // EMLINK
	ErrNoAttr       = errors.New("no such attribute")                            // ENODATA
	ErrAttrTooLarge = errors.New("attribute is too large")                       // E2BIG
	ErrAttrSpace    = errors.New("no space left for attributes of this inode")   // ENOSPC
	ErrNotSupported = errors.New("operation not supported")                      // EOPNOTSUPP: an access control list of a symbolic link
	ErrAccess       = errors.New("permission denied")                            // EACCES: a default access control list of a file
	ErrConflict     = errors.New("content has changed since the base version")   // not for the kernel: rebase and retry
	ErrPatches      = errors.New("too many patches, they must be folded first")  // not for the kernel: fold, or set content
	ErrLoop         = fmt.Errorf("%w: directory moved below itself", ErrInvalid) // EINVAL
	ErrLocked       = errors.New("range is locked by another node")              // EAGAIN
	ErrSession      = errors.New("session has ended")                            // EIO
	ErrTurn         = errors.New("other nodes are first to change the content")  // not for the kernel: queue by TakeTurn and retry
	ErrDeadlock     = errors.New("waiting for the lock would be a deadlock")     // EDEADLK
	ErrStale        = errors.New("command was proposed and answered before")     // not for the kernel: a late repetition
	// Of members and invitations; not for the kernel.
	ErrNoInvite      = errors.New("no such invitation: it was never given, revoked, or given by another cluster")
	ErrInviteExpired = errors.New("invitation has expired")
	ErrInviteUsed    = errors.New("invitation has been used")
	ErrInviteBound   = errors.New("invitation is for another node")
	ErrNoMember      = errors.New("no such member")
	ErrMember        = errors.New("node is a member already")
	ErrNoCluster     = errors.New("there is no cluster")
	ErrCluster       = errors.New("there is a cluster already")
	// Of the collection of blocks; not for the kernel.
	ErrPromise = errors.New("blocks that are referred to may have been collected since they were stored") // renew them and retry
	ErrStep    = errors.New("collection is at another step")
	ErrMembers = errors.New("the members have changed meanwhile")
	ErrNotYet  = errors.New("not possible before all members run a version of cairn that knows it; `cairn doctor` says which do not")
	// ErrTrimmed says that the history of the instant asked for is gone.
	ErrTrimmed = errors.New("history has been trimmed") // ESTALE
)

// Errors of the machine itself rather than of a command.
var (
	// ErrApplied says that Apply was given an index it has already applied.
	// Nothing was changed.
	ErrApplied = errors.New("index is already applied")
	// ErrFailed says that an earlier I/O error ended this State; it wraps
	// that error. Only opening the database anew helps.
	ErrFailed = errors.New("namespace has failed")
	// ErrCorrupt says that a stored record or a command cannot be read.
	ErrCorrupt = errors.New("namespace record is corrupt")
	// ErrVersion says that a stored record or a command was written in a
	// format this program does not know.
	ErrVersion = errors.New("unknown format version")
)
