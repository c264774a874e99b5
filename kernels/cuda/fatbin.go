package cuda

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"strings"
)

// fatbin holds the compiled kernels, then a trailer with the hash of their source.
//
//go:embed kernels.fatbin
var fatbin string

const fatbinMark = "xlstm-kernels-sha256:"

// kernelSources are the files that the kernels are compiled from, in the order in which they are hashed.
var kernelSources = []string{"chunk.cu", "common.cuh", "gemm.cu", "gemv.cu", "gemv_input.cuh", "gemv_one.cu", "int8.cu", "kernels.cu", "misc.cu", "mlstm.cu", "mlstm.cuh", "one_input.cuh", "prepared.cuh", "wgmma.cu"}

// sourceHash hashes the kernels' source as cuda.mk does: the files one behind the other.
func sourceHash(dir fs.FS) (string, error) {
	h := sha256.New()
	for _, name := range kernelSources {
		b, err := fs.ReadFile(dir, name)
		if err != nil {
			return "", err
		}
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// fatbinHash is the hash in a fatbin's trailer.
func fatbinHash(image string) (string, error) {
	i := strings.LastIndex(image, fatbinMark)
	if i < 0 || len(image)-i < len(fatbinMark)+64 {
		return "", fmt.Errorf("the compiled kernels have no hash of their source: make cuda-kernels writes them")
	}
	return image[i+len(fatbinMark):][:64], nil
}
