package format

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// exampleFile is the worked example of docs/FORMAT.md: the smallest model, its weights numbered.
func exampleFile(t testing.TB) []byte {
	t.Helper()
	c := Config{
		VocabSize: 2, EmbeddingDim: 3, NumBlocks: 1, NumHeads: 1, QKDim: 1, VDim: 2, FFNDim: 2,
		NormEps: 1e-6, CellEps: 1e-6, GateSoftCap: 15, OutputSoftCap: 30, OutNorm: true, BOS: 0,
	}
	h := Header{Config: c, Recipe: "bf16 head=int4g32a", Provenance: Provenance{Program: "example", Source: "FORMAT.md"}, Tokenizer: []byte("TOK")}
	h.Tensors = Specs(&c, func(name string) Encoding {
		if name == TensorHead {
			return Encoding{Kind: Int4, Group: 32, Asymmetric: true}
		}
		return Encoding{Kind: BF16}
	})
	path := filepath.Join(t.TempDir(), "example.xlstm")
	w, err := Create(path, h)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, s := range h.Tensors {
		tw, err := w.Tensor(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		for r := range s.Rows {
			if err := tw.WriteRows(exampleRow(s, r)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// exampleRow has value 1+c+cols*r in column c of row r; the head's scale is 0.5 and its minimum -1, so that codes are 2*(value+1).
func exampleRow(s TensorSpec, r int) (values, scales, mins []byte) {
	values = make([]byte, s.Encoding.ValueRowBytes(s.Cols))
	for c := range s.Cols {
		v := float32(1 + c + s.Cols*r)
		switch s.Encoding.Kind {
		case FP32:
			binary.LittleEndian.PutUint32(values[4*c:], math.Float32bits(v))
		case BF16:
			binary.LittleEndian.PutUint16(values[2*c:], uint16(math.Float32bits(v)>>16))
		case Int4:
			values[c] = byte(2 * (v + 1))
		}
	}
	if s.Encoding.Kind != Int4 {
		return values, nil, nil
	}
	for j := range values {
		values[j] |= 0x80
		if j >= s.Cols {
			values[j] |= 8
		}
	}
	return values, []byte{0x00, 0x38}, []byte{0x00, 0xbc}
}

// TestDocumentedExample holds every line of bytes in docs/FORMAT.md against the file.
func TestDocumentedExample(t *testing.T) {
	b := exampleFile(t)
	doc, err := os.ReadFile("../docs/FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`^    ([0-9a-f]{8})((?: {1,2}[0-9a-f]{2}){1,16})(?: {3}.*)?$`)
	lines := 0
	for s := bufio.NewScanner(bytes.NewReader(doc)); s.Scan(); {
		m := line.FindStringSubmatch(s.Text())
		if m == nil {
			continue
		}
		lines++
		at, err := strconv.ParseUint(m[1], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		want, err := hex.DecodeString(regexp.MustCompile(` +`).ReplaceAllString(m[2], ""))
		if err != nil {
			t.Fatal(err)
		}
		if int(at)+len(want) > len(b) || !bytes.Equal(b[at:int(at)+len(want)], want) {
			t.Errorf("documented %q, the file has % x", s.Text(), b[min(int(at), len(b)):min(int(at)+len(want), len(b))])
		}
	}
	if lines < 20 {
		t.Errorf("%d lines of bytes, expected the whole example", lines)
	}
}
