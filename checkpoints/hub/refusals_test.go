package hub

import (
	"bytes"
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRefusals lets pulls fail, and looks at what they say and leave.
func TestRefusals(t *testing.T) {
	status := func(part string, code int, xcode string) func(h *fakeHub) {
		return func(h *fakeHub) {
			h.api = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, part) {
					return false
				}
				w.Header().Set("X-Error-Code", xcode)
				w.WriteHeader(code)
				return true
			}
		}
	}
	listed := func(change func(e map[string]any)) func(h *fakeHub) {
		return func(h *fakeHub) {
			h.listed = func(list []map[string]any) []map[string]any {
				for _, e := range list {
					if e["path"] == "config.json" {
						change(e)
					}
				}
				return list
			}
		}
	}
	named := func(p string) func(h *fakeHub) {
		return func(h *fakeHub) {
			h.listed = func(list []map[string]any) []map[string]any {
				e := h.entry("config.json")
				e["path"] = p
				return append(list, e)
			}
		}
	}
	for name, c := range map[string]struct {
		prepare  func(h *fakeHub)
		revision string
		include  []string
		want     string
	}{
		"no token":          {prepare: func(h *fakeHub) { h.token = testToken }, want: "set HF_TOKEN"},
		"gated":             {prepare: status("/revision/", 403, "GatedRepo"), want: "ask for access at"},
		"gated file":        {prepare: status("/resolve/", 403, "GatedRepo"), want: "access is refused (403)"},
		"file 401":          {prepare: status("/resolve/", 401, ""), want: "set HF_TOKEN"},
		"file 404":          {prepare: status("/resolve/", 404, "EntryNotFound"), want: "listed and not there (404)"},
		"repository 404":    {prepare: status("/api/", 404, ""), want: "no such repository"},
		"revision 404":      {revision: "nope", want: `no revision "nope" (404)`},
		"revision 404 code": {prepare: status("/revision/", 404, "RevisionNotFound"), want: `no revision "main" (404)`},
		"always 500":        {prepare: status("/resolve/", 500, ""), want: "given up after 6 attempts"},
		"wait for long":     {prepare: retryAfterHour, want: "429 Too Many Requests"},
		"not json":          {prepare: body("<html>"), want: "not what the Hub's API gives"},
		"no commit":         {prepare: body("{}"), want: "names no commit"},
		"corrupted":         {prepare: corrupted, want: "model-00001-of-00002.safetensors: the contents are damaged: expected SHA-256"},
		"size too small":    {prepare: listed(func(e map[string]any) { e["size"] = 10 }), want: "config.json: asked for bytes 0-9 of 10"},
		"size too large":    {prepare: listed(func(e map[string]any) { e["size"] = 1000 }), want: "config.json: asked for bytes 0-999 of 1000"},
		"size negative":     {prepare: listed(func(e map[string]any) { e["size"] = -1 }), want: "gives its size as -1"},
		"size huge":         {prepare: listed(func(e map[string]any) { e["size"] = int64(1) << 43 }), want: "bytes still to come, and the disk has"},
		"bad SHA-256": {prepare: listed(func(e map[string]any) { e["lfs"] = map[string]any{"oid": "x", "size": e["size"]} }),
			want: "no SHA-256 that can be checked"},
		"two sizes": {prepare: listed(func(e map[string]any) { e["lfs"] = map[string]any{"oid": strings.Repeat("0", 64), "size": 3} }),
			want: "two sizes"},
		"weights without hash": {prepare: func(h *fakeHub) {
			h.listed = func(list []map[string]any) []map[string]any {
				for _, e := range list {
					if e["path"] == shard1 {
						delete(e, "lfs")
						delete(e, "oid")
					}
				}
				return list
			}
		}, want: "no hash of these weights"},
		"parent":          {prepare: named("../x.json"), include: []string{"*.json"}, want: "not a path that may be written"},
		"parent inside":   {prepare: named("a/../../x.json"), include: []string{"*.json"}, want: "not a path that may be written"},
		"absolute":        {prepare: named("/etc/x.json"), include: []string{"*.json"}, want: "not a path that may be written"},
		"backslash":       {prepare: named(`..\x.json`), want: "not a path that may be written"},
		"journal":         {prepare: named("config.json.partial"), include: []string{"*"}, want: "not a path that may be written"},
		"case":            {prepare: named("CONFIG.json"), want: "case alone"},
		"twice":           {prepare: named("config.json"), want: "case alone"},
		"file and folder": {prepare: named("config.json/a.json"), include: []string{"*.json"}, want: "a file and a folder"},
		"nothing wanted":  {include: []string{"*.gguf"}, want: "none of its"},
		"bad pattern":     {include: []string{"["}, want: `pattern "["`},
		"page elsewhere":  {prepare: nextElsewhere, want: "at another host"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newFakeHub(t)
			if c.prepare != nil {
				c.prepare(h)
			}
			o := h.options()
			o.Include = c.include
			if name == "no token" {
				o.Token = ""
			}
			dir := filepath.Join(t.TempDir(), "d")
			_, err := Pull(context.Background(), testRepo, c.revision, dir, o)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want one line with %q", err, c.want)
			}
			h.noneWhole(t, dir)
		})
	}
}

func retryAfterHour(h *fakeHub) {
	h.api = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	}
}

func body(s string) func(h *fakeHub) {
	return func(h *fakeHub) {
		h.api = func(w http.ResponseWriter, r *http.Request) bool {
			_, _ = w.Write([]byte(s))
			return true
		}
	}
}

func corrupted(h *fakeHub) {
	h.intercept = func(w http.ResponseWriter, r *http.Request, name string) bool {
		if name != shard1 {
			return false
		}
		b := append([]byte(nil), h.files[name]...)
		b[len(b)-1] ^= 1
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		return true
	}
}

func nextElsewhere(h *fakeHub) {
	h.api = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/tree/") {
			w.Header().Set("Link", `<http://example.com/next>; rel="next"`)
			_, _ = w.Write([]byte("[]"))
			return true
		}
		return false
	}
}
