//go:build !amd64 || gen

package simd

// archPaths lists the implementations in assembly that this CPU can run: none. The generator of assembly reads the package this
// way too, with the tag gen, for what it writes may be missing.
func archPaths() []*Path { return nil }
