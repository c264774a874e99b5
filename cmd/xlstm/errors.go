package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// usageError is a command line that cannot be meant: exit status 2.
type usageError struct {
	command string // whose help explains it
	err     error
}

func (e *usageError) Error() string { return fmt.Sprintf("%v (see %s --help)", e.err, e.command) }
func (e *usageError) Unwrap() error { return e.err }

// usagef is a usageError of a command.
func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{cmd.CommandPath(), fmt.Errorf(format, args...)}
}

// arguments makes a check of the positional arguments a usageError, which says what is expected.
func arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		n := len(args)
		if n >= least && (n <= most || most < 0) {
			return nil
		}
		_, names, _ := strings.Cut(cmd.Use, " ")
		if names == "" {
			return usagef(cmd, "found %d arguments, expected none", n)
		}
		return usagef(cmd, "found %d arguments, expected %s", n, names)
	}
}

// outcome is the exit status of an error, and the one line that reports it, "" where nothing is to be said.
func outcome(ctx context.Context, err error) (status int, line string) {
	var sig signalError
	var usage *usageError
	switch {
	case err == nil:
		return 0, ""
	case errors.Is(err, syscall.EPIPE):
		return 128 + int(syscall.SIGPIPE), "" // whoever read our output has seen enough
	case errors.As(context.Cause(ctx), &sig):
		return 128 + int(sig.sig), sig.Error()
	case errors.As(err, &usage):
		return 2, oneLine(err.Error())
	}
	return 1, oneLine(err.Error())
}

// oneLine puts a message on one line and takes out control characters, which would reach the terminal.
func oneLine(s string) string {
	fields := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
	for i := range fields {
		fields[i] = strings.TrimSpace(fields[i])
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.Join(fields, "; "))
}
