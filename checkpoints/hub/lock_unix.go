//go:build unix

package hub

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const lockName = ".xlstm-pull.lock"

// lock makes sure that one pull at a time works in a directory. The lock goes with the process that holds it.
func lock(root *os.Root, dir string) (unlock func(), err error) {
	for {
		f, err := root.OpenFile(lockName, os.O_RDWR|os.O_CREATE|unix.O_NONBLOCK, 0o666)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("%s: another pull is working in this directory", dir)
			}
			return nil, fmt.Errorf("%s: lock: %w", dir, err)
		}
		// The last holder may have removed the file between opening and locking.
		there, err := root.Stat(lockName)
		mine, err2 := f.Stat()
		if err == nil && err2 == nil && os.SameFile(there, mine) {
			return func() {
				_ = root.Remove(lockName) // an empty file that stays does no harm
				f.Close()
			}, nil
		}
		f.Close()
	}
}

// freeSpace is the number of bytes that a user may still write to dir's disk.
func freeSpace(dir string) (int64, bool) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, false
	}
	return int64(s.Bavail) * int64(s.Bsize), true
}
