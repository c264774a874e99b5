package tokenizer_test

import (
	"fmt"
	"log"
	"os"

	"xlstm/tokenizer"
)

// Special tokens in a text are plain text, unless asked for.
func ExampleTokenizer_Encode() {
	definition, err := os.ReadFile("../testdata/xlstm-7b/tokenizer.json")
	if err != nil {
		log.Fatal(err)
	}
	t, err := tokenizer.FromJSON(definition)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(t.Encode("Hello, world!", tokenizer.Options{}))
	fmt.Println(t.Encode("one<|endoftext|>two", tokenizer.Options{}))
	fmt.Println(t.Encode("one<|endoftext|>two", tokenizer.Options{Special: true}))
	// Output:
	// [12092 13 1533 2]
	// [531 29 93 423 1171 1156 49651 9389]
	// [531 0 9389]
}

// A Decoder never shows half a character.
func ExampleDecoder() {
	definition, err := os.ReadFile("../testdata/xlstm-7b/tokenizer.json")
	if err != nil {
		log.Fatal(err)
	}
	t, err := tokenizer.FromJSON(definition)
	if err != nil {
		log.Fatal(err)
	}
	d := t.NewDecoder(tokenizer.Options{})
	for _, id := range t.Encode("ok 🧭", tokenizer.Options{}) {
		fmt.Printf("%d %q\n", id, d.Next(id))
	}
	fmt.Printf("%q\n", d.Flush())
	// Output:
	// 536 "ok"
	// 22692 " "
	// 102 ""
	// 244 "🧭"
	// ""
}
