package checkpoints

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// walkObject calls each for every key of the JSON object that dec is about to read; each reads the value. A key that appears
// twice is an error: readers differ in which of the two they take.
func walkObject(dec *json.Decoder, each func(key string) error) error {
	if err := expect(dec, '{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return unexpectedEnd(err)
		}
		key, ok := t.(string)
		if !ok {
			return fmt.Errorf("expected a key, found %v", t)
		}
		if seen[key] {
			return fmt.Errorf("%.120q appears twice", key)
		}
		seen[key] = true
		if err := each(key); err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return unexpectedEnd(err)
}

func expect(dec *json.Decoder, delim json.Delim) error {
	t, err := dec.Token()
	if err != nil {
		return unexpectedEnd(err)
	}
	if t != delim {
		return fmt.Errorf("expected %v, found %v", delim, t)
	}
	return nil
}

// nothingLeft checks that only white space follows what was read.
func nothingLeft(dec *json.Decoder) error {
	if t, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("expected nothing after the object, found %v", t)
	}
	return nil
}

func unexpectedEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parseJSONObject reads an object with its numbers as they are written.
func parseJSONObject(text []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	values := map[string]any{}
	err := walkObject(dec, func(key string) error {
		var v any
		err := dec.Decode(&v)
		values[key] = v
		return unexpectedEnd(err)
	})
	if err == nil {
		err = nothingLeft(dec)
	}
	if err != nil {
		return nil, fmt.Errorf("invalid JSON: %w", err)
	}
	return values, nil
}

// clip keeps a hostile name from filling an error line, or from making several of it.
func clip(s string) string {
	if len(s) > 120 {
		s = s[:120] + "..."
	}
	if quoted := strconv.Quote(s); quoted != `"`+s+`"` {
		return quoted
	}
	return s
}
