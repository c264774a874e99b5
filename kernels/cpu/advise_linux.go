package cpu

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const hugePage = 2 << 20

// advise asks for huge pages for weights, with which memory is read up to half as fast again. Of a mapped file the kernel then
// reads ahead in huge pages, where the file system can; memory that is in use already is moved to them now. It is advice:
// whether the kernel takes it does not matter.
func advise(b []byte, mapped bool) {
	begin := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % hugePage
	if uintptr(len(b)) < begin+hugePage {
		return
	}
	b = b[begin:]
	b = b[:len(b)/hugePage*hugePage]
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE)
	if !mapped {
		_ = unix.Madvise(b, unix.MADV_COLLAPSE)
	}
}
