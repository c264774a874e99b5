package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

var (
	errStalled = errors.New("the server sent nothing for too long")
	errIgnored = errors.New("the server ignored the range asked for")
)

// get downloads, checks and places one file. Contents that turn out wrong are downloaded once more.
func (p *puller) get(ctx context.Context, d *partial) error {
	for again := false; ; again = true {
		err := p.download(ctx, d)
		if err == nil {
			if err = p.verify(ctx, d.file, d.File); err == nil {
				err = p.finish(d)
			}
		}
		if err == nil {
			p.report(Event{Kind: Finished, File: d.File})
			return nil
		}
		var m *mismatchError
		if !errors.As(err, &m) {
			return p.explainFile(ctx, d, err)
		}
		if again {
			p.discard(d)
			return fmt.Errorf("%s: %w, twice; not kept", d.Path, err)
		}
		thrown, rerr := d.restart()
		if rerr != nil {
			return fmt.Errorf("%s: %w", d.Path, rerr)
		}
		p.report(Event{Kind: Restarted, File: d.File, Err: err})
		p.report(Event{Kind: Received, File: d.File, Bytes: -thrown})
	}
}

func (p *puller) explainFile(ctx context.Context, d *partial, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var s *statusError
	if errors.As(err, &s) {
		switch s.status {
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("%s: access is refused (%d): set HF_TOKEN to a token that may read %s (a gated repository's terms are accepted at %s/%s)",
				d.Path, s.status, p.repo, p.base, p.repo)
		case http.StatusNotFound:
			return fmt.Errorf("%s: the file is listed and not there (404), in %s at %s", d.Path, p.repo, p.commit)
		}
	}
	return fmt.Errorf("%s: %w", d.Path, err)
}

// download gets what is missing of d. The first answer decides: where the server sends ranges, the others are asked for in
// parallel; where it sends the whole file, that one answer is used for everything.
func (p *puller) download(ctx context.Context, d *partial) error {
	for {
		pieces := d.missing(p.RangeSize)
		if len(pieces) == 0 {
			return nil
		}
		g, gctx := errgroup.WithContext(ctx)
		ranged, done := make(chan struct{}, 1), make(chan struct{})
		g.Go(func() error {
			defer close(done)
			return p.transfer(gctx, d, pieces[0], ranged)
		})
		select {
		case <-ranged:
			for _, s := range pieces[1:] {
				g.Go(func() error { return p.transfer(gctx, d, s, nil) })
			}
		case <-done:
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
}

// transfer gets one piece, with as many requests as it takes. ranged, where it is not nil, is told when the server answers with
// a range, and the whole file is taken as an answer too.
func (p *puller) transfer(ctx context.Context, d *partial, s span, ranged chan<- struct{}) error {
	return p.retry(ctx, d.File, func() (bool, error) {
		if err := p.acquire(ctx); err != nil {
			return false, err
		}
		defer p.release()
		before := s.start
		err := p.stream(ctx, d, &s, ranged)
		return s.start > before, err
	})
}

// stream asks for s once and moves s.start past what has arrived.
func (p *puller) stream(ctx context.Context, d *partial, s *span, ranged chan<- struct{}) error {
	rctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(p.Stall, func() { cancel(errStalled) })
	defer stall.Stop()
	resp, err := p.request(rctx, http.MethodGet, p.address(d.Path), fmt.Sprintf("bytes=%d-%d", s.start, s.end-1))
	if err != nil {
		if errors.Is(context.Cause(rctx), errStalled) {
			err = errStalled
		}
		return err
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		return newStatusError(resp)
	}
	defer resp.Body.Close()
	body := &stallReader{r: resp.Body, ctx: rctx, timer: stall, limit: p.Stall}
	if resp.StatusCode == http.StatusOK {
		if ranged == nil && s.start > 0 {
			return errIgnored
		}
		return p.takeWhole(d, s, resp, body)
	}
	end, err := d.checkRange(s, resp.Header.Get("Content-Range"))
	if err != nil {
		return err
	}
	if ranged != nil {
		select {
		case ranged <- struct{}{}:
		default:
		}
	}
	if err := p.copy(d, body, s, end); err != nil {
		return err
	}
	if s.start < s.end {
		return errors.New("the server sent less than the range asked for")
	}
	return nil
}

// takeWhole takes an answer that is the whole file.
func (p *puller) takeWhole(d *partial, s *span, resp *http.Response, body io.Reader) error {
	if n := resp.ContentLength; n >= 0 && n != d.Size {
		return permanent{fmt.Errorf("the list says %d bytes, the server has %d", d.Size, n)}
	}
	if _, err := io.CopyN(io.Discard, body, s.start); err != nil {
		return unexpected(err)
	}
	s.end = d.Size
	if err := p.copy(d, body, s, s.end); err != nil {
		return err
	}
	if n, _ := io.ReadFull(body, make([]byte, 1)); n > 0 {
		return permanent{fmt.Errorf("the list says %d bytes, the server has more", d.Size)}
	}
	return nil
}

// checkRange compares a Content-Range header with what was asked for, and returns where the answer ends.
func (d *partial) checkRange(s *span, header string) (end int64, err error) {
	var start, last int64
	wrong := fmt.Errorf("asked for bytes %d-%d of %d, the server answered with %q", s.start, s.end-1, d.Size, oneLine(header))
	rest, ok := strings.CutPrefix(header, "bytes ")
	bounds, total, ok2 := strings.Cut(rest, "/")
	a, b, ok3 := strings.Cut(bounds, "-")
	if !ok || !ok2 || !ok3 {
		return 0, wrong
	}
	if start, err = strconv.ParseInt(a, 10, 64); err == nil {
		last, err = strconv.ParseInt(b, 10, 64)
	}
	if err != nil || start != s.start || last < start || last >= s.end {
		return 0, wrong
	}
	if n, err := strconv.ParseInt(total, 10, 64); total != "*" && (err != nil || n != d.Size) {
		return 0, permanent{wrong}
	}
	return last + 1, nil
}

// copy moves bytes [s.start, end) from the answer into the partial file.
func (p *puller) copy(d *partial, body io.Reader, s *span, end int64) (err error) {
	buf := make([]byte, 256<<10)
	flushed := s.start
	defer func() {
		if ferr := d.flush(flushed, s.start-flushed); err == nil && ferr != nil {
			err = diskError(ferr)
		}
	}()
	for s.start < end {
		n, err := body.Read(buf[:min(int64(len(buf)), end-s.start)])
		if n > 0 {
			if _, werr := p.writeAt(d.file, buf[:n], s.start); werr != nil {
				return diskError(werr)
			}
			p.report(Event{Kind: Received, File: d.File, Bytes: d.add(s.start, int64(n))})
			s.start += int64(n)
		}
		if s.start-flushed >= flushBytes {
			if err := d.flush(flushed, s.start-flushed); err != nil {
				return diskError(err)
			}
			flushed = s.start
		}
		if err != nil && s.start < end {
			return unexpected(err)
		}
	}
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the connection was closed before all bytes had come")
	}
	return err
}

// stallReader cancels a request that sends nothing for too long.
type stallReader struct {
	r     io.Reader
	ctx   context.Context
	timer *time.Timer
	limit time.Duration
}

func (s *stallReader) Read(b []byte) (int, error) {
	s.timer.Reset(s.limit)
	n, err := s.r.Read(b)
	if err != nil && errors.Is(context.Cause(s.ctx), errStalled) {
		err = errStalled
	}
	return n, err
}
