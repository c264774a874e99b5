package calibrate

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// identity is what a calibration's results depend on, field by field so that an error can say what differs.
type identity struct {
	Version int    `json:"version"` // of the records and of what they hold
	Source  string `json:"source"`
	Model   string `json:"model"` // config
	Recipe  string `json:"recipe"`
	Samples string `json:"samples"` // SHA-256 of their tokens
	Options string `json:"options"`
}

const identityVersion = 1

func (i *identity) fields() [6][2]string {
	return [6][2]string{
		{"version", fmt.Sprint(i.Version)}, {"source", i.Source}, {"model", i.Model}, {"recipe", i.Recipe}, {"samples", i.Samples},
		{"options", i.Options},
	}
}

// key is the identity's hash; each record carries it.
func (i *identity) key() (k [sha256.Size]byte) {
	h := sha256.New()
	for _, f := range i.fields() {
		fmt.Fprintf(h, "%d:%s", len(f[1]), f[1])
	}
	h.Sum(k[:0])
	return k
}

func hashSamples(samples [][]int32) string {
	h := sha256.New()
	for _, s := range samples {
		b := binary.LittleEndian.AppendUint64(nil, uint64(len(s)))
		for _, id := range s {
			b = binary.LittleEndian.AppendUint32(b, uint32(id))
		}
		h.Write(b)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// workDir holds what is finished: per block its encoded tensors, and the hidden vectors after the last one.
type workDir struct {
	path string
	key  [sha256.Size]byte
}

const identityName = "calibration.json"

func blockName(i int) string  { return fmt.Sprintf("block-%04d.bin", i) }
func hiddenName(i int) string { return fmt.Sprintf("hidden-%04d.bin", i) }

const headName = "head.bin"

// openWorkDir makes the directory, or finds that it is of the same calibration.
func openWorkDir(path string, id *identity) (*workDir, error) {
	w := &workDir{path: path, key: id.key()}
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir(path, 0o777); err != nil {
			return nil, fmt.Errorf("work directory: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("work directory: %w", err)
	}
	name := filepath.Join(path, identityName)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		for _, e := range entries {
			if !w.mine(e.Name()) || !strings.HasSuffix(e.Name(), ".tmp") {
				return nil, fmt.Errorf("%s: holds %s and no %s: not the work directory of a calibration", path, e.Name(), identityName)
			}
		}
		return w, writeIdentity(name, id)
	} else if err != nil {
		return nil, fmt.Errorf("work directory: %w", err)
	}
	var found identity
	if err := json.Unmarshal(text, &found); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	want := id.fields()
	for i, f := range found.fields() {
		if f != want[i] {
			return nil, fmt.Errorf("%s: holds another calibration, whose %s is %q, expected %q: go on with that one, or remove the directory",
				path, f[0], f[1], want[i][1])
		}
	}
	return w, nil
}

func writeIdentity(name string, id *identity) error {
	text, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), identityName+".*.tmp")
	if err != nil {
		return fmt.Errorf("work directory: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the error to report is the first
		return fmt.Errorf("work directory: %w", err)
	}
	return nil
}

// mine reports whether a calibration makes files of this name.
func (w *workDir) mine(name string) bool {
	for _, p := range []string{"block-*.bin", "hidden-*.bin", headName, identityName} {
		for _, pattern := range []string{p, p + ".*.tmp"} {
			if ok, _ := filepath.Match(pattern, name); ok { // the patterns are right
				return true
			}
		}
	}
	return false
}

func (w *workDir) file(name string) string { return filepath.Join(w.path, name) }

func (w *workDir) has(name string) bool {
	_, err := os.Stat(w.file(name))
	return err == nil
}

// remove takes the directory away, unless there is something in it that is not a calibration's.
func (w *workDir) remove() error {
	entries, err := os.ReadDir(w.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if w.mine(e.Name()) {
			if err := os.Remove(w.file(e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(w.path)
}

// hiddenHead describes hidden vectors: those that block Block reads.
type hiddenHead struct {
	Block  int `json:"block"`
	Floats int `json:"floats"`
}

// saveHidden stores the hidden vectors that block i reads, and removes those of the block before.
func (w *workDir) saveHidden(ctx context.Context, i int, hidden [][]float32) error {
	n := 0
	for _, h := range hidden {
		n += len(h)
	}
	buf := make([]byte, 0, copyBytes)
	err := writeRecord(ctx, w.file(hiddenName(i)), w.key, hiddenHead{i, n}, func(out io.Writer) error {
		for _, h := range hidden {
			for at := 0; at < len(h); at += copyBytes / 4 {
				buf = buf[:0]
				for _, v := range h[at:min(at+copyBytes/4, len(h))] {
					buf = binary.LittleEndian.AppendUint32(buf, math.Float32bits(v))
				}
				if _, err := out.Write(buf); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := os.Remove(w.file(hiddenName(i - 1))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// loadHidden reads them into vectors of the same sizes.
func (w *workDir) loadHidden(ctx context.Context, i int, hidden [][]float32) error {
	var head hiddenHead
	r, err := openRecord(ctx, w.file(hiddenName(i)), w.key, &head)
	if err != nil {
		return err
	}
	defer r.close()
	n := 0
	for _, h := range hidden {
		n += len(h)
	}
	if head.Block != i || head.Floats != n || r.size != 4*int64(n) {
		return fmt.Errorf("%s: %d hidden vectors' values of block %d, expected %d of block %d", r.f.Name(), head.Floats, head.Block, n, i)
	}
	at := int64(0)
	for _, h := range hidden {
		b := make([]byte, 4*len(h))
		if err := r.readAt(b, at); err != nil {
			return err
		}
		for j := range h {
			h[j] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*j:]))
		}
		at += int64(len(b))
	}
	return nil
}
