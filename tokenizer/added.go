package tokenizer

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// addedToken is a token that is looked for in the text itself, before BPE.
type addedToken struct {
	id         int32
	special    bool
	singleWord bool // only where no word character touches it
	lstrip     bool // takes the white space before it
	rstrip     bool // takes the white space after it
	normalized bool // looked for, normalized, in normalized text
	content    string
}

// matcher finds added tokens: a trie of their texts.
type matcher struct {
	tokens []addedToken
	first  [256]bool // bytes that tokens begin with
	only   int       // the byte that all of them begin with, or -1
	nodes  []trieNode
}

type trieNode struct {
	bytes    []byte
	children []int32
	token    int32 // index in tokens, -1 where none ends
}

// newMatcher looks for texts[i] as tokens[i]. Of equal texts the first counts.
func newMatcher(tokens []addedToken, texts []string) matcher {
	m := matcher{tokens: tokens, nodes: []trieNode{{token: -1}}, only: -1}
	for i, text := range texts {
		if i == 0 {
			m.only = int(text[0])
		} else if m.only != int(text[0]) {
			m.only = -1
		}
		m.first[text[0]] = true
		at := int32(0)
		for j := 0; j < len(text); j++ {
			to := m.nodes[at].child(text[j])
			if to < 0 {
				to = int32(len(m.nodes))
				m.nodes = append(m.nodes, trieNode{token: -1})
				n := &m.nodes[at]
				n.bytes, n.children = append(n.bytes, text[j]), append(n.children, to)
			}
			at = to
		}
		if m.nodes[at].token < 0 {
			m.nodes[at].token = int32(i)
		}
	}
	return m
}

func (n *trieNode) child(c byte) int32 {
	for i, b := range n.bytes {
		if b == c {
			return n.children[i]
		}
	}
	return -1
}

// find is the leftmost token in text at or after from, the longest of those that begin there.
func (m *matcher) find(text string, from int) (token, start, end int) {
	for i := from; i < len(text); i++ {
		if m.only >= 0 {
			n := strings.IndexByte(text[i:], byte(m.only))
			if n < 0 {
				break
			}
			i += n
		} else if !m.first[text[i]] {
			continue
		}
		token, at := int32(-1), int32(0)
		for j := i; j < len(text); j++ {
			if at = m.nodes[at].child(text[j]); at < 0 {
				break
			}
			if m.nodes[at].token >= 0 {
				token, end = m.nodes[at].token, j+1
			}
		}
		if token >= 0 {
			return int(token), i, end
		}
	}
	return -1, 0, 0
}

// split cuts text at the added tokens in it, and calls id with each token and piece with each text between them, in order.
// Tokens that do not count (special ones without special, and those that are not single words but should be) still hide the
// shorter tokens inside them. All this is as Hugging Face does it.
func (m *matcher) split(text string, special bool, id func(int32), piece func(string)) {
	done, spaceEnd := 0, 0 // text[:done] is dealt with; spaceEnd ends the white space that a token last took
	for from := 0; len(m.tokens) > 0; {
		i, start, end := m.find(text, from)
		if i < 0 {
			break
		}
		from = end
		t := &m.tokens[i]
		if t.special && !special || t.singleWord && touchesWord(text, start, end) {
			continue
		}
		if t.lstrip && start > done {
			start = done + len(strings.TrimRightFunc(text[done:start], isSpace))
		}
		if t.rstrip {
			if end >= spaceEnd { // else end is within white space that an earlier token took
				spaceEnd = len(text) - len(strings.TrimLeftFunc(text[end:], isSpace))
			}
			end = spaceEnd
		}
		if done < start {
			piece(text[done:start])
		}
		id(t.id)
		done = end
	}
	if done < len(text) {
		piece(text[done:])
	}
}

func isSpace(r rune) bool { return unicode.Is(unicode.White_Space, r) }

// touchesWord reports whether a word character touches text[start:end].
func touchesWord(text string, start, end int) bool {
	before, n := utf8.DecodeLastRuneInString(text[:start])
	after, m := utf8.DecodeRuneInString(text[end:])
	return n > 0 && isWord(before) || m > 0 && isWord(after)
}

// isWord is \w of Unicode regular expressions (UTS 18, annex C).
func isWord(r rune) bool {
	return unicode.In(r, unicode.L, unicode.Nl, unicode.Other_Alphabetic, unicode.M, unicode.Nd, unicode.Pc, unicode.Join_Control,
		newLetters, newWord)
}
