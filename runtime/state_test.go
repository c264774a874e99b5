package runtime

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"xlstm/kernels"
)

func TestFeedCloneSaveLoad(t *testing.T) {
	m, e := testModel(t, func(history []int32) []float32 {
		out := make([]float32, testVocab)
		out[(len(history)*37+int(history[len(history)-1]))%1000+1] = 3
		return out
	})
	ids := m.Begin(newState(t, m), []int32{4, 5, 6, 7})
	want, _, _ := generate(t, m, newState(t, m), Request{Prompt: ids, MaxTokens: 5})

	s := newState(t, m)
	if err := m.Feed(t.Context(), s, ids[:2], nil); err != nil {
		t.Fatal(err)
	}
	clone, err := s.Clone()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Feed(t.Context(), s, ids[2:], func(done, total int) {
		if done != 3 || total != 3 { // one of the four tokens waits
			t.Errorf("progress %d of %d, expected 3 of 3", done, total)
		}
	}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "state")
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	loaded, err := m.LoadState(path)
	if err != nil {
		t.Fatal(err)
	}
	if s.Tokens() != 5 || loaded.Tokens() != 5 || clone.Tokens() != 2 {
		t.Errorf("%d, %d and %d tokens; expected 5, 5 and 2", s.Tokens(), loaded.Tokens(), clone.Tokens())
	}
	for name, c := range map[string]struct {
		state  *State
		prompt []int32
	}{"fed": {s, nil}, "loaded": {loaded, nil}, "cloned": {clone, ids[2:]}} {
		if got, _, _ := generate(t, m, c.state, Request{Prompt: c.prompt, MaxTokens: 5}); !slices.Equal(got, want) {
			t.Errorf("%s: %v, expected %v", name, got, want)
		}
	}
	if err := m.Feed(t.Context(), s, []int32{testVocab}, nil); err == nil || s.broken != nil {
		t.Errorf("an id outside the vocabulary: %v; broken: %v", err, s.broken)
	}
	e.before = func([]kernels.Step) error { return errors.New("device lost") }
	if err := m.Feed(t.Context(), s, []int32{1, 2}, nil); err == nil {
		t.Error("a failed step is no error")
	}
	e.before = nil
	checkBroken(t, m, s)
}

// Cancelled before a piece, the tokens wait, and so they do in a file.
func TestFeedCancelledBetweenPieces(t *testing.T) {
	m, _ := testModel(t, script(0, nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := newState(t, m)
	if err := m.Feed(ctx, s, []int32{1, 2, 3}, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "state")
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	loaded, err := m.LoadState(path)
	if err != nil || loaded.Tokens() != 3 {
		t.Fatalf("%v; %d tokens, expected 3", err, loaded.Tokens())
	}
	generate(t, m, loaded, Request{MaxTokens: 1})
	if got := loaded.memory.(*fakeState).history; !slices.Equal(got, []int32{1, 2, 3}) {
		t.Errorf("fed %v", got)
	}
}

// savedState is the bytes of a state of a few tokens.
func savedState(t testing.TB, m *Model) []byte {
	t.Helper()
	s := newState(t, m)
	if err := m.Feed(context.Background(), s, []int32{0, 9, 8}, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "state")
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// resummed makes the checksum of a changed state right again.
func resummed(data []byte) []byte {
	n := len(data) - 4
	return binary.LittleEndian.AppendUint32(slices.Clone(data[:n]), crc32.Checksum(data[:n], castagnoli))
}

func TestLoadStateRefuses(t *testing.T) {
	m, _ := testModel(t, script(0, nil))
	good := savedState(t, m)
	path := filepath.Join(t.TempDir(), "state")
	refused := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := m.LoadState(path); err == nil {
			t.Errorf("%s was accepted", name)
		} else if !bytes.Contains([]byte(err.Error()), []byte(path)) {
			t.Errorf("%s: %v does not name the file", name, err)
		}
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 1 << (i % 8)
		if _, err := m.readState(bytes.NewReader(bad), int64(len(bad))); err == nil {
			t.Errorf("a flipped bit in byte %d was accepted", i)
		}
		if _, err := m.readState(bytes.NewReader(good[:i]), int64(i)); err == nil {
			t.Errorf("the first %d bytes were accepted", i)
		}
	}
	refused("a truncated file", good[:len(good)/2])
	refused("a longer file", append(slices.Clone(good), 0))
	for _, c := range []struct {
		name   string
		offset int
		value  uint32
	}{
		{"another magic", 0, 0}, {"another version", 8, 2}, {"another count", 12, 2}, {"a huge count", 12, 1<<32 - 1}, {"another model", 16, 7},
		{"an impossible number of tokens", 52, 1 << 31}, {"another number of values", 56, 5}, {"a token outside the vocabulary", stateHeader, testVocab},
		{"a negative token", stateHeader, 1<<32 - 1}, {"an infinite value", stateHeader + 8, math.Float32bits(float32(math.Inf(1)))},
	} {
		bad := slices.Clone(good)
		binary.LittleEndian.PutUint32(bad[c.offset:], c.value)
		refused(c.name, resummed(bad))
	}
	if _, err := m.LoadState(filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("an absent file was loaded")
	}
	if _, err := m.LoadState(t.TempDir()); err == nil {
		t.Error("a directory was loaded")
	}
}

func FuzzLoadState(f *testing.F) {
	m, _ := testModel(f, script(0, nil))
	good := savedState(f, m)
	f.Add(good)
	f.Add(good[:stateHeader])
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, d := range [][]byte{data, resummed(append(slices.Clone(data), 0, 0, 0, 0))} {
			s, err := m.readState(bytes.NewReader(d), int64(len(d)))
			if err != nil {
				continue
			}
			var again bytes.Buffer
			if err := s.write(&again); err != nil {
				continue // the test's states hold few tokens
			}
			if again.Len() != len(d) {
				t.Fatalf("%d bytes written again as %d", len(d), again.Len())
			}
		}
	})
}

// A state that cannot be written leaves what was there, and nothing else.
func TestSaveWholeOrNot(t *testing.T) {
	m, _ := testModel(t, script(0, nil))
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newState(t, m)
	s.memory.(*fakeState).history = make([]int32, m.cfg.StateFloats()) // more than Export takes
	if err := s.Save(path); err == nil {
		t.Error("saved")
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "old" {
		t.Errorf("the old file is %q, %v", data, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%d files are left, %v", len(entries), err)
	}
	absent := filepath.Join(dir, "absent", "state")
	if err := newState(t, m).Save(absent); err == nil || !strings.Contains(err.Error(), absent+":") || strings.Contains(err.Error(), ".tmp") {
		t.Errorf("saved into a directory that does not exist: %v", err)
	}
	// A rename would replace a device or a link to one; os.DevNull stands for all that is no regular file.
	for _, special := range []string{os.DevNull, dir} {
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(special, link); err != nil {
			t.Skip(err)
		}
		if err := newState(t, m).Save(link); err == nil {
			t.Errorf("saved over %s", special)
		}
		if info, err := os.Lstat(link); err != nil || info.Mode().IsRegular() {
			t.Errorf("the link to %s is %v, %v", special, info, err)
		}
	}
}

// Goroutines share a model, each with its own state; the engine sees one at a time.
func TestConcurrentGenerate(t *testing.T) {
	m, _ := testModel(t, func(history []int32) []float32 {
		out := make([]float32, testVocab)
		out[int(history[0])+len(history)] = 2
		return out
	})
	m.cfg.ForceBOS = false
	var wg sync.WaitGroup
	for i := range int32(4) {
		wg.Go(func() {
			s := newState(t, m)
			var ids []int32
			for p, err := range m.Generate(context.Background(), s, Request{Prompt: []int32{10 * (i + 1)}, MaxTokens: 20}) {
				if err != nil {
					t.Error(err)
					return
				}
				ids = append(ids, p.Token)
			}
			for n, id := range ids {
				if id != 10*(i+1)+int32(n)+1 {
					t.Errorf("sequence %d: %v", i, ids)
					return
				}
			}
		})
	}
	wg.Wait()
}
