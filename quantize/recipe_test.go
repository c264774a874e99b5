package quantize

import (
	"strings"
	"testing"

	"xlstm/format"
)

func TestRecipe(t *testing.T) {
	for _, tc := range []struct{ recipe, tensor, want string }{
		{"fp32", "embed", "fp32"},
		{"fp16", "blocks.3.down", "fp16"},
		{"bf16", "head", "bf16"},
		{"int8", "embed", "int8"},
		{"int8", "blocks.0.qkvo", "int8"},
		{"int8", "blocks.0.gates", "fp32"},
		{"int4", "blocks.0.qkvo", "int4g64"},
		{"int4", "blocks.31.gate_up", "int4g64"},
		{"int4", "embed", "int8"},
		{"int4", "head", "int8"},
		{"int4", "head.bias", "fp32"},
		{"int4", "blocks.12.gates.bias", "fp32"},
		{"int4", "blocks.12.head_norm", "fp32"},
		{"int4g32a", "blocks.12.out", "int4g32a"},
		{"int4 head=fp16", "head", "fp16"},
		{"int4 head=fp16", "embed", "int8"},
		{"int4 *=int4g128", "embed", "int4g128"},
		{"int4 blocks.*.down=int8", "blocks.7.down", "int8"},
		{"int4 blocks.*=int8 blocks.7.*=fp32", "blocks.7.down", "fp32"},
		{"int4 blocks.7.*=fp32 blocks.*=int8", "blocks.7.down", "int8"},
		{"int4 blocks.[01].*=int8g64", "blocks.1.out", "int8g64"},
		{"int4 blocks.[01].*=int8g64", "blocks.2.out", "int4g64"},
		{"int4 *=int8", "blocks.2.gates", "fp32"},
	} {
		r, err := ParseRecipe(tc.recipe)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Encoding(tc.tensor).String(); got != tc.want {
			t.Errorf("%s: %s is %s, expected %s", tc.recipe, tc.tensor, got, tc.want)
		}
		again, err := ParseRecipe(r.String())
		if err != nil || again.String() != r.String() || r.String() != tc.recipe {
			t.Errorf("%q became %q, then %v, %v", tc.recipe, r.String(), again, err)
		}
	}
}

func TestRecipeErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                "empty recipe",
		"int5":            `unknown encoding "int5"`,
		"int4 head":       "expected pattern=encoding",
		"int4 =int8":      "expected pattern=encoding",
		"int4 head=int9":  `unknown encoding "int9"`,
		"int4 he[ad=int8": "syntax error in pattern",
	} {
		if _, err := ParseRecipe(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, expected %q", text, err, want)
		}
	}
	tensors := []string{"embed", "head", "blocks.0.qkvo", "blocks.0.gates", "blocks.0.gates.bias"}
	for text, want := range map[string]string{
		"int4 haed=int8":              "override haed=int8 matches no tensor",
		"int4 head=int8 block.*=fp16": "override block.*=fp16 matches no tensor",
		"int4 blocks.*.gates=int8":    "matches only tensors that are always fp32, such as blocks.0.gates",
		"int4 blocks.*.gates*=fp32":   "",
		"int4 blocks.*=int8":          "",
	} {
		r, err := ParseRecipe(text)
		if err != nil {
			t.Fatal(err)
		}
		encs, err := r.Resolve(tensors)
		if want == "" {
			if err != nil || len(encs) != len(tensors) || encs["blocks.0.gates"].Kind != format.FP32 {
				t.Errorf("%q: %v, %v", text, encs, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, expected %q", text, err, want)
		}
	}
}

func FuzzRecipe(f *testing.F) {
	f.Add("int4 head=fp16 blocks.*.down=int8g64")
	f.Add("fp32")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRecipe(text)
		if err != nil {
			return
		}
		again, err := ParseRecipe(r.String())
		if err != nil || again.String() != r.String() {
			t.Errorf("%q became %q, then %v", text, r.String(), err)
		}
		if err := r.Encoding("blocks.0.down").Validate(); err != nil {
			t.Error(err)
		}
	})
}
