package cuda

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"testing"

	"xlstm/format"
)

// TestWgNames: the kernels that the host chooses from are those that are compiled.
func TestWgNames(t *testing.T) {
	src, err := os.ReadFile("wgmma.cu")
	if err != nil {
		t.Fatal(err)
	}
	var compiled, chosen []string
	for _, m := range regexp.MustCompile(`(?m)^WG\((\w+), ENC_\w+, (\d+), (\d+), (\d+)\)$`).FindAllStringSubmatch(string(src), -1) {
		compiled = append(compiled, fmt.Sprintf("wg_%s_%sx%s_%s", m[1], m[2], m[3], m[4]))
	}
	for _, k := range wgKernels() {
		chosen = append(chosen, k.name())
		if n := k.shared(); n > 227<<10 || n < 64<<10 {
			t.Errorf("%s has %d bytes of shared memory", k.name(), n)
		}
		if k.box() != 64 && k.box() != 128 {
			t.Errorf("%s copies rows of %d bytes", k.name(), k.box())
		}
		if k.rows() > 256 || k.threads() > 1024 {
			t.Errorf("%s has %d rows and %d threads", k.name(), k.rows(), k.threads())
		}
	}
	slices.Sort(compiled)
	slices.Sort(chosen)
	if len(compiled) == 0 || !slices.Equal(compiled, chosen) {
		t.Errorf("compiled %v, chosen from %v", compiled, chosen)
	}
}

// TestWgPick: the kernels of a 7B's products on 132 multiprocessors.
func TestWgPick(t *testing.T) {
	shapes := [][2]int{{12288, 4096}, {4096, 4096}, {21888, 4096}, {4096, 10944}}
	for _, c := range []struct {
		enc  string
		n    int
		want [4]string // q, k, v, o; out; gate and up; down
	}{
		{"int4", 8, [4]string{"i4_4x128_8", "i4_2x256_8", "i4_4x128_8", "i4_4x128_8"}},
		{"int4", 9, [4]string{"i4_4x128_16", "i4_2x256_16", "i4_4x128_16", "i4_4x128_16"}},
		{"int4", 32, [4]string{"i4_4x256_32", "i4_2x256_32", "i4_4x256_32", "i4_4x256_32"}},
		{"int4", 64, [4]string{"i4_4x256_64", "i4_2x256_64", "i4_4x256_64", "i4_4x256_64"}},
		{"int4", 128, [4]string{"i4_4x256_64", "i4_2x256_64", "i4_4x128_128", "i4_4x256_64"}},
		{"int4", 256, [4]string{"i4_4x128_128", "i4_4x256_64", "i4_4x128_128", "i4_4x128_128"}},
		{"int4", 2048, [4]string{"i4_4x128_128", "i4_4x128_128", "i4_4x128_128", "i4_4x128_128"}},
		{"int8", 8, [4]string{"i8_2x128_8", "i8_2x128_8", "i8_2x128_8", "i8_2x128_8"}},
		{"int8", 64, [4]string{"i8_2x128_64", "i8_2x128_64", "i8_4x128_64", "i8_2x128_64"}},
		{"int8", 128, [4]string{"i8_2x128_128", "i8_2x128_64", "i8_4x128_128", "i8_2x128_128"}},
		{"int8", 2048, [4]string{"i8_4x128_128", "i8_4x128_128", "i8_4x128_128", "i8_4x128_128"}},
		{"int8g64", 16, [4]string{"i8g_4x128_16", "i8g_2x128_16", "i8g_4x128_16", "i8g_4x128_16"}},
		{"int8g64", 128, [4]string{"i8g_4x128_64", "i8g_2x128_64", "i8g_4x128_128", "i8g_4x128_64"}},
		{"fp16", 8, [4]string{"f16_2x128_16", "f16_2x128_16", "f16_2x128_16", "f16_2x128_16"}},
		{"fp16", 128, [4]string{"f16_4x128_128", "f16_2x128_64", "f16_4x128_128", "f16_4x128_128"}},
		{"fp16", 2048, [4]string{"f16_4x128_128", "f16_4x128_128", "f16_4x128_128", "f16_4x128_128"}},
	} {
		for i, s := range shapes {
			w := matrixOf(t, c.enc, s[0], s[1])
			if got := wgPick(&w, c.n, 132).name(); got != "wg_"+c.want[i] {
				t.Errorf("%s, %d x %d, %d tokens: %s, expected wg_%s", c.enc, s[0], s[1], c.n, got, c.want[i])
			}
		}
	}
}

func matrixOf(t *testing.T, enc string, rows, cols int) matArg {
	t.Helper()
	e, err := format.ParseEncoding(enc)
	if err != nil {
		t.Fatal(err)
	}
	return matrixArg(&format.Tensor{Encoding: e, Rows: rows, Cols: cols}, 256)
}

// TestWgBlocks: there is a kernel for every product, its thread blocks all have work and room for their sums.
func TestWgBlocks(t *testing.T) {
	for _, enc := range []string{"fp16", "bf16", "int8", "int8g32", "int8g128", "int4g32", "int4g64a"} {
		for _, rows := range []int{1, 64, 77, 4096, 50304, 1 << 20} {
			for _, cols := range []int{1, 96, 4096, 1 << 16} {
				for _, n := range []int{1, 8, 9, 63, 100, 256, 5000} {
					w := matrixOf(t, enc, rows, cols)
					k := wgPick(&w, n, 132)
					if k.enc != w.enc || n <= 64 && k.tokens < n {
						t.Fatalf("%s, %d x %d, %d tokens: %+v", enc, rows, cols, n, k)
					}
					b := k.blocks(&w, n, 132, splitRoom)
					if b < 1 || b > 132 || b > k.pieces(&w, n) || b*k.rows()*k.tokens*4 > splitRoom {
						t.Fatalf("%s, %d x %d, %d tokens: %s on %d blocks", enc, rows, cols, n, k.name(), b)
					}
				}
			}
		}
	}
}

// TestGateBlocks: few tokens' gates have room at once, and many tokens' products lose little.
func TestGateBlocks(t *testing.T) {
	for n, want := range map[int]int{1: 1, 16: 1, 17: 2, 64: 4, 128: 8, 2048: 8} {
		if got := gateBlocks(n); got != want {
			t.Errorf("%d tokens: %d, expected %d", n, got, want)
		}
	}
}
