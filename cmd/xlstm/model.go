package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"xlstm/format"
	"xlstm/kernels"
	"xlstm/kernels/cpu"
	"xlstm/oracle"
	"xlstm/tokenizer"
)

// engineFlags choose and size the engine that runs a file.
type engineFlags struct {
	threads       int
	device, state string
	promptMath    string
	where         device // set by check
}

// stateTypes are how a GPU can store states.
var stateTypes = []string{"fp32", "bf16", "fp16"}

// promptMaths are the arithmetic that a GPU can compute prompts of int8 files in.
var promptMaths = []string{"auto", "fp16", "int8"}

// register adds the flags of commands that run on any device.
func (e *engineFlags) register(cmd *cobra.Command) {
	e.registerCPU(cmd)
	cmd.Flags().StringVar(&e.device, "device", "auto", "device to run on: auto (a GPU if there is one), cpu, cuda or cuda:N")
	cmd.Flags().StringVar(&e.state, "state", "fp32", "how a GPU stores the states: fp32, bf16 or fp16")
	cmd.Flags().StringVar(&e.promptMath, "prompt-math", "auto", "arithmetic of a GPU for prompts of int8 files: auto, fp16 or int8")
	mustComplete(cmd, "device", []string{"auto", "cpu", "cuda"})
	mustComplete(cmd, "state", stateTypes)
	mustComplete(cmd, "prompt-math", promptMaths)
}

// registerCPU adds the flags of commands that run on the CPU alone.
func (e *engineFlags) registerCPU(cmd *cobra.Command) {
	e.device = "cpu"
	cmd.Flags().IntVar(&e.threads, "threads", 0, "threads that compute (default: one a core)")
}

// check makes sense of the flags, and hands over to the program that has the device's engine where that is another.
func (e *engineFlags) check(cmd *cobra.Command) (err error) {
	if e.threads < 0 || e.threads > 4096 {
		return usagef(cmd, "--threads is %d, expected 1 to 4096", e.threads)
	}
	if e.where, err = parseDevice(e.device); err != nil {
		return usagef(cmd, "--device: %w", err)
	}
	forGPU := []struct {
		flag, value, onCPU string
		known              []string
	}{
		{"state", e.state, "the CPU's states are fp32", stateTypes},
		{"prompt-math", e.promptMath, "the CPU computes prompts as it does tokens", promptMaths},
	}
	for _, f := range forGPU {
		switch {
		case !cmd.Flags().Changed(f.flag):
		case !slices.Contains(f.known, f.value):
			return usagef(cmd, "--%s is %q, expected %s", f.flag, f.value, strings.Join(f.known, ", "))
		case e.where.kind == "cpu":
			return usagef(cmd, "--%s is for GPUs: %s", f.flag, f.onCPU)
		}
	}
	if err := handOver(e.where); err != nil {
		return err
	}
	for _, f := range forGPU {
		if cmd.Flags().Changed(f.flag) && !gpuWanted(e.where) {
			return usagef(cmd, "--%s is for GPUs, and there is none", f.flag)
		}
	}
	return nil
}

// openFile opens a converted file, or the model inside the program. What is plainly something else is said to be so.
func (a *app) openFile(ctx context.Context, name string) (*format.File, error) {
	if isDemo(name) {
		path, remove, err := demoFile(ctx)
		if err != nil {
			return nil, err
		}
		defer remove()
		return format.Open(path)
	}
	if err := notDir(name); err != nil {
		return nil, err
	}
	return format.Open(name)
}

// notDir says what to do with a directory where a converted file is expected.
func notDir(name string) error {
	if isDir(name) {
		return fmt.Errorf("%s: is a directory, expected a converted file (xlstm convert %s -o model.xlstm makes one)", name, name)
	}
	return nil
}

// openEngine starts the engine for a file.
func (a *app) openEngine(f *format.File, e engineFlags) (kernels.Engine, error) {
	if gpuWanted(e.where) {
		return a.openGPU(f, e)
	}
	engine, err := cpu.Open(f, cpu.Options{Workers: e.threads})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path(), err)
	}
	return engine, nil
}

// openFollower opens a file to compute logits with.
func (a *app) openFollower(ctx context.Context, name string, e engineFlags) (follower, func() error, error) {
	f, err := a.openFile(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	engine, err := a.openEngine(f, e)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	state, err := engine.NewState()
	if err != nil {
		return nil, nil, errors.Join(err, engine.Close(), f.Close())
	}
	closeAll := func() error { return errors.Join(state.Close(), engine.Close(), f.Close()) }
	return &session{engine: engine, state: state, vocab: f.Config().VocabSize}, closeAll, nil
}

// openOracle opens a checkpoint to compute its own logits.
func (a *app) openOracle(dir string, e engineFlags) (follower, func() error, error) {
	c, err := openCheckpoint(dir)
	if err != nil {
		return nil, nil, err
	}
	return oracle.New(c, oracle.Options{Workers: e.threads}).NewSession(), c.Close, nil
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// session is an engine with the state of one sequence.
type session struct {
	engine kernels.Engine
	state  kernels.State
	vocab  int
	logits []float32
}

// piece is how many tokens' logits are held at a time; 512 of a vocabulary of 50,304 take 103 MB.
const piece = 512

func (s *session) VocabSize() int { return s.vocab }

func (s *session) Reset(context.Context) error { return s.state.Reset() }

func (s *session) Forward(ctx context.Context, tokens []int32, yield func(t int, logits []float32) error) error {
	for at := 0; at < len(tokens); at += piece {
		part := tokens[at:min(at+piece, len(tokens))]
		if need := len(part) * s.vocab; cap(s.logits) < need {
			s.logits = make([]float32, need)
		}
		logits := s.logits[:len(part)*s.vocab]
		if err := s.engine.Forward(ctx, []kernels.Step{{State: s.state, Tokens: part, Logits: logits}}); err != nil {
			return err
		}
		for i := range part {
			if err := yield(at+i, logits[i*s.vocab:(i+1)*s.vocab]); err != nil {
				return err
			}
		}
	}
	return nil
}

// tokenizerOf finds the tokenizer of what a name stands for: a converted file, a checkpoint's directory or a tokenizer.json.
func (a *app) tokenizerOf(ctx context.Context, name string) (*tokenizer.Tokenizer, error) {
	if isDir(name) {
		name = filepath.Join(name, "tokenizer.json")
	}
	if filepath.Ext(name) != ".json" {
		return a.fileTokenizer(ctx, name)
	}
	b, err := a.readInput(ctx, name)
	if err != nil {
		return nil, err
	}
	t, err := tokenizer.FromJSON(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return t, nil
}

func (a *app) fileTokenizer(ctx context.Context, name string) (*tokenizer.Tokenizer, error) {
	f, err := a.openFile(ctx, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return loadTokenizer(f)
}

// loadTokenizer loads the tokenizer that a file holds.
func loadTokenizer(f *format.File) (*tokenizer.Tokenizer, error) {
	if len(f.Tokenizer()) == 0 {
		return nil, fmt.Errorf("%s: the file holds no tokenizer: there was no tokenizer.json in its checkpoint", f.Path())
	}
	t, err := tokenizer.Load(f.Tokenizer())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path(), err)
	}
	return t, nil
}
