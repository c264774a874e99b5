package convert_test

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"xlstm/convert"
)

// TestFileSizeLimit converts in a process whose files may not grow to the model's size, which is what a full disk looks like to
// a writer.
func TestFileSizeLimit(t *testing.T) {
	if out := os.Getenv("CONVERT_UNDER_LIMIT"); out != "" {
		signal.Ignore(syscall.SIGXFSZ)
		limit := syscall.Rlimit{Cur: 256 << 10, Max: 256 << 10}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			t.Fatal(err)
		}
		err := convert.Convert(t.Context(), openCheckpoint(t, "tiny-fp32"), out, convert.Options{Recipe: "fp16"})
		if !errors.Is(err, syscall.EFBIG) || !strings.Contains(err.Error(), filepath.Base(out)) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v, expected EFBIG in one line with the file's name", err)
		}
		return
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFileSizeLimit$")
	cmd.Env = append(os.Environ(), "CONVERT_UNDER_LIMIT="+filepath.Join(dir, "model.xlstm"))
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, b)
	}
	leftovers(t, dir)
}
