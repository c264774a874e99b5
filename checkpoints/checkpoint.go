// Package checkpoints reads released xLSTM weights as they were downloaded: the layouts of Hugging Face transformers (one file or
// shards with an index, weights single or fused) and of the original xlstm package (config.yaml). Tensors are mapped and read
// lazily, and every one is checked against the shape that the config implies before a checkpoint is handed out.
//
// Whatever the layout, tensors go by the same canonical names, those of the single-weight transformers layout without their
// "backbone." prefix: embeddings.weight, blocks.{i}.mlstm_layer.q.weight, ..., out_norm.weight, lm_head.weight. The parts of a
// fused tensor are row ranges of it, and the head of a model with tied embeddings is its embedding.
package checkpoints

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"xlstm/format"
)

// Checkpoint is an opened checkpoint. It is safe for concurrent use until Close.
type Checkpoint struct {
	source    string
	config    format.Config
	tensors   map[string]Tensor
	names     []string // in the order in which a model uses them
	tokenizer []byte
	files     []SourceFile
	open      func(name string) (io.ReadCloser, error) // of one of files
	stores    []*store
}

// Open opens the checkpoint in a directory. Weights are mapped, not read; its cost does not depend on their size.
func Open(dir string) (*Checkpoint, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("open checkpoint: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open checkpoint: %s is a file, expected a directory with config.json or config.yaml", dir)
	}
	return open(dir, dirFiles(dir))
}

// OpenFS opens the checkpoint at the root of fsys, for one that lies inside the program. Weights are read into memory. source
// is what errors and Source call it.
func OpenFS(fsys fs.FS, source string) (*Checkpoint, error) {
	return open(source, fsFiles{fsys})
}

func open(source string, dir files) (*Checkpoint, error) {
	c := &Checkpoint{source: source, tensors: map[string]Tensor{}, open: dir.open}
	if err := c.load(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("open checkpoint %s: %w", source, err), c.Close())
	}
	return c, nil
}

// load reads everything but the weights.
func (c *Checkpoint) load(dir files) error {
	l, err := readLayout(dir, c.note)
	if err != nil {
		return err
	}
	c.config = l.config
	if c.tokenizer, err = c.optional(dir, "tokenizer.json", maxTokenizer); err != nil {
		return err
	}
	found, err := c.openShards(dir, l)
	if err != nil {
		return err
	}
	return c.bind(l, found)
}

// note records a file that the checkpoint consists of.
func (c *Checkpoint) note(name string, size int64) {
	c.files = append(c.files, SourceFile{Name: name, Size: size})
}

// optional reads a file that a checkpoint may lack: nil, without an error, where it does.
func (c *Checkpoint) optional(dir files, name string, limit int64) ([]byte, error) {
	b, err := dir.read(name, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c.note(name, int64(len(b)))
	return b, nil
}

// Config describes the model.
func (c *Checkpoint) Config() *format.Config { return &c.config }

// Source says where the checkpoint comes from: a directory, or how it was made.
func (c *Checkpoint) Source() string { return c.source }

// Tensor finds a tensor by its canonical name.
func (c *Checkpoint) Tensor(name string) (Tensor, bool) {
	t, ok := c.tensors[name]
	return t, ok
}

// Names lists the canonical names of all tensors in the order in which a model uses them. lm_head.weight is among them where
// embeddings are tied, too.
func (c *Checkpoint) Names() []string { return append([]string(nil), c.names...) }

// UseTokenizer makes definition, the content of a tokenizer.json, the checkpoint's tokenizer: for those that come without one.
func (c *Checkpoint) UseTokenizer(definition []byte) { c.tokenizer = definition }

// Tokenizer is the content of tokenizer.json, nil where there is none. It must not be changed.
func (c *Checkpoint) Tokenizer() []byte { return c.tokenizer }

// Close unmaps the weights. Reading a tensor after it is an error.
func (c *Checkpoint) Close() error {
	var errs []error
	for _, s := range c.stores {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// files are the files of a checkpoint. Names are plain, without a directory.
type files interface {
	read(name string, limit int64) ([]byte, error) // a whole small file
	mapped(name string) (*store, error)
	open(name string) (io.ReadCloser, error)
	exists(name string) bool
}

type dirFiles string

func (d dirFiles) exists(name string) bool {
	_, err := os.Stat(filepath.Join(string(d), name))
	return err == nil
}

// open refuses what is not a regular file before opening it, since opening a pipe would wait for its other end.
func (d dirFiles) open(name string) (io.ReadCloser, error) {
	f, _, err := d.regular(name)
	return f, err
}

func (d dirFiles) regular(name string) (*os.File, int64, error) {
	path := filepath.Join(string(d), name)
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", name, cause(err))
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s: expected a regular file, found %s", name, info.Mode().Type())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", name, cause(err))
	}
	return f, info.Size(), nil
}

func (d dirFiles) read(name string, limit int64) ([]byte, error) {
	f, _, err := d.regular(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(name, f, limit)
}

func (d dirFiles) mapped(name string) (*store, error) {
	f, size, err := d.regular(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s, err := mapFile(f, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

type fsFiles struct{ fsys fs.FS }

func (d fsFiles) exists(name string) bool {
	_, err := fs.Stat(d.fsys, name)
	return err == nil
}

func (d fsFiles) open(name string) (io.ReadCloser, error) {
	f, err := d.fsys.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, cause(err))
	}
	return f, nil
}

func (d fsFiles) read(name string, limit int64) ([]byte, error) {
	f, err := d.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(name, f, limit)
}

func (d fsFiles) mapped(name string) (*store, error) {
	b, err := fs.ReadFile(d.fsys, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, cause(err))
	}
	return &store{data: b}, nil
}

func readLimited(name string, r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, cause(err))
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: larger than %d bytes, the most that such a file may have", name, limit)
	}
	return b, nil
}

// cause drops the path that a file system's error repeats.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
