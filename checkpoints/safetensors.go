package checkpoints

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"

	"github.com/nlpodyssey/safetensors"
)

// Limits on a safetensors header: its bytes and its tensors. The 7B has 483 tensors; the most blocks that a config may have need
// about 115,000 of some 130 bytes each.
const (
	maxHeader  = 16 << 20
	maxTensors = 1 << 17
)

// entry is one tensor of a safetensors file: its bytes are store.data[off : off+size].
type entry struct {
	file      string
	store     *store
	dtype     string
	shape     []int
	off, size int
}

// parseShard lists the tensors of a safetensors file without touching their bytes. It checks what the library leaves unchecked or
// reports without a name (duplicates, element types, sizes) before the library reads the header.
func parseShard(file string, s *store) (map[string]entry, error) {
	header, err := headerBytes(s.data)
	if err != nil {
		return nil, err
	}
	if err := checkHeader(header, uint64(len(s.data)-8-len(header))); err != nil {
		return nil, err
	}
	st, err := safetensors.Deserialize(s.data)
	if err != nil {
		return nil, err
	}
	entries := make(map[string]entry, st.Len())
	// The library checked that tensors lie one after another, which gives each one's place.
	off := 8 + len(header)
	for _, t := range st.Tensors() {
		e := entry{file: file, store: s, dtype: t.TensorView.DType().String(), off: off, size: len(t.TensorView.Data())}
		for _, d := range t.TensorView.Shape() {
			e.shape = append(e.shape, int(d))
		}
		off += e.size
		entries[t.Name] = e
	}
	return entries, nil
}

func headerBytes(data []byte) ([]byte, error) {
	if len(data) < 8 {
		return nil, fmt.Errorf("expected a safetensors header, found a file of %d bytes", len(data))
	}
	n := binary.LittleEndian.Uint64(data)
	if n > maxHeader {
		return nil, fmt.Errorf("the header's length is %d, expected at most %d", n, maxHeader)
	}
	if n > uint64(len(data)-8) {
		return nil, fmt.Errorf("the header's length is %d, found only %d bytes after it", n, len(data)-8)
	}
	return data[8 : 8+n], nil
}

// tensorInfo is a header's entry.
type tensorInfo struct {
	DType   string   `json:"dtype"`
	Shape   []uint64 `json:"shape"`
	Offsets []uint64 `json:"data_offsets"`
}

func checkHeader(header []byte, dataSize uint64) error {
	dec := json.NewDecoder(bytes.NewReader(header))
	tensors := 0
	err := walkObject(dec, func(name string) error {
		if tensors++; tensors > maxTensors {
			return fmt.Errorf("more than %d tensors", maxTensors)
		}
		if name == "__metadata__" {
			var texts map[string]string
			if err := dec.Decode(&texts); err != nil {
				return fmt.Errorf("__metadata__: expected text values: %w", unexpectedEnd(err))
			}
			return nil
		}
		info, err := decodeInfo(dec)
		if err == nil {
			err = info.check(dataSize)
		}
		if err != nil {
			return fmt.Errorf("tensor %s: %w", clip(name), err)
		}
		return nil
	})
	if err == nil {
		err = nothingLeft(dec)
	}
	if err != nil {
		return fmt.Errorf("header: %w", err)
	}
	return nil
}

func decodeInfo(dec *json.Decoder) (tensorInfo, error) {
	var info tensorInfo
	err := walkObject(dec, func(key string) error {
		var into any
		switch key {
		case "dtype":
			into = &info.DType
		case "shape":
			into = &info.Shape
		case "data_offsets":
			into = &info.Offsets
		default:
			return fmt.Errorf("expected dtype, shape and data_offsets, found %s", clip(key))
		}
		if err := dec.Decode(into); err != nil {
			return fmt.Errorf("%s: %w", key, unexpectedEnd(err))
		}
		return nil
	})
	return info, err
}

var elementSizes = map[string]int{"F32": 4, "F16": 2, "BF16": 2}

// check holds an entry against the size of the file's data.
func (t *tensorInfo) check(dataSize uint64) error {
	size, ok := elementSizes[t.DType]
	if !ok {
		return fmt.Errorf("dtype is %.40q, expected F32, F16 or BF16", t.DType)
	}
	if len(t.Shape) < 1 || len(t.Shape) > 2 {
		return fmt.Errorf("shape has %d dimensions, expected 1 or 2", len(t.Shape))
	}
	want := uint64(size)
	for _, d := range t.Shape {
		hi, lo := bits.Mul64(want, d)
		if d == 0 || hi != 0 {
			return fmt.Errorf("shape is %v, expected a size that a file can have", t.Shape)
		}
		want = lo
	}
	if len(t.Offsets) != 2 || t.Offsets[0] > t.Offsets[1] {
		return fmt.Errorf("data_offsets are %v, expected a begin and an end", t.Offsets[:min(len(t.Offsets), 4)])
	}
	if t.Offsets[1] > dataSize {
		return fmt.Errorf("data_offsets are %v, outside the file's %d bytes of data", t.Offsets, dataSize)
	}
	if n := t.Offsets[1] - t.Offsets[0]; n != want {
		return fmt.Errorf("data_offsets span %d bytes, expected %d for %s %v", n, want, t.DType, t.Shape)
	}
	return nil
}

// parseIndex reads the weight_map of model.safetensors.index.json: tensor -> file.
func parseIndex(text []byte) (map[string]string, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	var index map[string]string
	err := walkObject(dec, func(key string) error {
		if key != "weight_map" {
			var skip json.RawMessage
			return unexpectedEnd(dec.Decode(&skip))
		}
		index = map[string]string{}
		return walkObject(dec, func(tensor string) error {
			var file string
			err := dec.Decode(&file)
			index[tensor] = file
			return unexpectedEnd(err)
		})
	})
	if err == nil {
		err = nothingLeft(dec)
	}
	if err != nil {
		return nil, fmt.Errorf("invalid index: %w", err)
	}
	if index == nil {
		return nil, errors.New("weight_map is missing")
	}
	return index, nil
}

// openShards maps the weights' files and lists all their tensors.
func (c *Checkpoint) openShards(dir files, l *layout) (map[string]entry, error) {
	all := map[string]entry{}
	for _, file := range l.weights {
		s, err := dir.mapped(file)
		if err != nil {
			return nil, err
		}
		c.stores = append(c.stores, s)
		c.note(file, int64(len(s.data)))
		entries, err := parseShard(file, s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, name := range sortedKeys(entries) {
			if other, ok := all[name]; ok {
				return nil, fmt.Errorf("%s: tensor %s is in %s, too", file, clip(name), other.file)
			}
			if err := l.checkPlace(file, name); err != nil {
				return nil, err
			}
			all[name] = entries[name]
		}
	}
	for _, name := range sortedKeys(l.index) {
		if _, ok := all[name]; !ok {
			return nil, fmt.Errorf("%s: tensor %s is missing, %s says that it is here", l.index[name], clip(name), l.indexFile)
		}
	}
	return all, nil
}

func (l *layout) checkPlace(file, name string) error {
	if l.index == nil {
		return nil
	}
	switch shard, ok := l.index[name]; {
	case !ok:
		return fmt.Errorf("%s: tensor %s is not in %s", file, clip(name), l.indexFile)
	case shard != file:
		return fmt.Errorf("%s: tensor %s is here, expected it in %s by %s", file, clip(name), clip(shard), l.indexFile)
	}
	return nil
}

// bind checks the tensors that were found against those that the config implies, and gives them their canonical names.
func (c *Checkpoint) bind(l *layout, found map[string]entry) error {
	if l.original {
		// The original's loader takes weights as single whatever its config says, and its own fused checkpoints differ in names.
		l.fused = slices.ContainsFunc(sortedKeys(found), func(n string) bool { return strings.HasSuffix(n, ".qkv_opreact.weight") })
	}
	used := map[string]bool{}
	for _, w := range l.wanted() {
		e, ok := found[w.name]
		if !ok && w.optional {
			continue
		}
		if !ok {
			return fmt.Errorf("%s: tensor %s is missing, expected %v", strings.Join(clipList(l.weights), ", "), w.name, w.shape)
		}
		if !slices.Equal(e.shape, w.shape) {
			return fmt.Errorf("%s: tensor %s has shape %v, expected %v by the config", e.file, w.name, e.shape, w.shape)
		}
		used[w.name] = true
		c.split(w, e)
	}
	for _, name := range sortedKeys(found) {
		if !used[name] {
			return fmt.Errorf("%s: tensor %s %v is surplus, the config implies no such tensor", found[name].file, clip(name), found[name].shape)
		}
	}
	return c.tie(found)
}

// split adds the canonical tensors that an entry holds.
func (c *Checkpoint) split(w want, e entry) {
	cols := 1
	if len(w.shape) == 2 {
		cols = w.shape[1]
	}
	off := e.off
	for _, p := range w.parts {
		t := &stored{store: e.store, off: off, size: p.rows * cols * elementSizes[e.dtype], convert: converters[e.dtype]}
		off += t.size
		shape := []int{p.rows}
		if len(w.shape) == 2 {
			shape = []int{p.rows, cols}
		}
		c.add(Tensor{name: p.name, shape: shape, dtype: e.dtype, rows: t})
	}
}

func (c *Checkpoint) add(t Tensor) {
	c.tensors[t.name] = t
	c.names = append(c.names, t.name)
}

// tie makes the embedding the head where the config says so. A head that is stored nevertheless has to be the same.
func (c *Checkpoint) tie(found map[string]entry) error {
	if !c.config.Tied {
		return nil
	}
	embedding := c.tensors["embeddings.weight"]
	head, ok := c.tensors["lm_head.weight"]
	if ok {
		if !bytes.Equal(head.rows.(*stored).bytes(), embedding.rows.(*stored).bytes()) {
			return fmt.Errorf("%s: tensor lm_head.weight is surplus: the config says tie_word_embeddings, and it differs from the embedding",
				found["lm_head.weight"].file)
		}
		delete(c.tensors, "lm_head.weight")
		c.names = c.names[:len(c.names)-1] // it is the last
	}
	embedding.name = "lm_head.weight"
	c.add(embedding)
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// clipList keeps an error about many shards on one readable line.
func clipList(names []string) []string {
	if len(names) <= 3 {
		return names
	}
	return []string{names[0], "...", names[len(names)-1]}
}
