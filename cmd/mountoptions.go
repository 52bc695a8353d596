package cmd

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cairnfs/cairn/mount"
)

// The options of a mount are written as mount(8) and fstab write them: words and
// word=value, separated by commas, of which a later one overrides an earlier one.
// Several programs read the same list, so there are four kinds: what Cairn acts
// on, what it does anyway, what is meant for others, and what it refuses because
// to ignore it would break a promise.

const mountOptionsText = `Options (-o, separated by commas; the last one counts):
  ro, rw               refuse every change; allow changes (default)
  noexec, exec         run no programs from the mount; run them (default)
  nosuid, suid         ignore set-user-ID bits (default); honour them (root only)
  nodev, dev           no device nodes (default); create and open them (root only)
  noatime, relatime    set no times of access (default); set them now and then
  allow_other          let other users in; root always does
  uid=N, gid=N         show all files as owned by this user or group
  dir=PATH             data directory of the store, instead of --dir
The kernel always checks permissions (default_permissions), and reading never
changes a directory (nodiratime). What fstab says to others is ignored: defaults,
auto, noauto, user, users, owner, group, nofail, _netdev, comment=…, x-….`

var (
	errUnknownOption = errors.New("there is no such option")
	errRemount       = errors.New("only the kernel can change a mount: use `mount -i -o remount,nosuid,nodev,…`, since flags that are not named are dropped, or mount it again")
)

// mountOptions is what a list of options says.
type mountOptions struct {
	mount.Options        // those that the list can set
	dir           string // the data directory, "" if it is not in the list
}

// parseMountOptions reads lists of options, in their order. A sloppy reader does
// not mind options that it does not know.
func parseMountOptions(lists []string, sloppy bool) (mountOptions, error) {
	var o mountOptions
	for word := range strings.SplitSeq(strings.Join(lists, ","), ",") {
		err := o.set(word)
		if sloppy && errors.Is(err, errUnknownOption) {
			continue
		}
		if err != nil {
			return o, fail("mount option", printable(word), err)
		}
	}
	return o, nil
}

func (o *mountOptions) set(word string) error {
	switch word {
	case "ro", "rw":
		o.ReadOnly = word == "ro"
	case "exec", "noexec":
		o.NoExec = word == "noexec"
	case "suid", "nosuid":
		o.Suid = word == "suid"
	case "dev", "nodev":
		o.Dev = word == "dev"
	case "relatime", "noatime":
		o.Relatime = word == "relatime"
	case "allow_other":
		o.AllowOther = true
	case "default_permissions", "nodiratime", "async":
		// It is always so.
	case "lazytime", "nolazytime":
		// They allow to lose times of files in a crash, or not; Cairn treats
		// them like all else.
	case "sync", "dirsync":
		return errors.New("it would not hold for names; use fsync, or open files with O_SYNC")
	case "strictatime", "diratime":
		return errors.New("times of access are not kept so precisely; use relatime")
	case "remount":
		return errRemount
	default:
		return o.setValue(word)
	}
	return nil
}

func (o *mountOptions) setValue(word string) (err error) {
	name, value, _ := strings.Cut(word, "=")
	switch {
	case name == "uid":
		o.UID, err = parseID(value)
	case name == "gid":
		o.GID, err = parseID(value)
	case name == "dir" && value == "":
		return errors.New("give the path of a directory")
	case name == "dir":
		o.dir = value
	case !forOthers(name):
		return errUnknownOption
	}
	return err
}

// forOthers reports whether an option tells mount(8), init or a person something.
func forOthers(name string) bool {
	return strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-") || slices.Contains([]string{
		"", "defaults", "auto", "noauto", "user", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup",
		"nofail", "_netdev", "comment", "silent", "loud",
	}, name)
}

// parseID reads the number of a user or group.
func parseID(s string) (*uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == math.MaxUint32 { // which means "leave it" to chown
		return nil, errors.New("give the number of a user or group, as `id` shows it")
	}
	id := uint32(n)
	return &id, nil
}

// String returns a list that says the same, but for the data directory.
func (o *mountOptions) String() string {
	words := []string{"defaults"}
	for _, w := range []struct {
		set  bool
		word string
	}{
		{o.ReadOnly, "ro"}, {o.NoExec, "noexec"}, {o.Suid, "suid"}, {o.Dev, "dev"},
		{o.Relatime, "relatime"}, {o.AllowOther, "allow_other"},
	} {
		if w.set {
			words = append(words, w.word)
		}
	}
	if o.UID != nil {
		words = append(words, fmt.Sprint("uid=", *o.UID))
	}
	if o.GID != nil {
		words = append(words, fmt.Sprint("gid=", *o.GID))
	}
	return strings.Join(words, ",")
}

// choose takes over what the options and the command line say about what is to
// be mounted where. Nothing is touched yet.
func (m *mounter) choose(mountpoint string, o mountOptions) error {
	path, err := mountPath(mountpoint)
	if err != nil {
		return err
	}
	if o.dir != "" {
		if m.dirFlag != "" && filepath.Clean(m.dirFlag) != filepath.Clean(o.dir) {
			err := fmt.Errorf("--dir %s and the option dir=%s name two data directories; leave one out", m.dirFlag, o.dir)
			return &usageError{err, "cairn mount"}
		}
		m.dirFlag = o.dir
	}
	if m.dir, err = m.app.dir(); err != nil {
		return err
	}
	if err := checkApart(m.dir, path); err != nil {
		return &usageError{fail("mount", path, err), "cairn mount"}
	}
	m.options = o
	m.options.Mountpoint = path
	return nil
}
