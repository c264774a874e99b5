package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

const (
	maxListing = 64 << 20 // bytes of one answer
	maxPages   = 1000
	maxFiles   = 100_000
	maxSize    = 1 << 50 // bytes of one file
)

var (
	hex40    = regexp.MustCompile(`^[0-9a-f]{40}$`)
	hex64    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	commitRE = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_-]{0,127}$`)
)

// entry is a file as the tree endpoint lists it.
type entry struct {
	Type string `json:"type"`
	Path string `json:"path"`
	Size *int64 `json:"size"`
	OID  string `json:"oid"`
	LFS  *struct {
		OID  string `json:"oid"`
		Size *int64 `json:"size"`
	} `json:"lfs"`
}

// revisionInfo is the answer of the revision endpoint, as far as it is used.
type revisionInfo struct {
	SHA      string `json:"sha"`
	Siblings []struct {
		Name string `json:"rfilename"`
	} `json:"siblings"`
}

// list finds the commit that the revision names now, and the wanted files at that commit.
func (p *puller) list(ctx context.Context) (commit string, files []File, err error) {
	var info revisionInfo
	if _, err := p.getJSON(ctx, p.api("revision", p.revision), &info); err != nil {
		return "", nil, p.explain(ctx, err)
	}
	if !commitRE.MatchString(info.SHA) {
		return "", nil, fmt.Errorf("%s: the server names no commit for revision %s (%q)", p.repo, p.revision, oneLine(info.SHA))
	}
	p.commit = info.SHA
	entries, err := p.tree(ctx)
	var s *statusError
	if errors.As(err, &s) && s.status == http.StatusNotFound { // mirrors without this endpoint
		entries, err = nil, nil
		for _, f := range info.Siblings {
			entries = append(entries, entry{Type: "file", Path: f.Name})
		}
	}
	if err != nil {
		return "", nil, fmt.Errorf("%s: list of files: %w", p.repo, err)
	}
	if files, err = p.choose(ctx, entries); err != nil {
		return "", nil, fmt.Errorf("%s: %w", p.repo, err)
	}
	return info.SHA, files, nil
}

// api is the address of an endpoint of the repository.
func (p *puller) api(endpoint, revision string) string {
	return p.base.String() + "/api/models/" + p.repo + "/" + endpoint + "/" + url.PathEscape(revision)
}

// tree lists every file at the commit, page by page.
func (p *puller) tree(ctx context.Context) ([]entry, error) {
	var all []entry
	next := p.api("tree", p.commit) + "?recursive=true"
	for page := 0; next != ""; page++ {
		var part []entry
		header, err := p.getJSON(ctx, next, &part)
		if err != nil {
			return nil, err
		}
		all = append(all, part...)
		if page >= maxPages || len(all) > maxFiles {
			return nil, fmt.Errorf("more than %d pages or %d files", maxPages, maxFiles)
		}
		if next, err = p.nextPage(next, header); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// nextPage reads the address of the next page out of a Link header; "" is none.
func (p *puller) nextPage(current string, header http.Header) (string, error) {
	for _, line := range header.Values("Link") {
		for _, link := range strings.Split(line, ",") {
			address, params, _ := strings.Cut(strings.TrimSpace(link), ";")
			rel := strings.ReplaceAll(strings.ReplaceAll(params, " ", ""), `"`, "")
			if !strings.Contains(";"+rel+";", ";rel=next;") || !strings.HasPrefix(address, "<") || !strings.HasSuffix(address, ">") {
				continue
			}
			base, err := url.Parse(current)
			if err != nil {
				return "", err
			}
			u, err := base.Parse(strings.Trim(address, "<>"))
			if err != nil || !p.own(u) {
				return "", errors.New("the next page of the list is at another host")
			}
			if u.String() == current {
				return "", errors.New("the next page of the list is the page itself")
			}
			return u.String(), nil
		}
	}
	return "", nil
}

// choose checks the entries, picks those that are wanted, and asks for the sizes and hashes that the list lacks.
func (p *puller) choose(ctx context.Context, entries []entry) ([]File, error) {
	var files []File
	weights := false
	for _, e := range entries {
		if e.Type != "" && e.Type != "file" || !p.wanted(e.Path) {
			continue
		}
		if err := checkPath(e.Path); err != nil {
			return nil, err
		}
		f, err := e.file()
		if errors.Is(err, errIncomplete) {
			f, err = p.head(ctx, e.Path)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Path, err)
		}
		weights = weights || strings.HasSuffix(e.Path, ".safetensors")
		files = append(files, f)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("none of its %d files matches what is wanted (%s)", len(entries), strings.Join(p.patterns(), " "))
	}
	if !weights && len(p.Include) == 0 {
		return nil, fmt.Errorf("none of its %d files is a .safetensors file: expected a checkpoint (--include chooses other files)", len(entries))
	}
	return files, checkFolding(files)
}

func (o *Options) patterns() []string {
	if len(o.Include) == 0 {
		return defaultInclude
	}
	return o.Include
}

var errIncomplete = errors.New("its size is not listed")

// file checks what the list says of a file.
func (e *entry) file() (File, error) {
	f := File{Path: e.Path}
	size := e.Size
	if hex40.MatchString(e.OID) {
		f.GitOID = e.OID
	}
	if e.LFS != nil {
		f.SHA256, f.GitOID = strings.TrimPrefix(e.LFS.OID, "sha256:"), ""
		if !hex64.MatchString(f.SHA256) {
			return f, fmt.Errorf("the server gives no SHA-256 that can be checked (%q)", oneLine(f.SHA256))
		}
		if e.LFS.Size != nil {
			if size != nil && *size != *e.LFS.Size {
				return f, fmt.Errorf("the server gives two sizes, %d and %d", *size, *e.LFS.Size)
			}
			size = e.LFS.Size
		}
	}
	if size == nil {
		return f, errIncomplete
	}
	f.Size = *size
	return f, f.check()
}

func (f *File) check() error {
	if f.Size < 0 || f.Size > maxSize {
		return fmt.Errorf("the server gives its size as %d", f.Size)
	}
	if !f.Hashed() && strings.HasSuffix(f.Path, ".safetensors") {
		return errors.New("the server gives no hash of these weights, expected SHA-256")
	}
	return nil
}

// head asks for a file's size and hash, which the Hub gives as headers of the file's address, before any redirect.
func (p *puller) head(ctx context.Context, name string) (File, error) {
	f := File{Path: name, Size: -1}
	c := *p.Client
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	q := &puller{Options: p.Options, base: p.base}
	q.Client = &c
	err := p.retry(ctx, f, func() (bool, error) {
		resp, err := q.request(ctx, http.MethodHead, p.address(name), "")
		if err != nil {
			return false, err
		}
		if resp.StatusCode >= 400 {
			return false, newStatusError(resp)
		}
		resp.Body.Close()
		size, etag := resp.Header.Get("X-Linked-Size"), resp.Header.Get("X-Linked-Etag")
		if size == "" && resp.StatusCode == http.StatusOK {
			size = resp.Header.Get("Content-Length")
		}
		if etag == "" {
			etag = resp.Header.Get("Etag")
		}
		etag = strings.Trim(strings.TrimPrefix(etag, "W/"), `"`)
		switch {
		case hex64.MatchString(etag):
			f.SHA256 = etag
		case hex40.MatchString(etag):
			f.GitOID = etag
		}
		if f.Size, err = strconv.ParseInt(size, 10, 64); err != nil {
			return false, permanent{errors.New("the server does not give its size")}
		}
		return false, nil
	})
	if err != nil {
		return f, err
	}
	return f, f.check()
}

// address is where a file's bytes are, at the pinned commit.
func (p *puller) address(name string) string {
	parts := strings.Split(name, "/")
	for i, s := range parts {
		parts[i] = url.PathEscape(s)
	}
	return p.base.String() + "/" + p.repo + "/resolve/" + url.PathEscape(p.commit) + "/" + strings.Join(parts, "/")
}

// getJSON gets one answer of the API.
func (p *puller) getJSON(ctx context.Context, address string, into any) (header http.Header, err error) {
	err = p.retry(ctx, File{}, func() (bool, error) {
		rctx, cancel := context.WithTimeout(ctx, 2*p.Stall)
		defer cancel()
		resp, err := p.request(rctx, http.MethodGet, address, "")
		if err != nil {
			return false, err
		}
		if resp.StatusCode != http.StatusOK {
			return false, newStatusError(resp)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxListing+1))
		if err != nil {
			return false, err
		}
		if len(b) > maxListing {
			return false, permanent{fmt.Errorf("the server's answer is longer than %d bytes", maxListing)}
		}
		if err := json.Unmarshal(b, into); err != nil {
			return false, permanent{fmt.Errorf("the server's answer is not what the Hub's API gives: %w", err)}
		}
		header = resp.Header
		return false, nil
	})
	return header, err
}

// explain says what a refusal of the revision endpoint means and what can be done.
func (p *puller) explain(ctx context.Context, err error) error {
	var s *statusError
	if !errors.As(err, &s) {
		return fmt.Errorf("%s: %w", p.repo, err)
	}
	switch {
	case s.code == "GatedRepo" || s.status == http.StatusForbidden:
		return fmt.Errorf("%s: access is refused (%d), it is gated or private: ask for access at %s/%s and set HF_TOKEN to a token that has it",
			p.repo, s.status, p.base, p.repo)
	case s.status == http.StatusUnauthorized && p.Token != "":
		return fmt.Errorf("%s: not found, or the token in HF_TOKEN may not read it (401)", p.repo)
	case s.status == http.StatusUnauthorized:
		return fmt.Errorf("%s: not found, or private or gated (401): set HF_TOKEN to a token that may read it", p.repo)
	case s.code == "RevisionNotFound":
		return fmt.Errorf("%s: no revision %q (404)", p.repo, p.revision)
	case s.status == http.StatusNotFound && s.code == "":
		var any struct{}
		if _, err := p.getJSON(ctx, p.base.String()+"/api/models/"+p.repo, &any); err == nil {
			return fmt.Errorf("%s: no revision %q (404)", p.repo, p.revision)
		}
	}
	if s.status == http.StatusNotFound {
		return fmt.Errorf("%s: no such repository at %s (404)", p.repo, p.base)
	}
	return fmt.Errorf("%s: %w", p.repo, err)
}
