package format

import (
	"errors"
	"fmt"
	"math"
)

// Config describes a model: the one description that checkpoints are read into, that a file carries, and that engines run
// from. Widths are absolute, derived once from a checkpoint's factors. Source of the names: arXiv 2503.13427.
type Config struct {
	VocabSize    int `json:"vocab_size"`    // V, rows of the embedding and of the head
	EmbeddingDim int `json:"embedding_dim"` // D, width of the residual stream
	NumBlocks    int `json:"num_blocks"`    // L
	NumHeads     int `json:"num_heads"`     // H
	QKDim        int `json:"qk_dim"`        // all heads together: H*dk
	VDim         int `json:"v_dim"`         // all heads together: H*dv
	FFNDim       int `json:"ffn_dim"`       // F

	NormEps float64 `json:"norm_eps"` // of the RMS norms and of the per-head norm
	CellEps float64 `json:"cell_eps"` // added to the mLSTM cell's denominator

	// Soft caps c of cap(z, c) = c*tanh(z/c); 0 means that there is none.
	GateSoftCap   float64 `json:"gate_soft_cap"`
	OutputSoftCap float64 `json:"output_soft_cap"`

	UseBias  bool `json:"use_bias"`       // biases beside those of the two gates, which are always there
	Tied     bool `json:"tied_embedding"` // the checkpoint has no head of its own: the head is its embedding
	OutNorm  bool `json:"out_norm"`       // an RMS norm before the head
	HeadBias bool `json:"head_bias"`      // of a file: its head has a bias, folded from the output norm's
	BOS      int  `json:"bos_token"`      // beginning-of-text id, -1 where there is none
	ForceBOS bool `json:"force_bos"`      // every text begins with BOS, as the model was trained
}

// HeadQKDim is dk, the width of one head's queries and keys.
func (c *Config) HeadQKDim() int { return c.QKDim / c.NumHeads }

// HeadVDim is dv, the width of one head's values.
func (c *Config) HeadVDim() int { return c.VDim / c.NumHeads }

// StateFloats is the number of float32 values in one sequence's state: C, n and m of every head of every block.
func (c *Config) StateFloats() int {
	dk, dv := c.HeadQKDim(), c.HeadVDim()
	return c.NumBlocks * c.NumHeads * (dk*dv + dk + 1)
}

// Limits on dimensions. They are far above every known model, and low enough that products of three of them fit an int64.
const (
	maxVocab  = 1 << 24
	maxWidth  = 1 << 18
	maxBlocks = 1 << 12
)

// Validate reports the first thing about c that no model can have.
func (c *Config) Validate() error {
	for _, d := range []struct {
		name       string
		value, max int
	}{
		{"vocab_size", c.VocabSize, maxVocab}, {"embedding_dim", c.EmbeddingDim, maxWidth}, {"num_blocks", c.NumBlocks, maxBlocks},
		{"num_heads", c.NumHeads, maxWidth}, {"qk_dim", c.QKDim, maxWidth}, {"v_dim", c.VDim, maxWidth}, {"ffn_dim", c.FFNDim, maxWidth},
	} {
		if d.value < 1 || d.value > d.max {
			return fmt.Errorf("config: %s is %d, expected 1 to %d", d.name, d.value, d.max)
		}
	}
	if c.QKDim%c.NumHeads != 0 || c.VDim%c.NumHeads != 0 {
		return fmt.Errorf("config: qk_dim %d and v_dim %d are not multiples of num_heads %d", c.QKDim, c.VDim, c.NumHeads)
	}
	for _, f := range []struct {
		name  string
		value float64
	}{{"norm_eps", c.NormEps}, {"cell_eps", c.CellEps}, {"gate_soft_cap", c.GateSoftCap}, {"output_soft_cap", c.OutputSoftCap}} {
		if math.IsNaN(f.value) || f.value < 0 || f.value > 1e6 {
			return fmt.Errorf("config: %s is %v, expected 0 to 1e6", f.name, f.value)
		}
	}
	if c.BOS < -1 || c.BOS >= c.VocabSize {
		return fmt.Errorf("config: bos_token is %d, outside the vocabulary of %d", c.BOS, c.VocabSize)
	}
	if c.ForceBOS && c.BOS < 0 {
		return errors.New("config: force_bos is set and there is no bos_token")
	}
	return nil
}
