package tokenizer

// Decode turns ids into text. Bytes that are not UTF-8 become U+FFFD, as in Encode. Special tokens are written as o says; ids that
// t lacks are left out, as Hugging Face does.
func (t *Tokenizer) Decode(ids []int32, o Options) string {
	return string(appendLossy(nil, t.AppendBytes(nil, ids, o)))
}

// AppendBytes appends the bytes that ids stand for to dst, whether they are UTF-8 or not.
func (t *Tokenizer) AppendBytes(dst []byte, ids []int32, o Options) []byte {
	for _, id := range ids {
		if o.Special || !t.IsSpecial(id) {
			dst = append(dst, t.TokenBytes(id)...)
		}
	}
	return dst
}

// Decoder decodes ids as they come. What its calls return, put together, is what Decode gives for all the ids.
type Decoder struct {
	t       *Tokenizer
	o       Options
	pending []byte // an unfinished character: at most 3 bytes between calls
}

// NewDecoder makes a Decoder.
func (t *Tokenizer) NewDecoder(o Options) *Decoder { return &Decoder{t: t, o: o} }

// Next takes ids and returns the text that they complete, never part of a character.
func (d *Decoder) Next(ids ...int32) string {
	b := d.t.AppendBytes(d.pending, ids, d.o)
	keep := len(b)
	for i := max(0, len(b)-3); i < len(b); i++ {
		// Only a lead byte can begin an unfinished part, and it does so whatever precedes it.
		if n, open := subpart(b[i:]); open && i+n == len(b) {
			keep = i
			break
		}
	}
	out := string(appendLossy(nil, b[:keep]))
	d.pending = append(b[:0], b[keep:]...)
	return out
}

// Flush returns what is left of a character that never became whole, as Decode would, and makes d ready for another text.
func (d *Decoder) Flush() string {
	out := string(appendLossy(nil, d.pending))
	d.pending = d.pending[:0]
	return out
}
