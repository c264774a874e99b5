package main

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"xlstm/tokenizer"
)

func newTokenize(a *app) *cobra.Command {
	var file string
	var asJSON, decode, special bool
	cmd := &cobra.Command{
		Use:   "tokenize MODEL|tokenizer.json",
		Short: "Turn text into token ids, or ids into text",
		Long: `Turn text into token ids, one a line, or ids back into bytes. The tokenizer is that of a converted file, of a
checkpoint's directory, of the model inside the program (demo), or a tokenizer.json. Texts of special tokens, such as
<|endoftext|>, are those tokens; --special=false makes them plain text.`,
		Example: `  xlstm tokenize model.xlstm -f text.txt
  echo "Hello world" | xlstm tokenize tokenizer.json --json
  xlstm tokenize model.xlstm -f text.txt | xlstm tokenize model.xlstm --decode | cmp - text.txt`,
		Args: arguments(1, 1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []string{"xlstm", "json"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if decode && asJSON {
				return usagef(cmd, "--json is for ids, and --decode gives bytes")
			}
			t, err := a.tokenizerOf(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			text, err := a.readInput(cmd.Context(), file)
			if err != nil {
				return err
			}
			if decode {
				return a.decode(t, text, file, special)
			}
			return a.encode(t, text, asJSON, special)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "-", "text, or with --decode ids; - is stdin")
	f.BoolVar(&asJSON, "json", false, "print the ids as a JSON array")
	f.BoolVar(&decode, "decode", false, "read ids (as printed, with or without --json) and print the bytes that they stand for")
	f.BoolVar(&special, "special", true, "treat the texts of special tokens as those tokens")
	return cmd
}

func (a *app) encode(t *tokenizer.Tokenizer, text []byte, asJSON, special bool) error {
	ids := t.Encode(string(text), tokenizer.Options{Special: special})
	sep, b := byte('\n'), []byte(nil)
	if asJSON {
		sep, b = ',', append(b, '[')
	}
	for i, id := range ids {
		if asJSON && i > 0 {
			b = append(b, sep)
		}
		b = strconv.AppendInt(b, int64(id), 10)
		if !asJSON {
			b = append(b, sep)
		}
	}
	if asJSON {
		b = append(b, ']', '\n')
	}
	_, err := a.out.Write(b)
	return err
}

func (a *app) decode(t *tokenizer.Tokenizer, text []byte, name string, special bool) error {
	fields := bytes.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t\r\n,[]", r) })
	ids := make([]int32, len(fields))
	for i, s := range fields {
		n, err := strconv.ParseInt(string(s), 10, 32)
		if err != nil {
			return fmt.Errorf("%s: found %.40q, expected token ids", name, s)
		}
		if !t.Has(int32(n)) {
			return fmt.Errorf("%s: the tokenizer has no id %d", name, n)
		}
		ids[i] = int32(n)
	}
	_, err := a.out.Write(t.AppendBytes(nil, ids, tokenizer.Options{Special: special}))
	return err
}
