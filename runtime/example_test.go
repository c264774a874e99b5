package runtime_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"xlstm/checkpoints"
	"xlstm/checkpoints/demo"
	"xlstm/convert"
	"xlstm/format"
	"xlstm/kernels"
	"xlstm/kernels/cpu"
	"xlstm/runtime"
)

// Convert the checkpoint that comes with the program, open the file, and stream a text.
func ExampleModel_Generate() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "xlstm-example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "demo.xlstm")
	checkpoint, err := checkpoints.OpenFS(demo.FS(), "demo")
	if err != nil {
		log.Fatal(err)
	}
	if err := convert.Convert(ctx, checkpoint, path, convert.Options{Recipe: "fp16"}); err != nil {
		log.Fatal(err)
	}

	model, err := runtime.Open(path, func(f *format.File) (kernels.Engine, error) { return cpu.Open(f, cpu.Options{}) })
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	state, err := model.NewState()
	if err != nil {
		log.Fatal(err)
	}
	prompt, err := model.Prompt(state, "I beg your", false)
	if err != nil {
		log.Fatal(err)
	}
	for piece, err := range model.Generate(ctx, state, runtime.Request{Prompt: prompt, MaxTokens: 1}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%q %s\n", piece.Text, piece.Finish)
	}
	// Output: " pardon" length
}

// Settings that make no sense are errors.
func ExampleSampling() {
	careful := runtime.Sampling{Temperature: 0.7, TopP: 0.9, RepetitionPenalty: 1.1, RepetitionWindow: 64, Seed: 1}
	fmt.Println(careful.Validate())
	fmt.Println((&runtime.Sampling{TopP: 1.5}).Validate())
	// Output:
	// <nil>
	// top-p is 1.5, expected 0 to 1
}
