package format

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserve gives f its size and the space for it, so that a full disk is found before the work and not in the middle of it.
func reserve(f *os.File, size int64) error {
	var fs unix.Statfs_t
	// Asked first, since reserving more than there is may fill the disk for a moment before it fails.
	if err := unix.Fstatfs(int(f.Fd()), &fs); err == nil && fs.Bsize > 0 && fs.Blocks > 0 {
		block := uint64(fs.Bsize)
		if fs.Bavail <= uint64(size)/block {
			return noSpace(size, int64(fs.Bavail*block))
		}
	}
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS):
			return f.Truncate(size)
		}
		return err
	}
}
