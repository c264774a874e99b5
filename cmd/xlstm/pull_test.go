package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// serveHub serves a directory as the repository owner/model of a Hub that wants a token. Only the weights have hashes.
func serveHub(t *testing.T, dir string) *httptest.Server {
	t.Helper()
	const commit = "0123456789abcdef0123456789abcdef01234567"
	files := http.StripPrefix("/owner/model/resolve/"+commit, http.FileServer(http.Dir(dir)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer hf_test":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/api/models/owner/model/revision/v1":
			_ = json.NewEncoder(w).Encode(map[string]string{"sha": commit})
		case r.URL.Path == "/api/models/owner/model/tree/"+commit:
			var list []map[string]any
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Error(err)
			}
			for _, e := range entries {
				b, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if err != nil {
					t.Error(err)
				}
				sum := sha256.Sum256(b)
				f := map[string]any{"type": "file", "path": e.Name(), "size": len(b)}
				if strings.HasSuffix(e.Name(), ".safetensors") {
					f["lfs"] = map[string]any{"oid": hex.EncodeToString(sum[:]), "size": len(b)}
				}
				list = append(list, f)
			}
			_ = json.NewEncoder(w).Encode(list)
		default:
			files.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// TestPull downloads a checkpoint, without a token and with one, and converts what has come.
func TestPull(t *testing.T) {
	server, dir := serveHub(t, testdata+"/fixtures/tiny-bf16-sharded"), filepath.Join(t.TempDir(), "model")
	t.Setenv("HF_ENDPOINT", server.URL)
	t.Setenv("HF_TOKEN", "")
	args := []string{"pull", "owner/model", "--revision", "v1", "-o", dir}
	if status, stdout, stderr := call("", args...); status != 1 || stdout != "" || !isLine(stderr) || !strings.Contains(stderr, "set HF_TOKEN") {
		t.Errorf("without a token: status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
	t.Setenv("HF_TOKEN", "hf_test")
	status, stdout, stderr := call("", args...)
	if status != 0 || !strings.Contains(stdout, "6 files, ") || !strings.Contains(stderr, "config.json: the server gives no hash of it") {
		t.Fatalf("status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
	if strings.Contains(stdout+stderr, "hf_test") {
		t.Error("the token is printed")
	}
	if again := must(t, args...); !strings.Contains(again, "(4 were there already)") {
		t.Errorf("again: %q", again)
	}
	file := filepath.Join(t.TempDir(), "m.xlstm")
	must(t, "convert", dir, "-o", file, "--recipe", "bf16")
	must(t, "verify", file)
	if got := must(t, append(args[:len(args)-1], filepath.Join(t.TempDir(), "x"), "--include", "config.json,*.index.json")...); !strings.Contains(got, "2 files") {
		t.Errorf("--include: %q", got)
	}
}
