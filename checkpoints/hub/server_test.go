package hub

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	testRepo   = "owner/model"
	testCommit = "0123456789abcdef0123456789abcdef01234567"
	testToken  = "hf_secret"
)

// fakeHub implements the Hub's endpoints for one repository, and a second server as its CDN. intercept, optional, sees each
// request to a file's bytes at the CDN first and returns true where it has answered.
type fakeHub struct {
	*httptest.Server
	cdn    *httptest.Server
	files  map[string][]byte
	token  string // that is required, where not empty
	pageBy int

	mu        sync.Mutex
	api       func(w http.ResponseWriter, r *http.Request) bool
	intercept func(w http.ResponseWriter, r *http.Request, name string) bool
	listed    func(list []map[string]any) []map[string]any
	leaked    []string
	requests  map[string]int // of bytes, by file
	served    int64
}

func newFakeHub(t *testing.T) *fakeHub {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	h := &fakeHub{pageBy: 3, requests: map[string]int{}, files: map[string][]byte{
		"config.json":                      []byte(`{"model_type":"xlstm"}`),
		"tokenizer.json":                   random(3000),
		"README.md":                        []byte("# model\n"),
		"empty.json":                       {},
		"model-00001-of-00002.safetensors": random(300_001),
		"model-00002-of-00002.safetensors": random(123_456),
		"pytorch_model.bin":                random(5000),
		"old/model.safetensors":            random(700),
	}}
	h.Server = httptest.NewServer(http.HandlerFunc(h.serve))
	h.cdn = httptest.NewServer(http.HandlerFunc(h.serveBytes))
	t.Cleanup(func() {
		h.Server.Close()
		h.cdn.Close()
	})
	return h
}

func (h *fakeHub) options() Options {
	return Options{Endpoint: h.URL, Token: h.token, Parallel: 4, RangeSize: 40_000, Stall: 5 * time.Second,
		Backoff: func(int) time.Duration { return 0 }}
}

func (h *fakeHub) entry(name string) map[string]any {
	b := h.files[name]
	git := sha1.New()
	fmt.Fprintf(git, "blob %d\x00", len(b))
	git.Write(b)
	e := map[string]any{"type": "file", "path": name, "size": len(b), "oid": hex.EncodeToString(git.Sum(nil))}
	if len(b) > 1000 {
		s := sha256.Sum256(b)
		e["lfs"] = map[string]any{"oid": hex.EncodeToString(s[:]), "size": len(b), "pointerSize": 134}
	}
	return e
}

func (h *fakeHub) serve(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	api := h.api
	h.mu.Unlock()
	if api != nil && api(w, r) {
		return
	}
	if h.token != "" && r.Header.Get("Authorization") != "Bearer "+h.token {
		w.Header().Set("X-Error-Code", "RepoNotFound")
		http.Error(w, "", http.StatusUnauthorized)
		return
	}
	rest, ok := strings.CutPrefix(r.URL.EscapedPath(), "/api/models/"+testRepo)
	switch {
	case ok && rest == "/revision/main", ok && rest == "/revision/refs%2Fpr%2F1":
		siblings := []map[string]string{}
		for name := range h.files {
			siblings = append(siblings, map[string]string{"rfilename": name})
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"id": testRepo, "sha": testCommit, "siblings": siblings})
	case ok && rest == "":
		_, _ = w.Write([]byte("{}"))
	case ok && rest == "/tree/"+testCommit:
		h.tree(w, r)
	case strings.HasPrefix(r.URL.Path, "/"+testRepo+"/resolve/"+testCommit+"/"):
		h.resolve(w, r, strings.TrimPrefix(r.URL.Path, "/"+testRepo+"/resolve/"+testCommit+"/"))
	default:
		http.Error(w, "", http.StatusNotFound)
	}
}

// tree answers page by page, as the Hub does.
func (h *fakeHub) tree(w http.ResponseWriter, r *http.Request) {
	list := []map[string]any{{"type": "directory", "path": "old", "size": 0, "oid": "ff"}}
	for name := range h.files {
		list = append(list, h.entry(name))
	}
	if h.listed != nil {
		list = h.listed(list)
	}
	from := 0
	_, _ = fmt.Sscan(r.URL.Query().Get("cursor"), &from)
	// map order differs from call to call, so pages are cut from a sorted list
	sortEntries(list)
	to := min(from+h.pageBy, len(list))
	if to < len(list) {
		w.Header().Set("Link", fmt.Sprintf(`<%s%s?recursive=true&cursor=%d>; rel="next"`, h.URL, r.URL.Path, to))
	}
	_ = json.NewEncoder(w).Encode(list[from:to])
}

// resolve redirects large files to the CDN and sends small ones itself.
func (h *fakeHub) resolve(w http.ResponseWriter, r *http.Request, name string) {
	b, ok := h.files[name]
	if !ok {
		w.Header().Set("X-Error-Code", "EntryNotFound")
		http.Error(w, "", http.StatusNotFound)
		return
	}
	e := h.entry(name)
	w.Header().Set("X-Repo-Commit", testCommit)
	if lfs, ok := e["lfs"].(map[string]any); ok {
		w.Header().Set("X-Linked-Size", fmt.Sprint(len(b)))
		w.Header().Set("X-Linked-Etag", fmt.Sprintf("%q", lfs["oid"]))
		http.Redirect(w, r, h.cdn.URL+"/"+url.PathEscape(name)+"?signature=xyz", http.StatusFound)
		return
	}
	w.Header().Set("Etag", fmt.Sprintf("%q", e["oid"]))
	h.bytes(w, r, name)
}

func (h *fakeHub) serveBytes(w http.ResponseWriter, r *http.Request) {
	for k, v := range r.Header {
		if strings.Contains(strings.Join(v, " "), testToken) {
			h.mu.Lock()
			h.leaked = append(h.leaked, k)
			h.mu.Unlock()
		}
	}
	h.bytes(w, r, strings.TrimPrefix(r.URL.Path, "/"))
}

func (h *fakeHub) bytes(w http.ResponseWriter, r *http.Request, name string) {
	h.mu.Lock()
	h.requests[name]++
	intercept := h.intercept
	h.mu.Unlock()
	if intercept != nil && intercept(w, r, name) {
		return
	}
	http.ServeContent(&counting{w, h}, r, "", time.Time{}, strings.NewReader(string(h.files[name])))
}

type counting struct {
	http.ResponseWriter
	h *fakeHub
}

func (c *counting) Write(b []byte) (int, error) {
	c.h.mu.Lock()
	c.h.served += int64(len(b))
	c.h.mu.Unlock()
	return c.ResponseWriter.Write(b)
}

func sortEntries(list []map[string]any) {
	for i := range list {
		for j := i; j > 0 && list[j]["path"].(string) < list[j-1]["path"].(string); j-- {
			list[j], list[j-1] = list[j-1], list[j]
		}
	}
}

// drop sends the header and half of the bytes asked for, and closes the connection.
func (h *fakeHub) drop(w http.ResponseWriter, r *http.Request, name string) {
	var a, b int
	_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &a, &b)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", a, b, len(h.files[name])))
	w.Header().Set("Content-Length", fmt.Sprint(b-a+1))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(h.files[name][a : a+(b-a+1)/2])
	panic(http.ErrAbortHandler)
}
