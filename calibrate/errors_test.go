package calibrate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"xlstm/checkpoints"
	"xlstm/checkpoints/demo"
	"xlstm/convert"
	"xlstm/format"
)

// expect fails where an error does not hold all of the words.
func expect(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, expected one about %q", words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q, expected %q in it", err, w)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q is more than one line", err)
	}
}

// stopped is the work directory of a calibration that was stopped after its first block.
func stopped(t *testing.T, src *convert.Source, samples [][]int32, o Options) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "work")
	o.WorkDir = dir
	ctx, cancel := context.WithCancel(t.Context())
	o.Progress = func(p Progress) {
		if p.Block == 1 {
			cancel()
		}
	}
	if _, err := Run(ctx, src, samples, dir+".xlstm", o); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	return dir
}

// TestOtherWorkDir gives a calibration the work directory of another one.
func TestOtherWorkDir(t *testing.T) {
	src := source(t, "tiny-fp32")
	samples := randomSamples(src.Config(), 1, 3, 20)
	base := Options{Convert: convert.Options{Recipe: "int4"}, Source: "a"}
	base.WorkDir = stopped(t, src, samples, base)
	for what, change := range map[string]func(o *Options){
		"source":  func(o *Options) { o.Source = "b" },
		"recipe":  func(o *Options) { o.Convert.Recipe = "int8" },
		"samples": nil,
		"damping": func(o *Options) { o.Damping = 0.1 },
		"order":   func(o *Options) { o.ActOrder = true },
		"rotati":  func(o *Options) { o.Convert.Rotate = new(uint64) },
	} {
		o, s := base, samples
		if change == nil {
			s = samples[1:]
		} else {
			change(&o)
		}
		_, err := Run(t.Context(), src, s, base.WorkDir+".xlstm", o)
		expect(t, err, base.WorkDir, "another calibration", what)
	}
	if _, err := Run(t.Context(), src, samples, base.WorkDir+".xlstm", base); err != nil {
		t.Errorf("and its own: %v", err)
	}
}

// TestForeignDirectory must leave what is not a calibration's alone.
func TestForeignDirectory(t *testing.T) {
	src := source(t, "tiny-fp32")
	dir := t.TempDir()
	name := filepath.Join(dir, "letter.txt")
	if err := os.WriteFile(name, []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{Convert: convert.Options{Recipe: "int4"}, WorkDir: dir}
	samples := randomSamples(src.Config(), 1, 3, 20)
	_, err := Run(t.Context(), src, samples, dir+".xlstm", o)
	expect(t, err, dir, "letter.txt", "not the work directory")
	if b, err := os.ReadFile(name); string(b) != "dear" {
		t.Errorf("the letter is %q (%v)", b, err)
	}
	o.WorkDir = name
	_, err = Run(t.Context(), src, samples, dir+".xlstm", o)
	expect(t, err, name)

	o.WorkDir = stopped(t, src, samples, o) // and what is put there later
	name = filepath.Join(o.WorkDir, "letter.txt")
	if err := os.WriteFile(name, []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Run(t.Context(), src, samples, dir+".xlstm", o)
	expect(t, err, dir+".xlstm is complete", o.WorkDir)
	if b, err := os.ReadFile(name); string(b) != "dear" {
		t.Errorf("the letter is %q (%v)", b, err)
	}
}

// TestDamagedRecords flips, cuts and adds bytes of what is finished.
func TestDamagedRecords(t *testing.T) {
	src := source(t, "tiny-fp32")
	samples := randomSamples(src.Config(), 1, 3, 20)
	o := Options{Convert: convert.Options{Recipe: "int4"}}
	o.WorkDir = stopped(t, src, samples, o)
	for _, name := range []string{blockName(0), hiddenName(1), identityName} {
		path := filepath.Join(o.WorkDir, name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(good)
		flipped[len(flipped)/2] ^= 64
		for _, bad := range [][]byte{flipped, good[:len(good)/2], good[:7], nil, append(bytes.Clone(good), 0)} {
			if name == identityName && len(bad) == len(good)+1 {
				bad[len(good)] = '}'
			}
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Run(t.Context(), src, samples, o.WorkDir+".xlstm", o)
			expect(t, err, o.WorkDir)
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Run(t.Context(), src, samples, o.WorkDir+".xlstm", o); err != nil {
		t.Error(err)
	}
}

func TestSampleText(t *testing.T) {
	c, err := checkpoints.OpenFS(demo.FS(), "demo")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	src, err := convert.FromCheckpoint(c)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("It was a dark and stormy night. ", 20)
	got, err := SampleText(src, text, 3, 5)
	if err != nil {
		t.Fatal(err)
	}
	all, err := SampleText(src, text, 1, 100)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || len(got[2]) != 5 || got[0][0] != 0 || got[1][0] != 0 || !slices.Equal(got[0], all[0][:5]) {
		t.Errorf("samples are %v, of %v", got, all)
	}
	_, err = SampleText(src, text, 4, 100)
	expect(t, err, "too short", "4 samples of 100 tokens need 396 tokens of text, found ")
	_, err = SampleText(src, "", 1, 100)
	expect(t, err, "too short", "found 0")
	_, err = SampleText(src, text, 0, 100)
	expect(t, err, "0 samples")
	_, err = SampleText(source(t, "tiny-fp32"), text, 1, 10)
	expect(t, err, "tokenizer")
}

func TestBadInput(t *testing.T) {
	src := source(t, "tiny-fp32")
	samples := randomSamples(src.Config(), 1, 2, 10)
	dir := t.TempDir()
	path := filepath.Join(dir, "m.xlstm")
	for name, c := range map[string]struct {
		samples [][]int32
		path    string
		o       Options
		words   []string
	}{
		"nothing to do":    {samples, path, Options{Convert: convert.Options{Recipe: "fp16"}}, []string{"fp16", "nothing to calibrate"}},
		"no such recipe":   {samples, path, Options{Convert: convert.Options{Recipe: "int5"}}, []string{"int5"}},
		"no such tensor":   {samples, path, Options{Convert: convert.Options{Recipe: "int4", Overrides: []string{"x=int8"}}}, []string{"x"}},
		"no samples":       {nil, path, Options{Convert: convert.Options{Recipe: "int4"}}, []string{"no samples"}},
		"empty sample":     {[][]int32{{}}, path, Options{Convert: convert.Options{Recipe: "int4"}}, []string{"sample 0 is empty"}},
		"unknown token":    {[][]int32{{1 << 30}}, path, Options{Convert: convert.Options{Recipe: "int4"}}, []string{"vocabulary"}},
		"directory":        {samples, dir, Options{Convert: convert.Options{Recipe: "int4"}}, []string{dir, "directory"}},
		"too much damping": {samples, path, Options{Convert: convert.Options{Recipe: "int4"}, Damping: 7}, []string{"damping is 7"}},
		"no directory":     {samples, filepath.Join(dir, "a", "m.xlstm"), Options{Convert: convert.Options{Recipe: "int4"}}, []string{"work directory"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Run(t.Context(), src, c.samples, c.path, c.o)
			expect(t, err, c.words...)
		})
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is an output (%v)", err)
	}
}

// TestOverflow runs a model whose hidden vectors become infinite.
func TestOverflow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.xlstm")
	if err := source(t, "tiny-fp32").Write(t.Context(), path, convert.Options{Recipe: "fp32"}); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := format.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	w, ok := f.Tensor("blocks.1.down")
	at := bytes.Index(whole, w.Data[:256])
	f.Close()
	if !ok || at < 0 {
		t.Fatal("no blocks.1.down")
	}
	for i := range 64 {
		binary.LittleEndian.PutUint32(whole[at+4*i:], math.Float32bits(3e38))
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err = format.Open(path); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	src, err := convert.FromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Run(t.Context(), src, randomSamples(src.Config(), 1, 2, 30), path+"2", Options{Convert: convert.Options{Recipe: "int4"}})
	expect(t, err, "block 1", "not finite")
}

// FuzzRecord reads records of any bytes: an error, or what was written.
func FuzzRecord(f *testing.F) {
	dir := f.TempDir()
	key := sha256.Sum256([]byte("key"))
	path := filepath.Join(dir, "r.bin")
	err := writeRecord(f.Context(), path, key, hiddenHead{1, 2}, func(w io.Writer) error {
		_, err := w.Write([]byte("12345678"))
		return err
	})
	if err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:60])
	f.Add([]byte(recordMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "r.bin")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		var head hiddenHead
		r, err := openRecord(t.Context(), path, key, &head)
		if err != nil {
			expect(t, err, path)
			return
		}
		defer r.close()
		body := make([]byte, r.size)
		if err := r.readAt(body, 0); err != nil {
			t.Fatal(err)
		}
		if err := r.readAt(make([]byte, 1), r.size); err == nil {
			t.Error("read beyond the body")
		}
	})
}
