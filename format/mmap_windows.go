package format

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

func mapFile(f *os.File, size int) ([]byte, error) {
	m, err := windows.CreateFileMapping(windows.Handle(f.Fd()), nil, windows.PAGE_READONLY, 0, 0, nil)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	defer windows.CloseHandle(m) // the view keeps the mapping
	at, err := windows.MapViewOfFile(m, windows.FILE_MAP_READ, 0, 0, uintptr(size))
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	p := *(*unsafe.Pointer)(unsafe.Pointer(&at)) // an address outside Go's memory
	return unsafe.Slice((*byte)(p), size), nil
}

// releasePages does nothing: the system takes clean pages back by itself.
func releasePages([]byte, int, int) error { return nil }

func unmapFile(b []byte) error {
	return windows.UnmapViewOfFile(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
}

// syncDir does nothing: directories cannot be synced here, and renamings are journaled.
func syncDir(string) error { return nil }
