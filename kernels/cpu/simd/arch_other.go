//go:build !amd64

package simd

// archPaths lists the implementations in assembly that this CPU can run: none.
func archPaths() []*Path { return nil }
