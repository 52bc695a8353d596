// Cairn keeps files in a deduplicating, content-addressed store and mounts it as
// a filesystem. See `cairn help`.
package main

import (
	"os"

	"github.com/cairnfs/cairn/cmd"
)

func main() {
	os.Exit(cmd.Main(os.Args[1:], cmd.IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
