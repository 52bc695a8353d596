package cmd

import (
	"reflect"
	"strings"
	"testing"

	"github.com/cairnfs/cairn/mount"
)

func TestMountOptionsAreRead(t *testing.T) {
	uid, gid := uint32(0), uint32(4294967294)
	for list, want := range map[string]mountOptions{
		"":                            {},
		"ro":                          {Options: mount.Options{ReadOnly: true}},
		"ro,rw":                       {},
		"noexec,suid,dev":             {Options: mount.Options{NoExec: true, Suid: true, Dev: true}},
		"noexec,suid,dev;exec;nosuid": {Options: mount.Options{Dev: true}},
		"relatime,allow_other":        {Options: mount.Options{Relatime: true, AllowOther: true}},
		"relatime,noatime":            {},
		"uid=0,gid=4294967294":        {Options: mount.Options{UID: &uid, GID: &gid}},
		"dir=/a=b,,ro":                {Options: mount.Options{ReadOnly: true}, dir: "/a=b"},
		"defaults,auto,noauto,user,user=joe,users,owner,group,nofail,_netdev,comment=a b,x-systemd.automount,X-a=b": {},
		"default_permissions,async,nodiratime,lazytime":                                                             {},
	} {
		got, err := parseMountOptions(strings.Split(list, ";"), false)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v", list, got, err)
		}
		got.dir, want.dir = "", ""
		if again, err := parseMountOptions([]string{got.String()}, false); err != nil || !reflect.DeepEqual(again, want) {
			t.Errorf("%q, written as %q: %+v, %v", list, got.String(), again, err)
		}
	}
}

func TestMountOptionsThatCannotBeKeptAreRefused(t *testing.T) {
	for list, want := range map[string]string{
		"ro,nonsense":    "mount option: nonsense: there is no such option",
		"nonsense=1":     "nonsense=1",
		"ro=1":           "ro=1",
		"RO":             "RO",
		"sync":           "fsync",
		"dirsync":        "fsync",
		"strictatime":    "use relatime",
		"remount,ro":     "mount -i -o remount,nosuid,nodev",
		"uid":            "number of a user",
		"uid=joe":        "number of a user",
		"uid=-1":         "number of a user",
		"gid=":           "number of a user",
		"gid=4294967295": "number of a user",
		"dir=":           "path of a directory",
		"a\x1b[2J":       `"a\x1b[2J"`,
	} {
		if _, err := parseMountOptions([]string{list}, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", list, err, want)
		}
	}
}

func TestASloppyReaderIgnoresWhatItDoesNotKnowOnly(t *testing.T) {
	if o, err := parseMountOptions([]string{"a,ro,b=c"}, true); err != nil || !o.ReadOnly {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := parseMountOptions([]string{"a,sync"}, true); err == nil {
		t.Error("sync is accepted")
	}
}
