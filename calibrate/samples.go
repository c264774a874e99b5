package calibrate

import (
	"errors"
	"fmt"

	"xlstm/convert"
	"xlstm/tokenizer"
)

// SampleText cuts n samples of length tokens from a text, at even distances. Each of them begins as a window that is scored does:
// with the beginning-of-text token, if the model has one, and from a fresh state.
func SampleText(src *convert.Source, text string, n, length int) ([][]int32, error) {
	if n < 1 || length < 2 {
		return nil, fmt.Errorf("calibration: %d samples of %d tokens, expected at least 1 of 2", n, length)
	}
	if len(src.Tokenizer()) == 0 {
		return nil, errors.New("calibration needs a tokenizer, and the model has none: there was no tokenizer.json in its checkpoint")
	}
	t, err := tokenizer.Load(src.Tokenizer())
	if err != nil {
		return nil, err
	}
	ids := t.Encode(text, tokenizer.Options{Special: true})
	var first []int32
	if bos := src.Config().BOS; bos >= 0 {
		first = []int32{int32(bos)}
	}
	own := length - len(first) // tokens of the text in a sample
	if len(ids)/own < n {
		return nil, fmt.Errorf("calibration text is too short: %d samples of %d tokens need %d tokens of text, found %d", n, length, n*own, len(ids))
	}
	samples := make([][]int32, n)
	for i := range samples {
		at := int(int64(i) * int64(len(ids)-own) / int64(max(n-1, 1)))
		samples[i] = append(append(make([]int32, 0, length), first...), ids[at:at+own]...)
	}
	return samples, nil
}

// checkSamples reports samples that the model cannot be run on.
func checkSamples(samples [][]int32, vocab int) error {
	if len(samples) == 0 {
		return errors.New("calibration: no samples")
	}
	for i, s := range samples {
		if len(s) == 0 {
			return fmt.Errorf("calibration: sample %d is empty", i)
		}
		for _, id := range s {
			if id < 0 || int(id) >= vocab {
				return fmt.Errorf("calibration: token %d of sample %d is outside the vocabulary of %d", id, i, vocab)
			}
		}
	}
	return nil
}
