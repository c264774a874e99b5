// Package hub downloads repositories over the HTTP API of the Hugging Face Hub.
//
// A download is pinned to one commit, comes in parallel ranges, and goes on where it was interrupted. Bytes land in
// NAME.partial beside a journal of the ranges that are there; only when the size and the hash that the Hub names agree is
// the file synced and renamed to NAME, so that nothing half-downloaded is ever taken for whole.
package hub

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// DefaultEndpoint is the Hub's own address.
const DefaultEndpoint = "https://huggingface.co"

// Options say where from and how. The zero value downloads from the Hub itself, without a token.
type Options struct {
	Endpoint string // scheme, host and optional path; DefaultEndpoint where empty
	Token    string // sent to the endpoint's own origin and to no other host

	Include []string // patterns of path.Match; without a slash they match names in any folder. DefaultInclude where empty
	Exclude []string // patterns that win over Include

	Client    *http.Client  // transport and timeouts; its CheckRedirect is replaced. nil is a client of our own
	Parallel  int           // requests at once; 8 where 0
	RangeSize int64         // bytes asked for at once; 64 MiB where 0
	Attempts  int           // failures in a row, without one byte received, that end a transfer; 6 where 0
	Stall     time.Duration // a response that sends nothing for this long counts as dropped; 60 s where 0

	// Backoff is how long to wait before attempt n (1 is the first repetition); nil is exponential with jitter. A server's
	// Retry-After overrides it where it is longer.
	Backoff func(n int) time.Duration
	// Progress, optional, is told what happens. Calls come one at a time.
	Progress func(Event)

	free    func(dir string) (int64, bool)                           // free bytes of a directory's disk
	writeAt func(f *os.File, b []byte, off int64) (n int, err error) // how bytes get into partial files
}

// File is one file of a repository at the pinned commit.
type File struct {
	Path   string // slash-separated, relative, checked
	Size   int64  // bytes
	SHA256 string // of the contents, hex: large (LFS) files; else empty
	GitOID string // SHA-1 of the git blob, hex: plain files; else empty
}

// Hashed reports whether the server gave a hash of f. The Hub always does; a mirror may not for plain files, of which only the size
// is checked then. Weights are never taken without.
func (f *File) Hashed() bool { return f.SHA256 != "" || f.GitOID != "" }

// EventKind says what happened.
type EventKind int

// The kinds of events.
const (
	Planned   EventKind = iota // File will be downloaded; Bytes of it are there from before
	Skipped                    // File was there already, whole and right
	Received                   // Bytes of File arrived; negative where bytes turned out wrong and were thrown away
	Checking                   // Bytes of File were hashed
	Finished                   // File is whole, checked and in its place
	Retrying                   // a request failed with Err and will be repeated after Wait
	Restarted                  // File had to be thrown away because of Err and is downloaded anew
)

// Event is one thing that happened.
type Event struct {
	Kind  EventKind
	File  File
	Bytes int64
	Err   error
	Wait  time.Duration
}

// Result is what a pull did.
type Result struct {
	Commit   string // that the revision named when the pull began
	Files    []File // that are now in the directory, whole
	Skipped  int    // of them, those that were there before
	Received int64  // bytes over the network
}

// Environment fills Endpoint and Token from HF_ENDPOINT and HF_TOKEN, where they are empty.
func (o Options) Environment() Options {
	if o.Endpoint == "" {
		o.Endpoint = strings.TrimSpace(os.Getenv("HF_ENDPOINT"))
	}
	if o.Token == "" {
		o.Token = strings.TrimSpace(os.Getenv("HF_TOKEN"))
	}
	return o
}

// Pull downloads repo (owner/name) at revision (branch, tag or commit; empty is main) into dir, which is created where it does
// not exist. On an error, a cancelled context's included, what has arrived stays in partial files, and the next Pull of the
// same commit goes on from there.
func Pull(ctx context.Context, repo, revision, dir string, o Options) (*Result, error) {
	p, err := newPuller(repo, revision, dir, o)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return nil, fmt.Errorf("%s: expected a folder, found a file", dir)
	}
	commit, files, err := p.list(ctx)
	if err != nil {
		return nil, err
	}
	p.commit = commit
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	if p.root, err = os.OpenRoot(dir); err != nil {
		return nil, err
	}
	defer p.root.Close()
	unlock, err := lock(p.root, dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return p.pull(ctx, files)
}

// puller is one call of Pull.
type puller struct {
	Options
	repo, revision, dir string
	base                *url.URL // the endpoint
	commit              string
	root                *os.Root // dir; nothing outside it can be opened through a root
	slots               chan struct{}

	mu       sync.Mutex
	received int64
}

func newPuller(repo, revision, dir string, o Options) (*puller, error) {
	if err := checkRepo(repo); err != nil {
		return nil, err
	}
	if revision == "" {
		revision = "main"
	}
	if strings.ContainsFunc(revision, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return nil, fmt.Errorf("revision %q: expected a branch, tag or commit", revision)
	}
	if o.Endpoint == "" {
		o.Endpoint = DefaultEndpoint
	}
	base, err := url.Parse(strings.TrimRight(o.Endpoint, "/"))
	if err != nil || (base.Scheme != "http" && base.Scheme != "https") || base.Host == "" || base.RawQuery != "" || base.User != nil {
		return nil, fmt.Errorf("endpoint %q: expected a URL like %s", o.Endpoint, DefaultEndpoint)
	}
	if strings.ContainsFunc(o.Token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil, errors.New("the token holds spaces or characters that are not ASCII")
	}
	if err := checkPatterns(o.Include, o.Exclude); err != nil {
		return nil, err
	}
	o.defaults()
	p := &puller{Options: o, repo: repo, revision: revision, dir: dir, base: base, slots: make(chan struct{}, o.Parallel)}
	p.Client = p.client(o.Client)
	return p, nil
}

func (o *Options) defaults() {
	if o.Parallel <= 0 {
		o.Parallel = 8
	}
	if o.RangeSize <= 0 {
		o.RangeSize = 64 << 20
	}
	if o.Attempts <= 0 {
		o.Attempts = 6
	}
	if o.Stall <= 0 {
		o.Stall = time.Minute
	}
	if o.Backoff == nil {
		o.Backoff = backoff
	}
	if o.free == nil {
		o.free = freeSpace
	}
	if o.writeAt == nil {
		o.writeAt = (*os.File).WriteAt
	}
}

// pull gets every file that is not there yet, small ones first.
func (p *puller) pull(ctx context.Context, files []File) (*Result, error) {
	sort.SliceStable(files, func(i, j int) bool { return files[i].Size < files[j].Size })
	r := &Result{Commit: p.commit, Files: files}
	var todo []*partial
	defer func() {
		for _, part := range todo {
			part.close()
		}
	}()
	var need int64
	for _, f := range files {
		whole, err := p.whole(ctx, f)
		if err != nil {
			return nil, err
		}
		if whole {
			r.Skipped++
			p.report(Event{Kind: Skipped, File: f})
			continue
		}
		part, err := p.openPartial(f)
		if err != nil {
			return nil, err
		}
		todo = append(todo, part)
		p.report(Event{Kind: Planned, File: f, Bytes: part.have()})
		need += f.Size - part.have()
	}
	if free, ok := p.free(p.dir); ok && free < need {
		return nil, fmt.Errorf("%s: %d bytes still to come, and the disk has %d free", p.dir, need, free)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(p.Parallel)
	for _, part := range todo {
		g.Go(func() error { return p.get(ctx, part) })
	}
	err := g.Wait()
	p.mu.Lock()
	r.Received = p.received
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return r, nil
}

// report passes an event on, one at a time.
func (p *puller) report(e Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Kind == Received && e.Bytes > 0 {
		p.received += e.Bytes
	}
	if p.Progress != nil {
		p.Progress(e)
	}
}
