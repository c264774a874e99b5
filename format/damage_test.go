package format

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// openAndVerify is what stands between a damaged file and its use.
func openAndVerify(t testing.TB, path string) (opened bool, err error) {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return true, f.Verify(t.Context(), nil)
}

// TestFlippedBits flips a bit of every byte of header, metadata and directory, and of bytes throughout tokenizer, tensors and
// padding. Verify must find them all, and Open those outside of what it does not read.
func TestFlippedBits(t *testing.T) {
	good := smallBytes(t, biasConfig())
	dir := t.TempDir()
	structural := make([]bool, len(good)) // what Open reads
	for i := range headerSize {
		structural[i] = true
	}
	for i := range numSections {
		off, n := sectionOf(good, i)
		for j := off; j < off+n && i != sectionTokenizer && i != sectionTensors; j++ {
			structural[j] = true
		}
	}
	path := filepath.Join(dir, "flipped.xlstm")
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if opened, err := openAndVerify(t, path); !opened || err != nil {
		t.Fatalf("undamaged: %v", err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	tried := 0
	for at := 0; at < len(good); at++ {
		if !structural[at] && at%389 != 0 && at != len(good)-1 && !edge(good, at) {
			continue
		}
		tried++
		bit := byte(1) << (tried % 8)
		if _, err := file.WriteAt([]byte{good[at] ^ bit}, int64(at)); err != nil {
			t.Fatal(err)
		}
		opened, err := openAndVerify(t, path)
		if err == nil {
			t.Errorf("bit %#x of byte %d: not found", bit, at)
		} else if opened == structural[at] {
			t.Errorf("bit %#x of byte %d: opened %v, then %v", bit, at, opened, err)
		} else if !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("bit %#x of byte %d: error %q, expected one line with the file's name", bit, at, err)
		}
		if _, err := file.WriteAt(good[at:at+1], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d flips in %d bytes", tried, len(good))
}

// edge reports whether byte at is the first or the last of a section or of a tensor's part.
func edge(b []byte, at int) bool {
	for i := range numSections {
		if off, n := sectionOf(b, i); at == off || at == off-1 || at == off+n-1 || at == off+n {
			return true
		}
	}
	off, n := sectionOf(b, sectionTensors)
	return at >= off && at < off+n && at%PartAlign == 0
}

func TestTruncated(t *testing.T) {
	good := smallBytes(t, smallConfig())
	path := filepath.Join(t.TempDir(), "short.xlstm")
	lengths := []int{0, 1, 7, 8, 9, 511, 512, 513, len(good) - 1, len(good) - PartAlign}
	for n := 100; n < len(good); n += 1009 {
		lengths = append(lengths, n)
	}
	for _, n := range lengths {
		if err := os.WriteFile(path, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if f, err := Open(path); err == nil {
			f.Close()
			t.Errorf("opened %d bytes of %d", n, len(good))
		}
	}
	if err := os.WriteFile(path, append(clone(good), 0), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "something was appended") {
		t.Errorf("a byte more: %v", err)
	}
}

// TestShortenedWhileOpen: Verify reads the file, so that it can say what a mapping could not.
func TestShortenedWhileOpen(t *testing.T) {
	path, _ := smallFile(t, smallConfig())
	f := openFile(t, path)
	if err := os.Truncate(path, f.Size()-1); err != nil {
		t.Fatal(err)
	}
	if err := f.Verify(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "it was shortened") {
		t.Errorf("verify: %v", err)
	}
}

func TestVerifyCancelled(t *testing.T) {
	path, _ := smallFile(t, smallConfig())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := openFile(t, path).Verify(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("verify: %v", err)
	}
}

// TestHostile builds files whose checksums are right and whose content is not.
func TestHostile(t *testing.T) {
	le := binary.LittleEndian
	good := smallBytes(t, biasConfig())
	dirAt, dirLen := sectionOf(good, sectionDirectory)
	setSection := func(i int, offset, length uint64) func([]byte) {
		return func(b []byte) {
			le.PutUint64(b[sectionsAt+i*sectionSize:], offset)
			le.PutUint64(b[sectionsAt+i*sectionSize+8:], length)
		}
	}
	entry := func(i, at int, v uint64) func([]byte) {
		return func(b []byte) { le.PutUint64(b[dirAt+i*entrySize+at:], v) }
	}
	config := func(from, to string) func([]byte) {
		return func(b []byte) {
			off, n := sectionOf(b, sectionConfig)
			changed := bytes.Replace(b[off:off+n], []byte(from), []byte(to), 1)
			if len(changed) != n || bytes.Equal(changed, b[off:off+n]) {
				t.Fatalf("replacing %s", from)
			}
			copy(b[off:], changed)
		}
	}
	for name, test := range map[string]struct {
		change func([]byte)
		want   string
	}{
		"version":               {func(b []byte) { b[8] = 2 }, "format version 2, expected 1"},
		"file size":             {func(b []byte) { le.PutUint64(b[16:], 1<<63) }, "file size of 9223372036854775808"},
		"reserved":              {func(b []byte) { b[12] = 1 }, "reserved bytes of the header"},
		"reserved end":          {func(b []byte) { b[headerSumAt-1] = 1 }, "reserved bytes of the header"},
		"config of 2^63":        {setSection(sectionConfig, SectionAlign, 1<<63), "section config has 9223372036854775808 bytes"},
		"config of 2^64-1":      {setSection(sectionConfig, SectionAlign, math.MaxUint64), "section config has 18446744073709551615 bytes"},
		"directory of billions": {setSection(sectionDirectory, uint64(dirAt), 1e9*entrySize), "section directory has 128000000000 bytes"},
		"long directory":        {setSection(sectionDirectory, uint64(dirAt), uint64(dirLen+1<<20)), "expected"},
		"directory outside":     {setSection(sectionDirectory, 1<<40, uint64(dirLen)), "section directory begins at byte 1099511627776"},
		"overlapping sections":  {setSection(sectionTokenizer, SectionAlign, 18), "section tokenizer begins at byte 16384"},
		"tensors of 2^62":       {setSection(sectionTensors, uint64(dirAt)+SectionAlign, 1<<62), "section tensors has"},
		"tensors of 2^60":       {setSection(sectionTensors, uint64(dirAt)+SectionAlign, 1<<60), "expected"},
		"tensors' sum":          {func(b []byte) { b[sectionsAt+sectionTensors*sectionSize+16] = 1 }, "checksum of section tensors"},
		"name":                  {func(b []byte) { b[dirAt] = 'E' }, `tensor 0 of the directory: is "Embed", expected "embed"`},
		"swapped":               {swapEntries(dirAt, 0, 1), `tensor 0 of the directory: is "blocks.0.qkvo"`},
		"twice":                 {func(b []byte) { copy(b[dirAt+entrySize:], b[dirAt:dirAt+entrySize]) }, `tensor 1 of the directory: is "embed"`},
		"rows":                  {entry(0, 64, 1<<63), "rows 9223372036854775808, expected 41"},
		"columns":               {entry(0, 72, 41), "columns 41, expected 40"},
		"offset":                {entry(1, 80, 0), "offset 0, expected"},
		"overlap":               {entry(1, 80, uint64(dirAt)+SectionAlign), "offset"},
		"length":                {entry(1, 88, math.MaxUint64), "length 18446744073709551615, expected"},
		"kind":                  {func(b []byte) { b[dirAt+56] = 9 }, "no such encoding: kind 9"},
		"asymmetric":            {func(b []byte) { b[dirAt+57] = 2 }, "byte for asymmetric is 2"},
		"group":                 {func(b []byte) { b[dirAt+58] = 48 }, "no such encoding"},
		"entry reserved":        {func(b []byte) { b[dirAt+60] = 1 }, "reserved bytes are not zero"},
		"gates":                 {func(b []byte) { b[dirAt+3*entrySize+56] = byte(FP16) }, "gates is fp16, expected fp32"},
		"other encoding":        {func(b []byte) { b[dirAt+56] = byte(FP16) }, "length"},
		"config vocabulary":     {config(`"vocab_size":41`, `"vocab_size":42`), "rows 41, expected 42"},
		"config blocks":         {config(`"num_blocks":2`, `"num_blocks":9`), "directory has"},
		"config heads":          {config(`"num_heads":2`, `"num_heads":3`), "not multiples of num_heads 3"},
		"config key":            {config(`"vocab_size"`, `"vocab_sise"`), "unknown field"},
		"config case":           {config(`"vocab_size"`, `"Vocab_size"`), "not in canonical form"},
		"config bool":           {config(`"head_bias":true`, `"head_bias":null`), "not in canonical form"},
		"config garbage":        {config(`{`, `[`), "config:"},
		"provenance":            {func(b []byte) { off, _ := sectionOf(b, sectionProvenance); b[off] = 'x' }, "provenance:"},
	} {
		t.Run(name, func(t *testing.T) {
			b := clone(good)
			test.change(b)
			reseal(b)
			_, err := parseBytes(b)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, expected one line with %q", err, test.want)
			}
		})
	}
}

func swapEntries(dirAt, i, j int) func([]byte) {
	return func(b []byte) {
		a, c := b[dirAt+i*entrySize:dirAt+(i+1)*entrySize], b[dirAt+j*entrySize:dirAt+(j+1)*entrySize]
		tmp := clone(a)
		copy(a, c)
		copy(c, tmp)
	}
}

// TestBadPadding writes padding that breaks the rules with checksums that cover it.
func TestBadPadding(t *testing.T) {
	c := smallConfig()
	for i, name := range allEncodings {
		enc, err := ParseEncoding(name)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), fmt.Sprintf("%d.xlstm", i))
		h := smallHeader(c)
		h.Tensors = Specs(&c, func(string) Encoding { return enc })
		w, err := Create(path, h)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		fill(t, w, h.Tensors[1:])
		tw, err := w.Tensor("embed")
		if err != nil {
			t.Fatal(err)
		}
		z := tw.sizes
		rows := bytes.Repeat([]byte{0x77}, int(z.ValueRow)*c.VocabSize)
		if err := tw.WriteRows(rows, make([]byte, int(z.ScaleRow)*c.VocabSize), make([]byte, int(z.MinRow)*c.VocabSize)); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		err = openFile(t, path).Verify(t.Context(), nil)
		if err == nil || !strings.Contains(err.Error(), "tensor embed: row 0 is not padded") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzOpen reads files with any content; checksums are made right, so that what lies behind them is reached. Whatever opens must
// be safe to use.
func FuzzOpen(f *testing.F) {
	for _, c := range []Config{smallConfig(), biasConfig()} {
		c.NumBlocks, c.VocabSize, c.EmbeddingDim, c.FFNDim = 1, 3, 8, 8 // small, so that mutations hit what matters
		b := smallBytes(f, c)
		f.Add(b, false)
		f.Add(b, true)
		f.Add(b[:len(b)/2], true)
		f.Add(b[:headerSize], true)
	}
	f.Add([]byte(magic), false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal && len(b) >= headerSize {
			reseal(b)
		}
		file, err := parseBytes(b)
		if err != nil {
			return
		}
		for _, x := range file.Tensors() {
			_, _, _ = x.Values(), x.Scales(), x.Mins()
			if want := x.Encoding.Sizes(x.Rows, x.Cols).Total; int64(len(x.Data)) != want {
				t.Errorf("%s has %d bytes, expected %d", x.Name, len(x.Data), want)
			}
			_ = x.checkPadding()
		}
		if int64(len(b)) != file.Size() {
			t.Errorf("size %d of %d bytes", file.Size(), len(b))
		}
	})
}
