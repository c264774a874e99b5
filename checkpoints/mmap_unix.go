//go:build unix

package checkpoints

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// store is the bytes of one file, mapped or in memory.
type store struct {
	data   []byte
	mapped bool
}

func mapFile(f *os.File, size int64) (*store, error) {
	if size == 0 {
		return nil, errors.New("the file is empty")
	}
	if int64(int(size)) != size {
		return nil, fmt.Errorf("%d bytes do not fit this machine's address space", size)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	return &store{data: b, mapped: true}, nil
}

// release lets the pages of data[off:off+n] go from this process's memory; the page cache may keep them. Pages that a neighbour
// shares are read again where they are needed.
func (s *store) release(off, n int) error {
	if !s.mapped || s.data == nil || n == 0 {
		return nil
	}
	page := os.Getpagesize()
	start := off / page * page
	end := min((off+n+page-1)/page*page, len(s.data))
	if err := unix.Madvise(s.data[start:end], unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("release pages: %w", err)
	}
	return nil
}

func (s *store) close() error {
	b := s.data
	s.data = nil
	if !s.mapped || b == nil {
		return nil
	}
	return unix.Munmap(b)
}
