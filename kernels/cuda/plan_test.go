package cuda

import (
	"math/rand/v2"
	"os"
	"testing"
	"unsafe"

	"xlstm/format"
	"xlstm/kernels"
)

// TestFatbinMatchesSource: the committed kernels are compiled from the committed source.
func TestFatbinMatchesSource(t *testing.T) {
	want, err := sourceHash(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	got, err := fatbinHash(fatbin)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("kernels.fatbin is compiled from source %s, the source here is %s: make cuda-kernels", got, want)
	}
	if _, err := fatbinHash(fatbin[:len(fatbin)-100]); err == nil {
		t.Error("kernels without a hash passed")
	}
}

// TestArgSizes: the sizes that the .cu files assert.
func TestArgSizes(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"Mat", unsafe.Sizeof(matArg{}), 56}, {"Piece", unsafe.Sizeof(pieceArg{}), 16}, {"Next", unsafe.Sizeof(nextArg{}), 24}, {"GemvArgs", unsafe.Sizeof(gemvArgs{}), 240},
		{"GemmArgs", unsafe.Sizeof(gemmArgs{}), 104}, {"CellArgs", unsafe.Sizeof(cellArgs{}), 136}, {"ScanArgs", unsafe.Sizeof(scanArgs{}), 80},
		{"ChunkArgs", unsafe.Sizeof(chunkArgs{}), 176}, {"EmbedArgs", unsafe.Sizeof(embedArgs{}), 80}, {"NormArgs", unsafe.Sizeof(normArgs{}), 88},
		{"GatesArgs", unsafe.Sizeof(gatesArgs{}), 88}, {"LogitArgs", unsafe.Sizeof(logitArgs{}), 40}, {"BiasArgs", unsafe.Sizeof(biasArgs{}), 40},
		{"StateArgs", unsafe.Sizeof(stateArgs{}), 48}, {"DequantArgs", unsafe.Sizeof(dequantArgs{}), 80}, {"ConvertArgs", unsafe.Sizeof(convertArgs{}), 24},
		{"SpreadArgs", unsafe.Sizeof(spreadArgs{}), 32}, {"FillArgs", unsafe.Sizeof(fillArgs{}), 32}, {"SampleArgs", unsafe.Sizeof(sampleArgs{}), 64}, {"IntArgs", unsafe.Sizeof(intArgs{}), 160},
		{"WgArgs", unsafe.Sizeof(wgArgs{}), 384},
	} {
		if c.got != c.want {
			t.Errorf("%s has %d bytes, the kernels expect %d", c.name, c.got, c.want)
		}
	}
}

// TestPlanPasses: every token of a batch goes through exactly once, in order, within the limit.
func TestPlanPasses(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var batch []kernels.Step
		total := 0
		for range 1 + r.IntN(20) {
			n := 1 + r.IntN(40)*r.IntN(2)
			batch = append(batch, kernels.Step{Tokens: make([]int32, n)})
			total += n
		}
		limit, chunkwise := 1+r.IntN(64), r.IntN(2) == 0
		next := make([]int, len(batch))
		for i, p := range planPasses(batch, limit, chunkwise) {
			tok, chunks := 0, 0
			if p.tokens > limit || p.tokens == 0 {
				t.Fatalf("pass %d has %d tokens, limit %d", i, p.tokens, limit)
			}
			for j, c := range p.pieces {
				if c.tok != tok || c.from != next[c.step] {
					t.Fatalf("piece %+v: expected token %d at place %d", c, next[c.step], tok)
				}
				recurrent := !chunkwise || c.len < shortPiece
				if recurrent != (j < p.recurrent) {
					t.Fatalf("piece %+v is number %d of %d, %d recurrent", c, j, len(p.pieces), p.recurrent)
				}
				if !recurrent {
					chunks += (c.len + chunkLen - 1) / chunkLen
				}
				tok += c.len
				next[c.step] += c.len
				total -= c.len
			}
			if tok != p.tokens || chunks != p.chunks {
				t.Fatalf("pass of %d tokens and %d chunks says %d and %d", tok, chunks, p.tokens, p.chunks)
			}
		}
		if total != 0 {
			t.Fatalf("%d tokens are left over", total)
		}
	}
}

// TestWantedRows: exactly the tokens that a step asks for.
func TestWantedRows(t *testing.T) {
	const v = 10
	batch := []kernels.Step{
		{Tokens: make([]int32, 3), Logits: make([]float32, v)},
		{Tokens: make([]int32, 2), Logits: make([]float32, 2*v)},
		{Tokens: make([]int32, 2), Targets: []int32{-1, 4}, LogProbs: make([]float32, 2)},
		{Tokens: make([]int32, 4)},
		{Tokens: make([]int32, 1), Logits: make([]float32, v)},
	}
	type key struct {
		step, token int
		logits      bool
		target      int32
	}
	got := map[key]bool{}
	for _, p := range planPasses(batch, 4, true) {
		for _, w := range wantedRows(batch, &p, v) {
			got[key{w.step, w.token, w.logits, w.target}] = true
			if w.logits && len(logitsOf(&batch[w.step], w.token, v)) != v {
				t.Errorf("%+v: not one row of logits", w)
			}
		}
	}
	want := []key{{0, 2, true, -1}, {1, 0, true, -1}, {1, 1, true, -1}, {2, 1, false, 4}, {4, 0, true, -1}}
	for _, k := range want {
		if !got[k] {
			t.Errorf("%+v is missing", k)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d rows, expected %d: %v", len(got), len(want), got)
	}
}

// TestSharedMemory: what the kernels ask for fits the cards they are compiled for, with a 7B's widths.
func TestSharedMemory(t *testing.T) {
	const h100, rtx = 227 << 10, 99 << 10
	for _, enc := range []string{"fp16", "int8", "int8g64", "int4g64", "int4g64a"} {
		e, err := format.ParseEncoding(enc)
		if err != nil {
			t.Fatal(err)
		}
		for _, cols := range []int{4096, 10944} {
			w := matrixArg(&format.Tensor{Encoding: e, Rows: 4096, Cols: cols}, 256)
			if _, split, ok := gemvShared(&w, 1, h100); !ok || !split {
				t.Errorf("%s: one token of %d values does not fit an H100", enc, cols)
			}
			if _, _, ok := gemvShared(&w, 1, rtx); !ok && !e.Asymmetric {
				t.Errorf("%s: one token of %d values does not fit 99 KB", enc, cols)
			}
			if _, _, ok := gemvShared(&w, fewTokens+1, h100); ok {
				t.Errorf("%s: nine tokens pass for eight", enc)
			}
		}
		if n := gemmShared(deviceEncoding(e)); n > h100 {
			t.Errorf("%s: the matrix kernel needs %d bytes", enc, n)
		}
	}
	if n := chunkShared(256, 2); n > h100 {
		t.Errorf("the chunkwise kernel needs %d bytes on an H100", n)
	}
	if n := chunkShared(256, 1); n > rtx {
		t.Errorf("the chunkwise kernel needs %d bytes in its smaller form", n)
	}
}

// TestOnePlan: a 7B's vectors let two blocks run on a multiprocessor of an H100, all warps have work, and what the kernel cannot take is
// refused.
func TestOnePlan(t *testing.T) {
	const sms, h100, rtx = 132, 227 << 10, 99 << 10
	for _, c := range []struct {
		enc        string
		rows, cols int
		limit      int
		blocks     int // 0: refused
		team       int
	}{
		{"fp16", 12288, 4096, h100, 264, 4}, {"fp16", 4096, 10944, h100, 264, 4}, {"int8", 21888, 4096, h100, 264, 4}, {"int8", 4096, 10944, h100, 264, 4},
		{"int4g64", 50304, 4096, h100, 264, 4}, {"int4g64", 4096, 10944, h100, 264, 4}, {"int4g64a", 4096, 10944, h100, 132, 4}, {"int4g32", 12288, 4096, h100, 264, 4},
		{"int4g64", 4096, 4096, rtx, 132, 4}, {"int4g64", 4096, 10944, rtx, 0, 0},
		{"int4g64", 1024, 1024, h100, 264, 2}, {"int8", 1024, 1024, h100, 264, 3}, {"int4g64", 1024, 384, h100, 264, 1},
		{"int4g64", 1000, 1024, h100, 0, 0}, {"int4g64", 1024, 256, h100, 0, 0}, {"fp32", 1024, 1024, h100, 0, 0}, {"fp16", 1 << 20, 4096, h100, 0, 0},
	} {
		e, err := format.ParseEncoding(c.enc)
		if err != nil {
			t.Fatal(err)
		}
		w := matrixArg(&format.Tensor{Encoding: e, Rows: c.rows, Cols: c.cols}, 256)
		blocks, shared, team, ok := onePlan(&w, sms, c.limit)
		switch {
		case !ok:
			if c.blocks != 0 {
				t.Errorf("%s, %d x %d: refused", c.enc, c.rows, c.cols)
			}
		case blocks != c.blocks || team != c.team || shared*blocks/sms > c.limit:
			t.Errorf("%s, %d x %d: %d blocks of %d bytes in teams of 2^%d, expected %d, 2^%d", c.enc, c.rows, c.cols, blocks, shared, team, c.blocks, c.team)
		}
	}
}

// TestStateShape: 7B's state on the device is close to what it is anywhere.
func TestStateShape(t *testing.T) {
	cfg := format.Config{VocabSize: 50304, EmbeddingDim: 4096, NumBlocks: 32, NumHeads: 8, QKDim: 2048, VDim: 4096, FFNDim: 10944}
	s := newStateShape(&cfg, StateFP32)
	if flat := int64(cfg.StateFloats()) * 4; s.bytes() < flat || s.bytes() > flat*104/100 {
		t.Errorf("a state has %d bytes, %d values", s.bytes(), cfg.StateFloats())
	}
	h := newStateShape(&cfg, StateBF16)
	if h.bytes() > s.bytes()*54/100 {
		t.Errorf("bf16 halves %d bytes to %d", s.bytes(), h.bytes())
	}
	if s.recordBytes()%16 != 0 || h.recordBytes()%16 != 0 {
		t.Error("records are not aligned for 16-byte loads")
	}
	for _, name := range []string{"fp32", "bf16", "fp16"} {
		if k, err := ParseStateType(name); err != nil || k.String() != name {
			t.Errorf("%s: %v %v", name, k, err)
		}
	}
	if _, err := ParseStateType("int8"); err == nil {
		t.Error("int8 is no state type")
	}
}

// TestPromptMath: names, and what they stand for.
func TestPromptMath(t *testing.T) {
	for _, name := range []string{"auto", "fp16", "int8"} {
		if m, err := ParsePromptMath(name); err != nil || m.String() != name {
			t.Errorf("%s: %v %v", name, m, err)
		}
	}
	if _, err := ParsePromptMath("bf16"); err == nil {
		t.Error("bf16 is no arithmetic of prompts")
	}
	if PromptFP16.products() != 0 || PromptInt8.products() != allProducts || PromptAuto.products()&^allProducts != 0 {
		t.Error("products in int8 are not what the names say")
	}
}

// TestSplits: parts of K only where they give multiprocessors work, and never more than there is room for.
func TestSplits(t *testing.T) {
	for _, rows := range []int{64, 4096, 12288, 50304} {
		for _, n := range []int{9, 64, 256, 2048} {
			w := matArg{rows: int32(rows), rowBytes: 8192}
			s := splitsFor(&w, n, 132, splitRoom)
			tiles := (rows + 127) / 128 * ((n + 63) / 64)
			if s < 1 || s > 1 && (s*n*rows*4 > splitRoom || tiles >= 132 || s > 16) {
				t.Errorf("%d rows, %d tokens: %d splits", rows, n, s)
			}
		}
	}
}

const splitRoom = 32 << 20

// TestSupported: what the kernels refuse, and which heads take the chunkwise kernel.
func TestSupported(t *testing.T) {
	model := func(heads, qk, v int) *format.Config {
		return &format.Config{VocabSize: 100, EmbeddingDim: 64, NumBlocks: 1, NumHeads: heads, QKDim: qk, VDim: v, FFNDim: 64, BOS: -1}
	}
	for _, c := range []struct {
		cfg             *format.Config
		runs, chunkwise bool
	}{
		{model(8, 2048, 4096), true, true}, {model(2, 32, 64), true, true}, {model(2, 40, 84), true, false}, {model(1, 512, 64), true, false},
		{model(1, 516, 64), false, false}, {model(2, 12, 64), false, false}, {model(3, 32, 64), false, false},
	} {
		err := supported(c.cfg)
		if (err == nil) != c.runs {
			t.Errorf("heads of %d/%d: %v", c.cfg.QKDim, c.cfg.NumHeads, err)
		}
		if c.runs && chunkable(c.cfg) != c.chunkwise {
			t.Errorf("heads of %d and %d: chunkwise is %v", c.cfg.HeadQKDim(), c.cfg.HeadVDim(), !c.chunkwise)
		}
	}
	if n := scoresShared(256); n > 99<<10 {
		t.Errorf("the scores' kernel needs %d bytes", n)
	}
}
