package main

import (
	"context"
	"encoding/hex"

	"github.com/spf13/cobra"
)

func newVerify(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "verify MODEL",
		Short: "Check every byte of a converted file",
		Long: `Check every byte of a converted file against its checksums: config, tokenizer, every tensor, and the padding between
them. Exit status 0 means that the file is whole.`,
		Example:           "  xlstm verify model.xlstm",
		Args:              arguments(1, 1),
		ValidArgsFunction: completeModels,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.verify(cmd.Context(), args[0]) },
	}
}

func (a *app) verify(ctx context.Context, name string) error {
	f, err := a.openFile(ctx, name)
	if err != nil {
		return err
	}
	defer f.Close()
	if len(f.Tokenizer()) > 0 {
		if _, err := loadTokenizer(f); err != nil {
			return err
		}
	}
	bar := a.newBar("verify", f.Size(), bytesUnit)
	if err := f.Verify(ctx, func(done, _ int64) { bar.set(done) }); err != nil {
		return err
	}
	a.closeBars()
	sum := f.Fingerprint()
	a.printf("%s: whole: %s, %d tensors, fingerprint %s\n", name, size(f.Size()), len(f.Tensors()), hex.EncodeToString(sum[:]))
	return nil
}
