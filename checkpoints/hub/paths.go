package hub

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
)

// DefaultInclude is what a checkpoint consists of. It matches files in a repository's top folder only.
var defaultInclude = []string{"*.safetensors", "*.json", "*.yaml", "*.yml", "tokenizer*", "LICENSE*", "README*"}

// DefaultInclude returns the patterns that are used where Options.Include is empty.
func DefaultInclude() []string { return append([]string(nil), defaultInclude...) }

// checkRepo accepts owner/name and, as old repositories have it, name.
func checkRepo(repo string) error {
	parts := strings.Split(repo, "/")
	ok := len(parts) <= 2
	for _, s := range parts {
		ok = ok && s != "" && !strings.Contains(s, "..") && s[0] != '.' && s[0] != '-' &&
			!strings.ContainsFunc(s, func(r rune) bool {
				return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
			})
	}
	if !ok {
		return fmt.Errorf("repository %q: expected owner/name, like NX-AI/xLSTM-7b", repo)
	}
	return nil
}

// checkPath accepts the paths that a server may name: relative, clean, inside the directory on every kind of system, and not
// one of the names that a download itself uses.
func checkPath(p string) error {
	bad := p == "" || len(p) > 1024 || p == "." || path.IsAbs(p) || path.Clean(p) != p || !filepath.IsLocal(filepath.FromSlash(p)) ||
		strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f || strings.ContainsRune(`\:*?"<>|`, r) })
	for _, s := range strings.Split(p, "/") {
		low := strings.ToLower(s)
		bad = bad || s == ".." || strings.HasSuffix(s, ".") || strings.HasSuffix(s, " ") || low == ".git" || low == lockName ||
			strings.HasSuffix(low, partialSuffix) || strings.HasSuffix(low, journalSuffix)
	}
	if bad {
		return fmt.Errorf("the server names a file %q, which is not a path that may be written", p)
	}
	return nil
}

// checkFolding reports two files that are one on file systems that ignore case, and a file that is also a folder.
func checkFolding(files []File) error {
	seen := make(map[string]string, len(files))
	for _, f := range files {
		low := strings.ToLower(f.Path)
		if other, ok := seen[low]; ok {
			return fmt.Errorf("the server names %q and %q, which differ in nothing or in case alone", other, f.Path)
		}
		seen[low] = f.Path
	}
	for _, f := range files {
		for d := path.Dir(strings.ToLower(f.Path)); d != "."; d = path.Dir(d) {
			if other, ok := seen[d]; ok {
				return fmt.Errorf("the server names %q and %q: the first is a file and a folder", other, f.Path)
			}
		}
	}
	return nil
}

func checkPatterns(lists ...[]string) error {
	for _, l := range lists {
		for _, p := range l {
			if _, err := path.Match(p, ""); err != nil || p == "" {
				return fmt.Errorf("pattern %q: %w", p, errors.Join(err, errNoPattern(p)))
			}
		}
	}
	return nil
}

func errNoPattern(p string) error {
	if p == "" {
		return errors.New("empty")
	}
	return nil
}

// matches reports whether a pattern of list matches file p. Patterns without a slash match names in any folder.
func matches(list []string, p string) bool {
	for _, pat := range list {
		s := p
		if !strings.Contains(pat, "/") {
			s = path.Base(p)
		}
		if ok, err := path.Match(pat, s); ok && err == nil {
			return true
		}
	}
	return false
}

// wanted reports whether file p is to be downloaded.
func (o *Options) wanted(p string) bool {
	if matches(o.Exclude, p) {
		return false
	}
	if len(o.Include) == 0 {
		return !strings.Contains(p, "/") && matches(defaultInclude, p)
	}
	return matches(o.Include, p)
}
