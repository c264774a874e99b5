package format

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// smallConfig has widths that are no multiples of 32 or of a group, so that every kind of padding occurs.
func smallConfig() Config {
	return Config{
		VocabSize: 41, EmbeddingDim: 40, NumBlocks: 2, NumHeads: 2, QKDim: 20, VDim: 40, FFNDim: 72,
		NormEps: 1e-6, CellEps: 1e-6, GateSoftCap: 15, OutputSoftCap: 30, OutNorm: true, BOS: 0, ForceBOS: true,
	}
}

func biasConfig() Config {
	c := smallConfig()
	c.UseBias, c.HeadBias, c.BOS, c.ForceBOS = true, true, -1, false
	return c
}

var allEncodings = []string{
	"fp32", "fp16", "bf16", "int8", "int8g32", "int8g64", "int8g128", "int4g32", "int4g64", "int4g128", "int4g32a", "int4g64a", "int4g128a",
}

// mixed gives every encoding to some tensor.
func mixed() func(string) Encoding {
	i := 0
	return func(string) Encoding {
		e, err := ParseEncoding(allEncodings[i%len(allEncodings)])
		if err != nil {
			panic(err)
		}
		i++
		return e
	}
}

func smallHeader(c Config) Header {
	return Header{
		Config: c, Recipe: "int4 embed=fp16",
		Provenance: Provenance{
			Program: "xlstm test", Source: "somewhere", Files: []SourceFile{{Name: "model.safetensors", Size: 12, SHA256: "abcd"}},
			Options: map[string]string{"rotate": "7"},
		},
		Tokenizer: []byte("compiled tokenizer"), Tensors: Specs(&c, mixed()),
	}
}

// randomRows makes rows of any codes, padded as the format asks.
func randomRows(rng *rand.Rand, s TensorSpec, n int) (values, scales, mins []byte) {
	z := s.Encoding.Sizes(s.Rows, s.Cols)
	random := func(size int64) []byte {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	for range n {
		row := random(z.ValueRow)
		if s.Encoding.Kind == Int4 {
			for j := s.Cols; j < PaddedCols(s.Cols); j++ {
				b := &row[j/32*16+j%16]
				if j%32 < 16 {
					*b = *b&0xf0 | 8
				} else {
					*b = *b&0x0f | 0x80
				}
			}
		} else {
			clear(row[len(row)*s.Cols/PaddedCols(s.Cols):])
		}
		values = append(values, row...)
	}
	return values, random(int64(n) * z.ScaleRow), random(int64(n) * z.MinRow)
}

// fill writes all tensors, in uneven pieces, and returns their bytes in the directory's order.
func fill(t testing.TB, w *Writer, specs []TensorSpec) [][]byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	var stored [][]byte
	for _, s := range specs {
		tw, err := w.Tensor(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		var parts [3][]byte
		for left := s.Rows; left > 0; {
			n := 1 + rng.IntN(left)
			v, sc, m := randomRows(rng, s, n)
			if err := tw.WriteRows(v, sc, m); err != nil {
				t.Fatal(err)
			}
			parts[0], parts[1], parts[2] = append(parts[0], v...), append(parts[1], sc...), append(parts[2], m...)
			left -= n
		}
		var all []byte
		for _, p := range parts {
			all = append(all, p...)
			all = append(all, make([]byte, (PartAlign-len(p)%PartAlign)%PartAlign)...)
		}
		stored = append(stored, all)
	}
	return stored
}

// smallFile writes a file and returns its path and its tensors' bytes.
func smallFile(t testing.TB, c Config) (string, [][]byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "small.xlstm")
	h := smallHeader(c)
	w, err := Create(path, h)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	stored := fill(t, w, h.Tensors)
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return path, stored
}

func smallBytes(t testing.TB, c Config) []byte {
	t.Helper()
	path, _ := smallFile(t, c)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// reseal recomputes the checksums of the sections and of the header, as someone would who builds a hostile file.
func reseal(b []byte) {
	le := binary.LittleEndian
	for i := range numSections {
		p := b[sectionsAt+i*sectionSize:]
		from, n := le.Uint64(p), le.Uint64(p[8:])
		if i == sectionTensors || from > uint64(len(b)) || n > uint64(len(b))-from {
			continue
		}
		sum := sha256.Sum256(b[from : from+n])
		copy(p[16:], sum[:])
	}
	sum := sha256.Sum256(b[:headerSumAt])
	copy(b[headerSumAt:], sum[:])
}

// parseBytes is Open on bytes in memory.
func parseBytes(b []byte) (*File, error) {
	f := &File{data: b}
	return f, f.parse()
}

func sectionOf(b []byte, i int) (offset, length int) {
	p := b[sectionsAt+i*sectionSize:]
	return int(binary.LittleEndian.Uint64(p)), int(binary.LittleEndian.Uint64(p[8:]))
}

func clone(b []byte) []byte { return bytes.Clone(b) }
