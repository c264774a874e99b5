package main

import (
	"context"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"xlstm/checkpoints/hub"
)

func newPull(a *app) *cobra.Command {
	var revision, dir string
	var include, exclude []string
	cmd := &cobra.Command{
		Use:   "pull REPOSITORY",
		Short: "Download a checkpoint from the Hugging Face Hub",
		Long: `Download a checkpoint from the Hugging Face Hub: weights (.safetensors), configs, tokenizer, license and README.
An interrupted download goes on where it was when the same command is given again. Every file's hash is checked; files that
are there already are not downloaded again.

Environment: HF_TOKEN, a token for private and gated repositories; HF_ENDPOINT, another address than ` + hub.DefaultEndpoint + `.`,
		Example: `  xlstm pull NX-AI/xLSTM-7b
  xlstm pull NX-AI/xLSTM-7b --revision main -o checkpoints/7b
  xlstm pull NX-AI/xLSTM-7b --include '*.json' -o configs`,
		Args:              arguments(1, 1),
		ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			if dir == "" {
				dir = path.Base(args[0])
			}
			return a.pull(cmd.Context(), args[0], revision, dir, hub.Options{Include: include, Exclude: exclude})
		},
	}
	f := cmd.Flags()
	f.StringVar(&revision, "revision", "main", "branch, tag or commit")
	f.StringVarP(&dir, "output", "o", "", "directory to download into (default: the repository's name)")
	f.StringSliceVar(&include, "include", nil, "download files that match these patterns instead of what a checkpoint consists of")
	f.StringSliceVar(&exclude, "exclude", nil, "leave out files that match these patterns")
	return cmd
}

func (a *app) pull(ctx context.Context, repo, revision, dir string, o hub.Options) error {
	o = o.Environment()
	watch := pullWatcher{app: a, repo: repo}
	o.Progress = watch.event
	r, err := hub.Pull(ctx, repo, revision, dir, o)
	if err != nil {
		if ctx.Err() != nil && watch.total > 0 {
			a.logf("what has arrived is kept in %s: the same command goes on from there", dir)
		}
		return err
	}
	a.closeBars()
	var total int64
	for _, f := range r.Files {
		total += f.Size
	}
	a.printf("%s: %d files, %s, of %s at commit %s", filepath.Clean(dir), len(r.Files), size(total), repo, r.Commit)
	if r.Skipped > 0 {
		a.printf(" (%d were there already)", r.Skipped)
	}
	a.printf("\n")
	return nil
}

// pullWatcher turns a download's events into one bar.
type pullWatcher struct {
	app               *app
	repo              string
	bar               *bar
	total, got        int64
	planned, finished int
}

func (w *pullWatcher) event(e hub.Event) {
	switch e.Kind {
	case hub.Planned:
		w.planned++
		w.total += e.File.Size
		w.got += e.Bytes
		return
	case hub.Retrying:
		what := strings.TrimSpace(w.repo + " " + e.File.Path)
		w.app.logf("%s: %v; again in %.0f s", what, oneLine(e.Err.Error()), e.Wait.Seconds())
		w.bar = nil
		return
	case hub.Restarted:
		w.app.logf("%s: %v; downloading it again", e.File.Path, oneLine(e.Err.Error()))
		w.bar = nil
		return
	case hub.Received:
		w.got += e.Bytes
	case hub.Finished:
		if w.finished++; !e.File.Hashed() {
			w.app.logf("%s: the server gives no hash of it: only its size was checked", e.File.Path)
			w.bar = nil
		}
	default:
		return
	}
	if w.bar == nil {
		w.bar = w.app.newBar("", w.total, bytesUnit)
	}
	w.bar.describe("%d/%d files", w.finished, w.planned)
	w.bar.set(w.got)
}
