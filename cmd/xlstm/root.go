package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// app is what commands share: the streams, and how progress is shown.
type app struct {
	in   io.Reader
	out  *output
	errs io.Writer
	bars []*bar
}

// terminal reports whether errors and progress go to a terminal.
func (a *app) terminal() bool {
	f, ok := a.errs.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

// logf writes one line about what happened, to stderr.
func (a *app) logf(format string, args ...any) {
	a.closeBars()
	fmt.Fprintf(a.errs, format+"\n", args...)
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "xlstm",
		Short: "Convert, quantize and run xLSTM language models",
		Long: `xlstm converts released xLSTM checkpoints into one memory-mappable file, quantizes them for the machine at hand, runs
them, and measures with perplexity that the result is still the original model.`,
		Example: `  xlstm run demo -p "It was a dark and"          text from the model inside the program
  xlstm pull NX-AI/xLSTM-7b                      download a checkpoint
  xlstm convert xLSTM-7b -o 7b.xlstm --recipe fp16
  xlstm run 7b.xlstm -p "The capital of France is" -n 64`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := ""
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = ", did you mean " + strings.Join(near, " or ") + "?"
			}
			return usagef(cmd, "unknown command %q%s", args[0], hint)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return usagef(cmd, "expected a command") },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usagef(cmd, "%w", err) })
	root.AddCommand(
		newBench(a),
		newCompletion(a),
		newConvert(a),
		newInspect(a),
		newLogits(a),
		newPerplexity(a),
		newPlan(a),
		newDevices(a),
		newPull(a),
		newQuantize(a),
		newRun(a),
		newTokenize(a),
		newVerify(a),
		newVersion(a),
	)
	root.SetHelpCommand(newHelp())
	return root
}

// newHelp is cobra's own, except that a command that does not exist is misuse.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:     "help [command]",
		Short:   "Explain a command",
		Example: "  xlstm help convert",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) (names []string, d cobra.ShellCompDirective) {
			for _, c := range cmd.Root().Commands() {
				if len(args) == 0 && c.IsAvailableCommand() {
					names = append(names, c.Name()+"\t"+c.Short)
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, rest, err := cmd.Root().Find(args)
			if err != nil || c == nil || len(rest) > 0 {
				return usagef(cmd.Root(), "unknown command %q", strings.Join(args, " "))
			}
			c.InitDefaultHelpFlag()
			return c.Help()
		},
	}
}
