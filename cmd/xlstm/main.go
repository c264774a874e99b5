// Command xlstm converts released xLSTM checkpoints into one file, quantizes them for the machine at hand, runs them, and
// measures that the result is still the original model. See xlstm --help.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// A reader that goes away (| head) is an error of the write, so that commands end in order and remove what they began.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := interruptible(context.Background())
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run executes one command line and returns its exit status: 0, 1 for a failure, 2 for misuse, 128 and a signal's number.
func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	a := &app{in: in, out: &output{w: out}, errs: errs}
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(a.out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	a.closeBars()
	if werr := a.out.Flush(); err == nil {
		err = werr
	}
	status, line := outcome(ctx, err)
	if line != "" {
		fmt.Fprintln(errs, "xlstm: "+line)
	}
	return status
}

// signalError is why a context ended: a signal came.
type signalError struct{ sig syscall.Signal }

func (e signalError) Error() string {
	if e.sig == syscall.SIGINT {
		return "interrupted"
	}
	return "stopped: " + e.sig.String()
}

// interruptible is a context that the first Ctrl-C (or SIGTERM) ends; the second kills the program.
func interruptible(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case s := <-c:
			signal.Stop(c)
			if sig, ok := s.(syscall.Signal); ok {
				cancel(signalError{sig})
			}
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(c)
		cancel(nil)
	}
}
