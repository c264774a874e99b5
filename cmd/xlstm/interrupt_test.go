package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// interrupt starts a command, sends the signals once it has begun, and returns its exit status and stderr.
func interrupt(t *testing.T, cmd *exec.Cmd, begun <-chan struct{}, sig syscall.Signal) (status int, stderr string) {
	t.Helper()
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-begun:
	case err := <-done:
		t.Fatalf("ended before it could be interrupted: %v %s", err, errs.String())
	}
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		return exitStatus(t, err), errs.String()
	case <-time.After(30 * time.Second):
		_ = cmd.Process.Kill()
		t.Fatal("did not end when interrupted")
	}
	return 0, ""
}

func TestInterruptedPull(t *testing.T) {
	begun := make(chan struct{}, 10)
	hang := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-r.Context().Done()
	}))
	defer hang.Close()
	for sig, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		cmd := exec.Command(program, "pull", "a/b", "-o", t.TempDir())
		cmd.Env = append(os.Environ(), "HF_ENDPOINT="+hang.URL, "HF_TOKEN=")
		if status, stderr := interrupt(t, cmd, begun, sig); status != want || !isLine(stderr) {
			t.Errorf("%v: status %d, stderr %q, want %d and one line", sig, status, stderr, want)
		}
	}
}

// TestInterruptedInput waits for a stdin that never comes.
func TestInterruptedInput(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	cmd := exec.Command(program, "tokenize", testdata+"/xlstm-7b")
	begun := make(chan struct{})
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		// More than a pipe holds: when all of it is written, the program is reading.
		_, _ = in.Write(make([]byte, 1<<20))
		close(begun)
		_, _ = io.Copy(in, r)
	}()
	if status, stderr := interrupt(t, cmd, begun, syscall.SIGINT); status != 130 || !isLine(stderr) {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
}
