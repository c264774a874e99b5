//go:build !unix && !windows

package format

import (
	"fmt"
	"io"
	"os"
)

// mapFile reads the file into memory where there is no mapping.
func mapFile(f *os.File, size int) ([]byte, error) {
	b := make([]byte, size)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	return b, nil
}

// releasePages does nothing: the file is in memory.
func releasePages([]byte, int, int) error { return nil }

func unmapFile([]byte) error { return nil }

func syncDir(string) error { return nil }
