// Package converted makes the files that tests run: checkpoints converted in a temporary folder.
package converted

import (
	"path/filepath"
	"testing"

	"xlstm/checkpoints"
	"xlstm/checkpoints/demo"
	"xlstm/convert"
	"xlstm/format"
)

// File converts c with a recipe and opens the result, which is closed and removed when the test ends.
func File(t testing.TB, c *checkpoints.Checkpoint, recipe string) *format.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.xlstm")
	if err := convert.Convert(t.Context(), c, path, convert.Options{Recipe: recipe}); err != nil {
		t.Fatal(err)
	}
	f, err := format.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// Folder converts the checkpoint in a folder.
func Folder(t testing.TB, dir, recipe string) *format.File {
	t.Helper()
	c, err := checkpoints.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return File(t, c, recipe)
}

// Demo converts the demo model.
func Demo(t testing.TB, recipe string) *format.File {
	t.Helper()
	c, err := checkpoints.OpenFS(demo.FS(), "demo")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return File(t, c, recipe)
}
