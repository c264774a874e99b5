package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	maxRedirects  = 10
	maxRetryAfter = 10 * time.Minute // a server that asks for more is given up on
)

// client makes a client whose redirects never carry the token to another origin. net/http alone would keep it for the
// endpoint's subdomains and for other ports of its host.
func (p *puller) client(base *http.Client) *http.Client {
	var c http.Client
	if base != nil {
		c = *base
	} else {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = p.Parallel
		t.ResponseHeaderTimeout = p.Stall
		c.Transport = t
	}
	c.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return fmt.Errorf("more than %d redirects", maxRedirects)
		}
		if !p.own(r.URL) {
			r.Header.Del("Authorization")
		}
		r.Header.Del("Referer")
		return nil
	}
	return &c
}

// own reports whether u is at the endpoint's origin: the same scheme, host and port.
func (p *puller) own(u *url.URL) bool {
	return u.Scheme == p.base.Scheme && strings.EqualFold(u.Host, p.base.Host)
}

// request sends one request and returns its response, whatever its status. rng, optional, is the value of the Range header.
func (p *puller) request(ctx context.Context, method, address, rng string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", "xlstm")
	r.Header.Set("Accept-Encoding", "identity") // sizes and ranges are those of the file itself
	if rng != "" {
		r.Header.Set("Range", rng)
	}
	if p.Token != "" && p.own(r.URL) {
		r.Header.Set("Authorization", "Bearer "+p.Token)
	}
	resp, err := p.Client.Do(r)
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without the address, which may be signed
	}
	return resp, err
}

// statusError is an answer that is not the one asked for.
type statusError struct {
	status     int
	code, text string // the Hub's own X-Error-Code and X-Error-Message
	retryAfter time.Duration
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("the server answered %d %s", e.status, http.StatusText(e.status))
	if e.text != "" {
		s += ": " + e.text
	}
	return s
}

// newStatusError reads and closes r's body.
func newStatusError(r *http.Response) *statusError {
	defer r.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 64<<10)) // so that the connection can be used again
	e := &statusError{status: r.StatusCode, code: r.Header.Get("X-Error-Code"), text: oneLine(r.Header.Get("X-Error-Message"))}
	e.retryAfter = retryAfter(r.Header.Get("Retry-After"), time.Now())
	return e
}

// oneLine makes a server's words fit to print: one line without control characters, not too long.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	return strings.TrimSpace(s)
}

// retryAfter reads seconds or an HTTP date; 0 is none.
func retryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.Atoi(s); err == nil && n > 0 {
		return time.Duration(min(n, 1<<20)) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil && t.After(now) {
		return t.Sub(now)
	}
	return 0
}

// permanent marks an error that repeating the request will not cure.
type permanent struct{ error }

func (e permanent) Unwrap() error { return e.error }

func isPermanent(err error) bool {
	var p permanent
	if errors.As(err, &p) {
		return true
	}
	var s *statusError
	if errors.As(err, &s) {
		return s.status != 408 && s.status != 429 && s.status < 500 || s.retryAfter > maxRetryAfter
	}
	return false
}

// backoff is half a second, doubled each time up to half a minute, give or take a quarter.
func backoff(n int) time.Duration {
	d := min(500*time.Millisecond<<min(n-1, 10), 30*time.Second)
	return d*3/4 + time.Duration(rand.Int64N(int64(d/2)))
}

// retry calls try until it succeeds, fails for good, or has failed Attempts times in a row without progress, which try tells.
func (p *puller) retry(ctx context.Context, f File, try func() (progress bool, err error)) error {
	for n := 1; ; n++ {
		progress, err := try()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if progress {
			n = 1
		}
		if isPermanent(err) {
			return err
		}
		if n >= p.Attempts {
			return fmt.Errorf("given up after %d attempts: %w", n, err)
		}
		wait := p.Backoff(n)
		var s *statusError
		if errors.As(err, &s) {
			wait = max(wait, s.retryAfter)
		}
		p.report(Event{Kind: Retrying, File: f, Err: err, Wait: wait})
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// acquire waits for one of the Parallel request slots.
func (p *puller) acquire(ctx context.Context) error {
	select {
	case p.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *puller) release() { <-p.slots }
