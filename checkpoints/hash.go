package checkpoints

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// SourceFile is a file that a checkpoint consists of: config, index, tokenizer, weights.
type SourceFile struct {
	Name   string
	Size   int64             // bytes
	SHA256 [sha256.Size]byte // only from HashFiles
}

// Files lists the files that the checkpoint consists of, without their hashes. A synthetic checkpoint has none.
func (c *Checkpoint) Files() []SourceFile { return append([]SourceFile(nil), c.files...) }

// HashFiles is Files with their SHA-256, computed from the files' bytes in parallel by at most workers goroutines. progress,
// which may be nil, is told the number of bytes hashed so far, from several goroutines at once.
func (c *Checkpoint) HashFiles(ctx context.Context, workers int, progress func(done int64)) ([]SourceFile, error) {
	files := c.Files()
	var done atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(workers, 1))
	for i := range files {
		g.Go(func() error {
			return c.hash(ctx, &files[i], func(n int) {
				if total := done.Add(int64(n)); progress != nil {
					progress(total)
				}
			})
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("hash %s: %w", c.source, err)
	}
	return files, nil
}

// hash reads the file rather than its mapping, which would count as this process's memory.
func (c *Checkpoint) hash(ctx context.Context, f *SourceFile, progress func(n int)) error {
	r, err := c.open(f.Name)
	if err != nil {
		return err
	}
	defer r.Close()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	size := int64(0)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		h.Write(buf[:n])
		size += int64(n)
		progress(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, cause(err))
		}
	}
	if size != f.Size {
		return fmt.Errorf("%s: it has %d bytes, and had %d when it was opened", f.Name, size, f.Size)
	}
	h.Sum(f.SHA256[:0])
	return nil
}
