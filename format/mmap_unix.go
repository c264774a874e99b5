//go:build unix

package format

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func mapFile(f *os.File, size int) ([]byte, error) {
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	return b, nil
}

func unmapFile(b []byte) error { return unix.Munmap(b) }

// releasePages lets the pages of mapped[from:to] go; the page cache may keep them.
func releasePages(mapped []byte, from, to int) error {
	page := os.Getpagesize()
	from = from / page * page
	to = min((to+page-1)/page*page, len(mapped))
	return unix.Madvise(mapped[from:to], unix.MADV_DONTNEED)
}

// syncDir makes a renaming in dir survive a crash.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
