package hub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	shard1 = "model-00001-of-00002.safetensors"
	shard2 = "model-00002-of-00002.safetensors"
)

// check compares a directory with what a pull with default patterns leaves.
func (h *fakeHub) check(t *testing.T, dir string) {
	t.Helper()
	want := []string{"README.md", "config.json", "empty.json", shard1, shard2, "tokenizer.json"}
	if got := names(t, dir); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Fatalf("files: got %v, want %v", got, want)
	}
	for _, n := range want {
		b, err := os.ReadFile(filepath.Join(dir, n))
		if err != nil || !bytes.Equal(b, h.files[n]) {
			t.Errorf("%s: contents differ (%v)", n, err)
		}
	}
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, p)
			list = append(list, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	sort.Strings(list)
	return list
}

// noneWhole fails where a file stands under its own name with contents that are not its own.
func (h *fakeHub) noneWhole(t *testing.T, dir string) {
	t.Helper()
	for _, n := range names(t, dir) {
		if strings.HasSuffix(n, partialSuffix) || strings.HasSuffix(n, journalSuffix) {
			continue
		}
		if b, err := os.ReadFile(filepath.Join(dir, n)); err != nil || !bytes.Equal(b, h.files[n]) {
			t.Errorf("%s is there and not whole", n)
		}
	}
}

func TestPull(t *testing.T) {
	h := newFakeHub(t)
	h.token = testToken
	dir := filepath.Join(t.TempDir(), "a", "b")
	o := h.options()
	got := map[string]int64{}
	o.Progress = func(e Event) {
		if e.Kind == Received {
			got[e.File.Path] += e.Bytes
		}
	}
	r, err := Pull(context.Background(), testRepo, "refs/pr/1", dir, o)
	if err != nil {
		t.Fatal(err)
	}
	h.check(t, dir)
	if r.Commit != testCommit || len(r.Files) != 6 || r.Skipped != 0 || got[shard1] != 300_001 {
		t.Errorf("result %+v, progress %v", r, got)
	}
	if len(h.leaked) > 0 {
		t.Errorf("the token went to another host: %v", h.leaked)
	}
	if h.requests[shard1] != 8 { // 300,001 bytes in ranges of 40,000
		t.Errorf("%d requests for the large file, want 8", h.requests[shard1])
	}
	// Once more: nothing is sent again. One file damaged, one missing: those two alone.
	if r, err = Pull(context.Background(), testRepo, "", dir, o); err != nil || r.Skipped != 6 || r.Received != 0 {
		t.Errorf("second pull: %+v, %v", r, err)
	}
	bad := append([]byte(nil), h.files[shard2]...)
	bad[77] ^= 1
	if err := os.WriteFile(filepath.Join(dir, shard2), bad, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "config.json")); err != nil {
		t.Fatal(err)
	}
	if r, err = Pull(context.Background(), testRepo, "main", dir, o); err != nil || r.Skipped != 4 {
		t.Errorf("third pull: %+v, %v", r, err)
	}
	h.check(t, dir)
}

// TestBadNetwork lets a pull succeed against servers that misbehave for a while or in ways that can be lived with.
func TestBadNetwork(t *testing.T) {
	for name, prepare := range map[string]func(h *fakeHub, n *atomic.Int64){
		"every other connection drops half-way": func(h *fakeHub, n *atomic.Int64) {
			h.intercept = func(w http.ResponseWriter, r *http.Request, name string) bool {
				if len(h.files[name]) > 1000 && n.Add(1)%2 == 1 {
					h.drop(w, r, name)
				}
				return false
			}
		},
		"429, 503 and 502 at times": func(h *fakeHub, n *atomic.Int64) {
			h.api = func(w http.ResponseWriter, r *http.Request) bool {
				status := map[int64]int{0: 429, 2: 503, 5: 502}[n.Add(1)%7]
				if status != 0 {
					w.WriteHeader(status)
				}
				return status != 0
			}
		},
		"ranges are ignored": func(h *fakeHub, n *atomic.Int64) {
			h.intercept = func(w http.ResponseWriter, r *http.Request, name string) bool {
				_, _ = w.Write(h.files[name])
				return true
			}
		},
		"ranges are ignored and connections drop": func(h *fakeHub, n *atomic.Int64) {
			h.intercept = func(w http.ResponseWriter, r *http.Request, name string) bool {
				b := h.files[name]
				w.Header().Set("Content-Length", fmt.Sprint(len(b)))
				if k := int(n.Add(1)); k%3 != 0 && len(b) > 100 {
					_, _ = w.Write(b[:len(b)/2+k])
					panic(http.ErrAbortHandler)
				}
				_, _ = w.Write(b)
				return true
			}
		},
		"a wrong range now and then": func(h *fakeHub, n *atomic.Int64) {
			h.intercept = func(w http.ResponseWriter, r *http.Request, name string) bool {
				if len(h.files[name]) < 1000 || n.Add(1)%3 != 0 {
					return false
				}
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 1-100/%d", len(h.files[name])))
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(make([]byte, 100))
				return true
			}
		},
		"one corrupted answer": func(h *fakeHub, n *atomic.Int64) {
			h.intercept = func(w http.ResponseWriter, r *http.Request, name string) bool {
				if name != shard2 || n.Add(1) != 1 {
					return false
				}
				b := append([]byte(nil), h.files[name]...)
				b[3] ^= 0x40
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
				return true
			}
		},
		"a stalled answer": func(h *fakeHub, n *atomic.Int64) {
			h.intercept = func(w http.ResponseWriter, r *http.Request, name string) bool {
				if name != shard2 || n.Add(1) != 1 {
					return false
				}
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-39999/%d", len(h.files[name])))
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(h.files[name][:1000])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return true
			}
		},
		"plain files without hashes": func(h *fakeHub, n *atomic.Int64) {
			h.listed = func(list []map[string]any) []map[string]any {
				for _, e := range list {
					if e["lfs"] == nil {
						delete(e, "oid")
					}
				}
				return list
			}
		},
		"no list with sizes": func(h *fakeHub, n *atomic.Int64) {
			h.api = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, "/tree/") {
					w.WriteHeader(http.StatusNotFound)
					return true
				}
				return false
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newFakeHub(t)
			prepare(h, new(atomic.Int64))
			dir := t.TempDir()
			o := h.options()
			if strings.Contains(name, "stalled") {
				o.Stall = 200 * time.Millisecond
			}
			if _, err := Pull(context.Background(), testRepo, "", dir, o); err != nil {
				t.Fatal(err)
			}
			h.check(t, dir)
		})
	}
}

// TestResume interrupts a pull and goes on: what had arrived is not asked for again, whatever was lost of the journal's end.
func TestResume(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"as left": func(*testing.T, string) {},
		"journal cut off": func(t *testing.T, dir string) {
			appendTo(t, filepath.Join(dir, shard1+journalSuffix), "200000 1")
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHub(t)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			dir := t.TempDir()
			o := h.options()
			var got int64
			o.Progress = func(e Event) {
				if e.Kind == Received && e.File.Path == shard1 {
					if got += e.Bytes; got > 150_000 {
						cancel()
					}
				}
			}
			if _, err := Pull(ctx, testRepo, "", dir, o); !errors.Is(err, context.Canceled) {
				t.Fatalf("error %v, want a cancelled context", err)
			}
			h.noneWhole(t, dir)
			spoil(t, dir)
			o.Progress = nil
			var planned int64
			o.Progress = func(e Event) {
				if e.Kind == Planned && e.File.Path == shard1 {
					planned = e.Bytes
				}
			}
			r, err := Pull(context.Background(), testRepo, "", dir, o)
			if err != nil {
				t.Fatal(err)
			}
			if planned < 150_000 {
				t.Errorf("%d bytes kept, want at least the 150000 that had arrived", planned)
			}
			if r.Received > 300_001-planned+123_456+3000+100 {
				t.Errorf("%d bytes received again, with %d kept", r.Received, planned)
			}
			h.check(t, dir)
		})
	}
}

func appendTo(t *testing.T, name, s string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(s); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLyingJournal starts from partial files whose journals claim too much: the hash finds out, and the file comes anew.
func TestLyingJournal(t *testing.T) {
	h := newFakeHub(t)
	dir := t.TempDir()
	e := h.entry(shard1)["lfs"].(map[string]any)
	head := fmt.Sprintf(`{"Repo":%q,"Commit":%q,"Path":%q,"Size":300001,"SHA256":%q,"GitOID":""}`, testRepo, testCommit, shard1, e["oid"])
	write(t, filepath.Join(dir, shard1+partialSuffix), make([]byte, 300_001))
	write(t, filepath.Join(dir, shard1+journalSuffix), []byte(head+"\n0 300001\n"))
	write(t, filepath.Join(dir, shard2+partialSuffix), make([]byte, 5))
	write(t, filepath.Join(dir, shard2+journalSuffix), []byte("{}\n0 123456\n"))
	o := h.options()
	restarted := 0
	o.Progress = func(e Event) {
		if e.Kind == Restarted {
			restarted++
		}
	}
	if _, err := Pull(context.Background(), testRepo, "", dir, o); err != nil {
		t.Fatal(err)
	}
	if restarted != 1 {
		t.Errorf("%d files restarted, want the one whose journal lied", restarted)
	}
	h.check(t, dir)
}

func write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o666); err != nil {
		t.Fatal(err)
	}
}

func TestDiskFull(t *testing.T) {
	h := newFakeHub(t)
	dir := t.TempDir()
	o := h.options()
	o.writeAt = func(f *os.File, b []byte, off int64) (int, error) {
		if off > 100_000 {
			return 0, &fs.PathError{Op: "write", Path: f.Name(), Err: syscall.ENOSPC}
		}
		return f.WriteAt(b, off)
	}
	_, err := Pull(context.Background(), testRepo, "", dir, o)
	if err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Fatalf("error %v", err)
	}
	h.noneWhole(t, dir)
	o = h.options()
	o.free = func(string) (int64, bool) { return 1000, true }
	if _, err = Pull(context.Background(), testRepo, "", dir, o); err == nil || !strings.Contains(err.Error(), "the disk has 1000 free") {
		t.Fatalf("error %v", err)
	}
	if _, err = Pull(context.Background(), testRepo, "", dir, h.options()); err != nil {
		t.Fatal(err)
	}
	h.check(t, dir)
}

func TestTwoPulls(t *testing.T) {
	h := newFakeHub(t)
	dir := t.TempDir()
	hold, started := make(chan struct{}), make(chan struct{}, 100)
	h.intercept = func(w http.ResponseWriter, r *http.Request, name string) bool {
		started <- struct{}{}
		<-hold
		return false
	}
	done := make(chan error)
	go func() {
		_, err := Pull(context.Background(), testRepo, "", dir, h.options())
		done <- err
	}()
	<-started
	if _, err := Pull(context.Background(), testRepo, "", dir, h.options()); err == nil || !strings.Contains(err.Error(), "another pull") {
		t.Errorf("error %v, want one of another pull", err)
	}
	close(hold)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	h.check(t, dir)
}

// TestHostileDirectory has links in the way that lead out of the directory.
func TestHostileDirectory(t *testing.T) {
	h := newFakeHub(t)
	outside := filepath.Join(t.TempDir(), "outside")
	write(t, outside, []byte("mine"))
	for _, name := range []string{"config.json", "config.json" + partialSuffix, lockName} {
		dir := t.TempDir()
		if err := os.Symlink(outside, filepath.Join(dir, name)); err != nil {
			t.Skip(err)
		}
		if _, err := Pull(context.Background(), testRepo, "", dir, h.options()); err == nil {
			t.Errorf("%s: a link out of the directory was followed", name)
		}
		if b, err := os.ReadFile(outside); err != nil || string(b) != "mine" {
			t.Errorf("%s: the file outside changed: %q, %v", name, b, err)
		}
	}
}

// TestFileForFolder: a file where the folder should be is found before anything is asked of the network.
func TestFileForFolder(t *testing.T) {
	h := newFakeHub(t)
	h.token = testToken
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("precious"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Pull(context.Background(), testRepo, "", path, h.options()); err == nil || !strings.Contains(err.Error(), "expected a folder") {
		t.Errorf("error %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" || len(h.requests) > 0 {
		t.Errorf("the file holds %q (%v) after %d requests", b, err, len(h.requests))
	}
}

func TestBadArguments(t *testing.T) {
	for _, c := range []struct {
		repo, revision string
		o              Options
	}{
		{repo: ""}, {repo: "a/b/c"}, {repo: "../x"}, {repo: "a/.."}, {repo: "a b/c"}, {repo: "-x/y"}, {repo: "https://huggingface.co/a/b"},
		{repo: "a/b", revision: "x\ny"}, {repo: "a/b", o: Options{Endpoint: "ftp://x"}}, {repo: "a/b", o: Options{Endpoint: "nonsense"}},
		{repo: "a/b", o: Options{Token: "x\r\nHost: y"}}, {repo: "a/b", o: Options{Exclude: []string{""}}},
	} {
		if _, err := Pull(context.Background(), c.repo, c.revision, t.TempDir(), c.o); err == nil {
			t.Errorf("%+v: no error", c)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-3": 0, "x": 0, now.Add(time.Minute).Format(http.TimeFormat): time.Minute,
		now.Add(-time.Minute).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(s, now); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
	for n := 1; n < 100; n++ {
		if d := backoff(n); d < 300*time.Millisecond || d > 40*time.Second {
			t.Errorf("attempt %d waits %v", n, d)
		}
	}
}

// TestRetryAfterIsHonoured: a wait that the server asks for is at least as long.
func TestRetryAfterIsHonoured(t *testing.T) {
	h := newFakeHub(t)
	var n atomic.Int64
	h.api = func(w http.ResponseWriter, r *http.Request) bool {
		if n.Add(1) != 1 {
			return false
		}
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	}
	o := h.options()
	var waits []time.Duration
	o.Progress = func(e Event) {
		if e.Kind == Retrying {
			waits = append(waits, e.Wait)
		}
	}
	if _, err := Pull(context.Background(), testRepo, "", t.TempDir(), o); err != nil {
		t.Fatal(err)
	}
	if len(waits) != 1 || waits[0] != time.Second {
		t.Errorf("waits %v, want one of a second", waits)
	}
}

// FuzzJournal reads any journal: what it yields lies inside the file, sorted and disjoint.
func FuzzJournal(f *testing.F) {
	f.Add([]byte("0 10\n5 20\n90 10\n"))
	f.Add([]byte("9223372036854775807 9223372036854775807\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := partial{File: File{Size: 100}}
		d.parse(b)
		at, sum := int64(-1), int64(0)
		for _, s := range d.done {
			if s.start <= at || s.end <= s.start || s.end > 100 {
				t.Fatalf("spans %v", d.done)
			}
			at, sum = s.end, sum+s.end-s.start
		}
		for _, s := range d.missing(7) {
			sum += s.end - s.start
		}
		if sum != 100 {
			t.Fatalf("spans %v and what they miss make %d bytes of 100", d.done, sum)
		}
	})
}
