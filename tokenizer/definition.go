package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"

	sugarme "github.com/sugarme/tokenizer"
)

// FromJSON compiles the definition of a tokenizer, the bytes of a tokenizer.json. What it asks for is done exactly or refused: a
// kind that is not byte-level BPE, and every setting that would change ids and is not implemented, is an error that names it.
func FromJSON(data []byte) (t *Tokenizer, err error) {
	defer func() {
		// The definition is read by a library that is not ours; whatever it does with bad bytes must stay in here.
		if r := recover(); r != nil {
			t, err = nil, fmt.Errorf("tokenizer.json: not readable: %v", r)
		}
	}()
	var def sugarme.Config
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&def); err != nil {
		return nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("tokenizer.json: more than one JSON value")
	}
	if t, err = compile(&def); err != nil {
		return nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	return t, nil
}

func compile(def *sugarme.Config) (*Tokenizer, error) {
	var c tables
	if def.Version != "1.0" {
		return nil, fmt.Errorf("version %q, expected \"1.0\"", def.Version)
	}
	if def.Truncation != nil || def.Padding != nil {
		return nil, errors.New("truncation or padding is set, which is not supported")
	}
	if err := c.readNormalizer(def.Normalizer); err != nil {
		return nil, fmt.Errorf("normalizer: %w", err)
	}
	if err := c.readPreTokenizer(def.PreTokenizer); err != nil {
		return nil, fmt.Errorf("pre_tokenizer: %w", err)
	}
	if err := checkPostProcessor(def.PostProcessor); err != nil {
		return nil, fmt.Errorf("post_processor: %w", err)
	}
	if err := checkDecoder(def.Decoder); err != nil {
		return nil, fmt.Errorf("decoder: %w", err)
	}
	vocab, err := c.readModel(def.Model)
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if err := c.readAdded(def.AddedTokens, vocab); err != nil {
		return nil, fmt.Errorf("added_tokens: %w", err)
	}
	return c.tokenizer()
}

// object is one JSON object of the definition. take and its kin remove what they read; done refuses what is left.
type object map[string]any

func (o object) done(kind string) error {
	keys := make([]string, 0, len(o))
	for k := range o {
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil
	}
	sort.Strings(keys)
	return fmt.Errorf("%s has %q, which is not supported", kind, keys[0])
}

func clone(m map[string]any) object {
	o := make(object, len(m))
	for k, v := range m {
		o[k] = v
	}
	return o
}

func (o object) takeString(key string) (string, error) {
	v, ok := o[key]
	delete(o, key)
	if !ok || v == nil {
		return "", nil
	}
	s, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("%s is a %T, expected a string", key, v)
	}
	return s, nil
}

func (o object) takeBool(key string, missing bool) (bool, error) {
	v, ok := o[key]
	delete(o, key)
	if !ok {
		return missing, nil
	}
	b, ok := v.(bool)
	if !ok {
		return false, fmt.Errorf("%s is a %T, expected true or false", key, v)
	}
	return b, nil
}

// refuse removes keys whose values are null, false, 0 or "", and refuses any other value.
func (o object) refuse(keys ...string) error {
	for _, key := range keys {
		switch v := o[key]; v {
		case nil, false, 0.0, "":
			delete(o, key)
		default:
			return fmt.Errorf("%s is %v, which is not supported", key, v)
		}
	}
	return nil
}

func asObjects(v any) ([]map[string]any, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("sequence is a %T, expected a list", v)
	}
	var out []map[string]any
	for _, e := range list {
		m, ok := e.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("sequence holds a %T, expected objects", e)
		}
		out = append(out, m)
	}
	return out, nil
}

func (c *tables) readNormalizer(m map[string]any) error {
	if m == nil {
		return nil
	}
	o := clone(m)
	kind, err := o.takeString("type")
	if err != nil {
		return err
	}
	switch kind {
	case "NFC":
		c.nfc = true
	case "Sequence":
		parts, err := asObjects(o["normalizers"])
		if err != nil {
			return err
		}
		delete(o, "normalizers")
		for _, p := range parts {
			if err := c.readNormalizer(p); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("type %q is not supported: expected NFC or none", kind)
	}
	return o.done(kind)
}

func (c *tables) readPreTokenizer(m map[string]any) error {
	if m == nil {
		return errors.New("there is none, expected ByteLevel")
	}
	o := clone(m)
	kind, err := o.takeString("type")
	if err != nil {
		return err
	}
	switch kind {
	case "ByteLevel":
		if _, ok := o["add_prefix_space"]; !ok {
			return errors.New("ByteLevel has no add_prefix_space")
		}
		if c.prefixSpace, err = o.takeBool("add_prefix_space", false); err != nil {
			return err
		}
		if c.splitWords, err = o.takeBool("use_regex", true); err != nil {
			return err
		}
		if _, err = o.takeBool("trim_offsets", true); err != nil { // offsets in the text, which nothing here gives
			return err
		}
	case "Sequence":
		parts, err := asObjects(o["pretokenizers"])
		if err != nil {
			return err
		}
		delete(o, "pretokenizers")
		if len(parts) != 1 {
			return fmt.Errorf("a sequence of %d is not supported: expected one ByteLevel", len(parts))
		}
		if err := c.readPreTokenizer(parts[0]); err != nil {
			return err
		}
	default:
		return fmt.Errorf("type %q is not supported: expected ByteLevel", kind)
	}
	return o.done(kind)
}

// checkPostProcessor accepts what leaves ids as they are: nothing, ByteLevel (which trims offsets), and a template that is the
// text alone. A beginning-of-text token is the model config's business.
func checkPostProcessor(m map[string]any) error {
	if m == nil {
		return nil
	}
	switch m["type"] {
	case "ByteLevel":
		return nil
	case "Sequence":
		parts, err := asObjects(m["processors"])
		if err != nil {
			return err
		}
		for _, p := range parts {
			if err := checkPostProcessor(p); err != nil {
				return err
			}
		}
		return nil
	case "TemplateProcessing":
		if parts, err := asObjects(m["single"]); err == nil && len(parts) == 1 && parts[0]["Sequence"] != nil {
			return nil
		}
		return errors.New("TemplateProcessing that adds tokens is not supported")
	}
	return fmt.Errorf("type %v is not supported: expected ByteLevel, a template that adds nothing, or none", m["type"])
}

func checkDecoder(m map[string]any) error {
	switch m["type"] {
	case "ByteLevel": // its settings do not matter when decoding
		return nil
	case "Sequence":
		parts, err := asObjects(m["decoders"])
		if err == nil && len(parts) == 1 {
			return checkDecoder(parts[0])
		}
	}
	return fmt.Errorf("type %v is not supported: expected ByteLevel", m["type"])
}

// readModel reads BPE's vocabulary and merges, and returns the vocabulary.
func (c *tables) readModel(m map[string]any) (map[string]int32, error) {
	o := clone(m)
	kind, err := o.takeString("type")
	if err != nil {
		return nil, err
	}
	if _, typed := m["type"]; !typed {
		kind = "BPE" // files of old do not say so, GPT-2's among them; what follows is checked all the same
	}
	if kind != "BPE" {
		return nil, fmt.Errorf("type %q is not supported: expected BPE", kind)
	}
	if err := o.refuse("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"); err != nil {
		return nil, err
	}
	if c.fuseUnknown, err = o.takeBool("fuse_unk", false); err != nil {
		return nil, err
	}
	vocab, err := readVocab(o["vocab"])
	if err != nil {
		return nil, err
	}
	delete(o, "vocab")
	unknown, hasUnknown := o["unk_token"].(string)
	if !hasUnknown && o["unk_token"] != nil {
		return nil, fmt.Errorf("unk_token is a %T, expected a string or null", o["unk_token"])
	}
	delete(o, "unk_token")
	if err := c.readMerges(o["merges"], vocab); err != nil {
		return nil, err
	}
	delete(o, "merges")
	if err := o.done(kind); err != nil {
		return nil, err
	}
	return vocab, c.readTokens(vocab, unknown, hasUnknown)
}

func readVocab(v any) (map[string]int32, error) {
	m, ok := v.(map[string]any)
	if !ok || len(m) == 0 {
		return nil, errors.New("there is no vocab")
	}
	vocab := make(map[string]int32, len(m))
	for text, v := range m {
		f, ok := v.(float64)
		if !ok || f < 0 || f >= maxVocab || f != float64(int32(f)) {
			return nil, fmt.Errorf("vocab: the id of %q is %v, expected 0 to %d", text, v, maxVocab-1)
		}
		vocab[text] = int32(f)
	}
	return vocab, nil
}

func (c *tables) readMerges(v any, vocab map[string]int32) error {
	list, ok := v.([]any)
	if !ok {
		return errors.New("there are no merges")
	}
	for i, e := range list {
		left, right, err := mergePair(e)
		if err != nil {
			return fmt.Errorf("merge %d: %w", i, err)
		}
		var r rule
		for _, part := range []struct {
			id   *int32
			text string
		}{{&r.left, left}, {&r.right, right}, {&r.result, left + right}} {
			id, ok := vocab[part.text]
			if !ok {
				return fmt.Errorf("merge %d of %q and %q: %q is not in the vocab", i, left, right, part.text)
			}
			*part.id = id
		}
		c.rules = append(c.rules, r)
	}
	return nil
}

// mergePair reads a merge, "left right" or ["left", "right"].
func mergePair(v any) (left, right string, err error) {
	switch v := v.(type) {
	case string:
		if n := bytes.IndexByte([]byte(v), ' '); n >= 0 && bytes.IndexByte([]byte(v[n+1:]), ' ') < 0 {
			return v[:n], v[n+1:], nil
		}
	case []any:
		if len(v) == 2 {
			l, okL := v[0].(string)
			r, okR := v[1].(string)
			if okL && okR {
				return l, r, nil
			}
		}
	}
	return "", "", fmt.Errorf("%v is not two tokens", v)
}
