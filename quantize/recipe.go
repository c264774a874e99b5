package quantize

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"xlstm/format"
)

// Recipe names the encoding of every tensor: one for each kind of tensor, and overrides by name. Gates, biases and norms are
// fp32 in every recipe and cannot be overridden: a gate's error sits in an exponent, and together they are under 0.1 % of a
// model.
type Recipe struct {
	Name      string // of the built-in recipe, such as int4
	base      format.Encoding
	ends      format.Encoding // the embedding and the head
	overrides []override
}

type override struct {
	pattern string
	enc     format.Encoding
}

// RecipeNames are the built-in recipes: those named like an encoding's kind, then any encoding's text form, such as int4g32a.
func RecipeNames() []string { return []string{"fp32", "fp16", "bf16", "int8", "int4"} }

// ParseRecipe reads a recipe's text form: a built-in name or an encoding, then overrides 'pattern=encoding', all separated by
// spaces. Patterns are path.Match's, over tensor names as in a file; the last one that matches wins.
func ParseRecipe(text string) (*Recipe, error) {
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return nil, fmt.Errorf("empty recipe, expected one of %s or an encoding", strings.Join(RecipeNames(), ", "))
	}
	enc, err := format.ParseEncoding(fields[0])
	if err != nil {
		return nil, fmt.Errorf("recipe: %w", err)
	}
	r := &Recipe{Name: fields[0], base: enc, ends: enc}
	if enc.Kind == format.Int4 {
		r.ends = format.Encoding{Kind: format.Int8}
	}
	for _, o := range fields[1:] {
		if err := r.Override(o); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Override adds 'pattern=encoding' to the recipe.
func (r *Recipe) Override(text string) error {
	pattern, name, ok := strings.Cut(text, "=")
	if !ok || pattern == "" || strings.ContainsAny(pattern, " \t\n\r\v\f") {
		return fmt.Errorf("override %q, expected pattern=encoding", text)
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return fmt.Errorf("override %q: pattern %q: %w", text, pattern, err)
	}
	enc, err := format.ParseEncoding(name)
	if err != nil {
		return fmt.Errorf("override %q: %w", text, err)
	}
	r.overrides = append(r.overrides, override{pattern, enc})
	return nil
}

// String is the text form that ParseRecipe reads: what a file stores.
func (r *Recipe) String() string {
	s := r.Name
	for _, o := range r.overrides {
		s += " " + o.pattern + "=" + o.enc.String()
	}
	return s
}

// alwaysFP32 are the tensors, by their names without the block's, that no recipe touches.
var alwaysFP32 = []string{
	format.TensorHeadBias, format.TensorQKVOBias, format.TensorGates, format.TensorGatesBias, format.TensorHeadNorm,
	format.TensorHeadNormBias, format.TensorOutBias, format.TensorGateUpBias, format.TensorDownBias,
}

// Encoding of the tensor with the given name.
func (r *Recipe) Encoding(tensor string) format.Encoding {
	short := shortName(tensor)
	if slices.Contains(alwaysFP32, short) {
		return format.Encoding{Kind: format.FP32}
	}
	for _, o := range slices.Backward(r.overrides) {
		if ok, _ := path.Match(o.pattern, tensor); ok { // patterns were checked when they were added
			return o.enc
		}
	}
	if short == format.TensorEmbed || short == format.TensorHead {
		return r.ends
	}
	return r.base
}

// Resolve gives the encodings of all tensors of a model. An override that matches none of them, or only tensors that are
// always fp32, is an error: it is a misspelling.
func (r *Recipe) Resolve(tensors []string) (map[string]format.Encoding, error) {
	for _, o := range r.overrides {
		matched, kept := false, ""
		for _, t := range tensors {
			if ok, _ := path.Match(o.pattern, t); !ok {
				continue
			}
			if slices.Contains(alwaysFP32, shortName(t)) {
				kept = t
				continue
			}
			matched = true
			break
		}
		switch {
		case matched:
		case kept != "" && o.enc.Kind == format.FP32:
		case kept != "":
			return nil, fmt.Errorf("override %s=%s matches only tensors that are always fp32, such as %s", o.pattern, o.enc, kept)
		default:
			return nil, fmt.Errorf("override %s=%s matches no tensor", o.pattern, o.enc)
		}
	}
	encs := make(map[string]format.Encoding, len(tensors))
	for _, t := range tensors {
		encs[t] = r.Encoding(t)
	}
	return encs, nil
}

// shortName is a tensor's name without that of its block: blocks.7.qkvo becomes qkvo.
func shortName(tensor string) string {
	rest, ok := strings.CutPrefix(tensor, "blocks.")
	if !ok {
		return tensor
	}
	_, name, _ := strings.Cut(rest, ".")
	return name
}
