package convert

import (
	"context"
	"encoding/hex"
	"fmt"
	"path/filepath"

	"xlstm/checkpoints"
	"xlstm/format"
	"xlstm/tokenizer"
)

// FromCheckpoint folds and fuses a checkpoint's weights and compiles its tokenizer. Only norms are read yet.
func FromCheckpoint(src *checkpoints.Checkpoint) (*Source, error) {
	s, err := fromCheckpoint(src)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", src.Source(), err)
	}
	return s, nil
}

func fromCheckpoint(src *checkpoints.Checkpoint) (*Source, error) {
	s := &Source{config: *src.Config(), tensors: map[string]tensor{}}
	if err := s.config.Validate(); err != nil {
		return nil, err
	}
	f := folder{src: src, config: &s.config, tensors: s.tensors}
	if f.all(); f.err != nil {
		return nil, f.err
	}
	if def := src.Tokenizer(); def != nil {
		t, err := tokenizer.FromJSON(def)
		if err != nil {
			return nil, err
		}
		if n := t.VocabSize(); n > s.config.VocabSize {
			return nil, fmt.Errorf("tokenizer.json has ids up to %d, expected at most the model's vocabulary of %d", n-1, s.config.VocabSize)
		}
		if s.tokenizer, err = t.MarshalBinary(); err != nil {
			return nil, fmt.Errorf("tokenizer.json: %w", err)
		}
	}
	s.provenance = format.Provenance{Source: sourceName(src.Source()), Files: sourceFiles(src.Files(), false)}
	if len(s.provenance.Files) > 0 {
		s.hash = func(ctx context.Context, progress func(done int64)) ([]format.SourceFile, error) {
			files, err := src.HashFiles(ctx, 1, progress)
			return sourceFiles(files, true), err
		}
	}
	return s, nil
}

// sourceName is a directory's own name: where it lay is nobody's business who gets the file, and must not change its bytes.
func sourceName(source string) string {
	if abs, err := filepath.Abs(source); err == nil {
		return filepath.Base(abs)
	}
	return filepath.Base(source)
}

func sourceFiles(files []checkpoints.SourceFile, hashed bool) []format.SourceFile {
	var out []format.SourceFile
	for _, f := range files {
		s := format.SourceFile{Name: f.Name, Size: f.Size}
		if hashed {
			s.SHA256 = hex.EncodeToString(f.SHA256[:])
		}
		out = append(out, s)
	}
	return out
}
