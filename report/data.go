// Package report shows what encodings cost: one HTML file with tables and pictures of the sizes of files, how far they are from
// their original, and which tensors the loss comes from. The file needs no network and no scripts, and the same data gives the
// same bytes.
package report

import (
	"errors"
	"fmt"
	"math"

	"xlstm/format"
)

// Data is what a report shows. docs/PERPLEXITY.md defines the figures. Names may be any bytes: they are escaped.
type Data struct {
	Title    string `json:"title"`
	Method   Method `json:"method"`
	Original Score  `json:"original"`
	Files    []File `json:"files"`
	// WeightsNote says why there are no weight errors, where there are none.
	WeightsNote string `json:"weights_note,omitempty"`
}

// Method is how the figures were measured: what it takes to repeat them. It has no time, so that a repetition gives the same file.
type Method struct {
	Text       string `json:"text"` // name of the text's file
	TextSHA256 string `json:"text_sha256"`
	TextBytes  int64  `json:"text_bytes"`
	TextTokens int    `json:"text_tokens"` // of the whole text
	UsedTokens int    `json:"used_tokens"` // from its beginning

	Sequences int  `json:"sequences"` // windows, or 1 where Stream
	Window    int  `json:"window"`    // tokens of text in a window
	Stream    bool `json:"stream"`    // the text was one sequence
	BOS       int  `json:"bos"`       // id that each sequence begins with, -1: none

	Original            string `json:"original"`                       // what the original is called
	OriginalFingerprint string `json:"original_fingerprint,omitempty"` // where it is an .xlstm file
	OriginalBy          string `json:"original_by"`                    // what computed the original's logits
	Engine              string `json:"engine"`                         // what ran the files
	Program             string `json:"program"`                        // name and version
}

// Score is how well a text was predicted.
type Score struct {
	Tokens           int     `json:"tokens"` // that were scored
	NLL              float64 `json:"nll"`    // nats a token
	Perplexity       float64 `json:"perplexity"`
	PerplexityStdErr float64 `json:"perplexity_stderr"`
}

// File is one file of the report.
type File struct {
	Name          string            `json:"name"`
	Recipe        string            `json:"recipe"`
	Fingerprint   string            `json:"fingerprint"`
	Provenance    format.Provenance `json:"provenance"`
	Size          int64             `json:"size_bytes"`
	WeightCount   int64             `json:"weights"`
	BitsPerWeight float64           `json:"bits_per_weight"`
	Score
	Ratio        float64 `json:"ratio"` // of the file's perplexity to the original's
	RatioStdErr  float64 `json:"ratio_stderr"`
	MeanKL       float64 `json:"kl_mean"` // nats
	MeanKLStdErr float64 `json:"kl_mean_stderr"`
	KL999        float64 `json:"kl_p999"`        // 99.9th percentile, nats
	TopAgreement float64 `json:"top_agreement"`  // share of tokens
	MaxLogitDiff float64 `json:"max_logit_diff"` // of any logit after any token
	// Errors are those of the weights; nil where they were not compared.
	Errors *Errors `json:"weight_errors,omitempty"`
}

// Errors is how far a file's weights are from the original's.
type Errors struct {
	All     Error         `json:"all"`
	Rotated bool          `json:"rotated"` // compared after the file's rotation of the original
	Kinds   []KindError   `json:"kinds"`   // in the order of the file
	Blocks  []BlockError  `json:"blocks"`
	Tensors []TensorError `json:"tensors"` // in the order of the file
}

// Error sums up the differences of weights w' of a file from the original's w.
type Error struct {
	Relative  float64 `json:"relative_squared"` // sum (w'-w)^2 / sum w^2
	Max       float64 `json:"max"`              // largest |w'-w|
	MaxWeight float64 `json:"max_weight"`       // largest |w|
}

// KindError is that of all tensors of one kind and encoding: of one name, without its block's.
type KindError struct {
	Kind     string `json:"kind"`
	Encoding string `json:"encoding"`
	Count    int    `json:"count"`
	Weights  int64  `json:"weights"`
	Bytes    int64  `json:"bytes"`
	Error
}

// BlockError is that of all tensors of a block.
type BlockError struct {
	Block int `json:"block"`
	Error
}

// TensorError is that of one tensor.
type TensorError struct {
	Name     string `json:"name"`
	Kind     string `json:"kind"`
	Block    int    `json:"block"` // -1 for the embedding and the head
	Encoding string `json:"encoding"`
	Rows     int    `json:"rows"`
	Cols     int    `json:"cols"`
	Error
}

// Check reports the first figure that cannot be one: a report is never written with a NaN in it.
func (d *Data) Check() error {
	if len(d.Files) == 0 {
		return errors.New("report: no files, expected at least one")
	}
	if err := d.Original.check(); err != nil {
		return fmt.Errorf("report: the original: %w", err)
	}
	for i := range d.Files {
		if err := d.Files[i].check(); err != nil {
			return fmt.Errorf("report: file %d, %.200q: %w", i, d.Files[i].Name, err)
		}
	}
	return nil
}

// figure is a number under its name.
type figure struct {
	name  string
	value float64
}

func checkFigures(all []figure) error {
	for _, f := range all {
		if math.IsNaN(f.value) || math.IsInf(f.value, 0) || f.value < 0 {
			return fmt.Errorf("%s is %v, expected a finite number of at least 0", f.name, f.value)
		}
	}
	return nil
}

func (s *Score) check() error {
	return checkFigures([]figure{
		{"nll", s.NLL}, {"perplexity", s.Perplexity}, {"perplexity's error", s.PerplexityStdErr}, {"number of tokens", float64(s.Tokens)},
	})
}

func (f *File) check() error {
	if err := f.Score.check(); err != nil {
		return err
	}
	err := checkFigures([]figure{
		{"size", float64(f.Size)}, {"bits a weight", f.BitsPerWeight}, {"ratio", f.Ratio}, {"ratio's error", f.RatioStdErr},
		{"mean KL", f.MeanKL}, {"mean KL's error", f.MeanKLStdErr}, {"99.9th percentile of KL", f.KL999},
		{"top-token agreement", f.TopAgreement}, {"largest logit difference", f.MaxLogitDiff},
	})
	if err != nil || f.Errors == nil {
		return err
	}
	return f.Errors.check()
}

func (e *Errors) check() error {
	if err := e.All.check(); err != nil {
		return err
	}
	for i := range e.Kinds {
		if err := e.Kinds[i].check(); err != nil {
			return fmt.Errorf("tensors %.80q: %w", e.Kinds[i].Kind, err)
		}
	}
	for i := range e.Blocks {
		if err := e.Blocks[i].check(); err != nil {
			return fmt.Errorf("block %d: %w", e.Blocks[i].Block, err)
		}
	}
	for i := range e.Tensors {
		if err := e.Tensors[i].check(); err != nil {
			return fmt.Errorf("tensor %.80q: %w", e.Tensors[i].Name, err)
		}
	}
	return nil
}

func (e *Error) check() error {
	return checkFigures([]figure{{"relative squared error", e.Relative}, {"largest error", e.Max}, {"largest weight", e.MaxWeight}})
}
