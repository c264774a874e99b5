package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"xlstm/checkpoints"
	"xlstm/checkpoints/demo"
	"xlstm/convert"
)

// demoName stands for the model inside the program, unless there is a file of that name.
const demoName = "demo"

func isDemo(name string) bool {
	if name != demoName {
		return false
	}
	_, err := os.Stat(name)
	return errors.Is(err, fs.ErrNotExist)
}

func demoCheckpoint() (*checkpoints.Checkpoint, error) {
	return checkpoints.OpenFS(demo.FS(), demoName)
}

// demoFile converts the model inside the program into a temporary file. remove takes the file away; it can be called once the
// file is open.
func demoFile(ctx context.Context) (name string, remove func(), err error) {
	src, err := demoCheckpoint()
	if err != nil {
		return "", nil, err
	}
	defer src.Close()
	dir, err := os.MkdirTemp("", "xlstm-demo-")
	if err != nil {
		return "", nil, fmt.Errorf("the demo model needs a temporary directory: %w", err)
	}
	remove = func() { _ = os.RemoveAll(dir) } // a temporary directory
	name = filepath.Join(dir, "demo.xlstm")
	if err := convert.Convert(ctx, src, name, convert.Options{Recipe: "fp16", Program: "xlstm " + version()}); err != nil {
		remove()
		return "", nil, err
	}
	return name, remove, nil
}
