//go:build !unix

package hub

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

const lockName = ".xlstm-pull.lock"

// lock makes sure that one pull at a time works in a directory.
func lock(root *os.Root, dir string) (unlock func(), err error) {
	f, err := root.OpenFile(lockName, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%s: another pull is working in this directory (else remove %s)", dir, lockName)
	}
	if err != nil {
		return nil, err
	}
	return func() {
		f.Close()
		_ = root.Remove(lockName) // reported by the next pull, which finds it
	}, nil
}

// freeSpace is not known here.
func freeSpace(string) (int64, bool) { return 0, false }
