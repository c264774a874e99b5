package simd

// archPaths lists the implementations in assembly that this CPU can run, the best last.
func archPaths() []*Path { return nil }
