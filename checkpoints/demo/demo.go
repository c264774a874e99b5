// Package demo carries a small trained xLSTM inside the binary: 13,783,716
// parameters in bfloat16 (27.6 MB), trained on public-domain books, in the
// layout of a Hugging Face checkpoint. A program that does not import the
// package does not carry the weights. The model card, README.md, says how they
// were made and what the model can do; train/ holds the recipe.
package demo

import (
	"embed"
	"io/fs"
)

// The files of the checkpoint, all at the root of FS.
const (
	ConfigFile           = "config.json"
	GenerationConfigFile = "generation_config.json"
	TokenizerFile        = "tokenizer.json"
	WeightsFile          = "model.safetensors"
)

//go:embed config.json generation_config.json tokenizer.json model.safetensors
var files embed.FS

// FS returns the checkpoint as a read-only file system of four files. The files
// also implement io.ReaderAt and io.Seeker, so that single tensors can be read.
func FS() fs.FS { return files }
