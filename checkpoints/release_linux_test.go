package checkpoints_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"xlstm/checkpoints"
	"xlstm/checkpoints/checkpointtest"
)

// mappedMiB is how much of files this process has in memory.
func mappedMiB(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip("no /proc: ", err)
	}
	for line := range strings.Lines(string(b)) {
		var kib int
		if n, _ := fmt.Sscanf(line, "RssFile: %d kB", &kib); n == 1 {
			return kib >> 10
		}
	}
	t.Skip("the kernel does not tell")
	return 0
}

// TestReleaseBoundsMemory streams through a checkpoint with and without letting rows go.
func TestReleaseBoundsMemory(t *testing.T) {
	cfg := small()
	cfg.VocabSize, cfg.EmbeddingDim = 8<<10, 512 // 16 MiB each for the embedding and the head
	c, err := checkpoints.Open(write(t, cfg, checkpointtest.Layout{}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	grows := func(name string, release bool) int {
		x := tensor(t, c, name)
		before := mappedMiB(t)
		most := before
		const rows = 256
		dst := make([]float32, rows*x.Cols())
		for r := 0; r < x.Rows(); r += rows {
			if err := x.ReadRows(dst, r, r+rows); err != nil {
				t.Fatal(err)
			}
			most = max(most, mappedMiB(t))
			if release {
				if err := x.ReleaseRows(r, r+rows); err != nil {
					t.Fatal(err)
				}
			}
		}
		return most - before
	}
	if n := grows("embeddings.weight", true); n > 4 {
		t.Errorf("reading and releasing 16 MiB took %d MiB of memory", n)
	}
	if n := grows("lm_head.weight", false); n < 12 {
		t.Errorf("reading 16 MiB took %d MiB of memory: this test measures nothing", n)
	}
	if err := tensor(t, c, "lm_head.weight").Release(); err != nil {
		t.Fatal(err)
	}
	if n := grows("lm_head.weight", true); n > 4 {
		t.Errorf("reading 16 MiB again took %d MiB of memory", n)
	}
}

// TestOpenSymlinks opens a directory whose files are links out of it, as the Hub's cache lays them.
func TestOpenSymlinks(t *testing.T) {
	dir, links := write(t, small(), checkpointtest.Layout{Shards: 2}), t.TempDir()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Symlink(dir+"/"+e.Name(), links+"/"+e.Name()); err != nil {
			t.Fatal(err)
		}
	}
	c, err := checkpoints.Open(links)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := os.Remove(dir + "/config.json"); err != nil {
		t.Fatal(err)
	}
	openFails(t, links, "expected config.json or config.yaml, found neither")
}
