// Package format reads and writes .xlstm files: one model in one memory-mappable file. docs/FORMAT.md is its specification.
package format

import (
	"fmt"
	"strconv"
	"strings"
)

// Kind is the number format of a tensor's values.
type Kind uint8

// The kinds. Values are part of the file format.
const (
	FP32 Kind = iota + 1
	FP16
	BF16
	Int8 // symmetric, q in [-127, 127]: w = q * scale
	Int4 // q in [0, 15]: w = (q - 8) * scale, or q*scale + min where asymmetric
)

// Encoding says how one tensor is stored. Text forms: fp32, fp16, bf16, int8 (one scale a row), int8g64 (one scale for 64
// values of a row), int4g64, int4g64a (asymmetric).
type Encoding struct {
	Kind       Kind
	Group      int  // values that share a scale: 0 is a whole row (int8 only), else 32, 64 or 128
	Asymmetric bool // int4 only: a group has a minimum beside its scale
}

// Sizes of the parts of a stored tensor, in bytes. A tensor is stored as up to three parts, each beginning at a multiple of
// PartAlign bytes from the tensor's start and padded with zeros: values (all rows), scales (all rows), minimums (all rows).
type Sizes struct {
	ValueRow, ScaleRow, MinRow      int64 // one row of each part; 0 where the part is absent
	ScalesOffset, MinsOffset, Total int64 // from the tensor's start; Total is a multiple of PartAlign
}

// PartAlign is the alignment of a tensor and of its parts, in bytes.
const PartAlign = 256

// ParseEncoding reads an encoding's text form. "int4" alone is int4g64.
func ParseEncoding(s string) (Encoding, error) {
	switch s {
	case "fp32":
		return Encoding{Kind: FP32}, nil
	case "fp16":
		return Encoding{Kind: FP16}, nil
	case "bf16":
		return Encoding{Kind: BF16}, nil
	case "int8":
		return Encoding{Kind: Int8}, nil
	case "int4":
		return Encoding{Kind: Int4, Group: 64}, nil
	}
	e := Encoding{}
	rest, ok := strings.CutPrefix(s, "int8g")
	if ok {
		e.Kind = Int8
	} else if rest, ok = strings.CutPrefix(s, "int4g"); ok {
		e.Kind = Int4
		rest, e.Asymmetric = strings.CutSuffix(rest, "a")
	}
	g, err := strconv.Atoi(rest)
	e.Group = g
	if !ok || err != nil || e.Validate() != nil || e.String() != s {
		return Encoding{}, fmt.Errorf("unknown encoding %q, expected fp32, fp16, bf16, int8, int8g{32,64,128}, int4g{32,64,128} or int4g{32,64,128}a", s)
	}
	return e, nil
}

// String is the text form that ParseEncoding reads.
func (e Encoding) String() string {
	switch e.Kind {
	case FP32:
		return "fp32"
	case FP16:
		return "fp16"
	case BF16:
		return "bf16"
	case Int8:
		if e.Group == 0 {
			return "int8"
		}
		return "int8g" + strconv.Itoa(e.Group)
	case Int4:
		s := "int4g" + strconv.Itoa(e.Group)
		if e.Asymmetric {
			s += "a"
		}
		return s
	}
	return fmt.Sprintf("kind(%d)", e.Kind)
}

// Validate reports whether e is one of the encodings that there are.
func (e Encoding) Validate() error {
	grouped := e.Group == 32 || e.Group == 64 || e.Group == 128
	switch e.Kind {
	case FP32, FP16, BF16:
		if e.Group == 0 && !e.Asymmetric {
			return nil
		}
	case Int8:
		if (e.Group == 0 || grouped) && !e.Asymmetric {
			return nil
		}
	case Int4:
		if grouped {
			return nil
		}
	}
	return fmt.Errorf("no such encoding: kind %d, group %d, asymmetric %v", e.Kind, e.Group, e.Asymmetric)
}

// Groups is the number of scales that a row of cols values has; the last group may be shorter than the others.
func (e Encoding) Groups(cols int) int {
	switch {
	case e.Kind != Int8 && e.Kind != Int4:
		return 0
	case e.Group == 0:
		return 1
	}
	return (cols + e.Group - 1) / e.Group
}

// RowAlign is the number of values that rows are padded to a multiple of, in every encoding, so that kernels have no tails:
// they run over PaddedCols values, with activations zero beyond cols. Padding holds the code of zero (0; 8 in int4 nibbles).
const RowAlign = 32

// PaddedCols is cols rounded up to a multiple of RowAlign.
func PaddedCols(cols int) int { return (cols + RowAlign - 1) / RowAlign * RowAlign }

// ValueRowBytes is the size of one stored row of cols values, padding included.
func (e Encoding) ValueRowBytes(cols int) int64 {
	c := int64(PaddedCols(cols))
	switch e.Kind {
	case FP32:
		return 4 * c
	case FP16, BF16:
		return 2 * c
	case Int8:
		return c
	default:
		return c / 2
	}
}

// Sizes computes the layout of a tensor of rows x cols. Scales of int8 without groups are float32, one a row; all other scales
// and minimums are float16.
func (e Encoding) Sizes(rows, cols int) Sizes {
	s := Sizes{ValueRow: e.ValueRowBytes(cols)}
	if e.Kind == Int8 && e.Group == 0 {
		s.ScaleRow = 4
	} else {
		s.ScaleRow = 2 * int64(e.Groups(cols))
	}
	if e.Asymmetric {
		s.MinRow = s.ScaleRow
	}
	r := int64(rows)
	s.ScalesOffset = alignUp(r*s.ValueRow, PartAlign)
	s.MinsOffset = s.ScalesOffset + alignUp(r*s.ScaleRow, PartAlign)
	s.Total = s.MinsOffset + alignUp(r*s.MinRow, PartAlign)
	return s
}

// BitsPerWeight is the stored size of a rows x cols tensor in bits, over its number of weights.
func (e Encoding) BitsPerWeight(rows, cols int) float64 {
	return float64(8*e.Sizes(rows, cols).Total) / (float64(rows) * float64(cols))
}

func alignUp(n, a int64) int64 { return (n + a - 1) / a * a }
