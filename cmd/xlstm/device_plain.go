//go:build !cuda

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"xlstm/format"
	"xlstm/kernels"
)

// companionName is the program, beside this one, that has the CUDA engine.
const companionName = "xlstm-cuda"

// handOver replaces this process by xlstm-cuda with the same arguments, where d asks for a GPU or one is found. It returns where
// this program goes on, with the reason if a GPU was asked for.
func handOver(d device) error {
	if d.kind == "cpu" || d.kind == "auto" && noGPU() != "" {
		return nil
	}
	companion, err := findCompanion()
	if err == nil {
		// Without a driver the program would not even start, or end before it can say why.
		if out, probe := exec.Command(companion, "version").CombinedOutput(); probe != nil {
			err = fmt.Errorf("%s does not start: %s", companion, oneLine(strings.TrimSpace(string(out))+": "+probe.Error()))
		}
	}
	if err == nil {
		err = syscall.Exec(companion, append([]string{companion}, os.Args[1:]...), os.Environ())
		err = fmt.Errorf("%s: %w", companion, err)
	}
	if d.kind == "auto" {
		return nil
	}
	return err
}

// findCompanion finds xlstm-cuda beside this program.
func findCompanion() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(self); err == nil {
		self = real
	}
	path := filepath.Join(filepath.Dir(self), companionName)
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return "", fmt.Errorf("a GPU needs the program %s, which is not there (make cuda builds it)", path)
	}
	return path, nil
}

// noGPU says why there is no GPU to hand over to, "" where there may be one.
func noGPU() string {
	for _, path := range []string{"/dev/nvidiactl", "/dev/dxg"} { // dxg: under Windows
		if _, err := os.Stat(path); err == nil {
			if _, err := findCompanion(); err != nil {
				return err.Error()
			}
			return ""
		}
	}
	return "no NVIDIA driver is loaded"
}

func describeGPUs() []deviceDescription { return nil }

// openGPU cannot be reached: handOver has replaced the process, or said why not.
func (a *app) openGPU(*format.File, engineFlags) (kernels.Engine, error) {
	return nil, errors.New("this program has no CUDA engine")
}

// benchGPU cannot be reached either.
func (a *app) benchGPU(*measurement, *format.File, engineFlags) error {
	return errors.New("this program has no CUDA engine")
}

// gpuWanted reports whether an engine for d is to be a GPU's.
func gpuWanted(d device) bool { return d.kind == "cuda" }
