package main

import (
	"fmt"
	goruntime "runtime"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/klauspost/cpuid/v2"
	"github.com/spf13/cobra"

	"xlstm/kernels/cpu/simd"
)

// device is where an engine runs.
type device struct {
	kind  string // auto, cpu or cuda
	index int    // of a CUDA device
}

// parseDevice reads auto, cpu, cuda or cuda:N.
func parseDevice(s string) (device, error) {
	switch s {
	case "auto", "cpu", "cuda":
		return device{kind: s}, nil
	}
	if number, ok := strings.CutPrefix(s, "cuda:"); ok {
		if n, err := strconv.Atoi(number); err == nil && n >= 0 && n < 1024 {
			return device{kind: "cuda", index: n}, nil
		}
	}
	return device{}, fmt.Errorf("unknown device %q, expected auto, cpu, cuda or cuda:N", s)
}

func newDevices(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "devices",
		Short: "List the devices that can run models",
		Long: `List the devices that can run models, by the names that --device takes. GPUs are run by the program xlstm-cuda, which lies beside
this one where it is installed; --device auto takes the first GPU there is, and else the CPU.`,
		Example: `  xlstm devices
  xlstm run model.xlstm --device cuda:0 -p "Once upon a time"`,
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			handOver(device{kind: "auto"})
			all := append([]deviceDescription{describeCPU()}, describeGPUs()...)
			if asJSON {
				return a.printJSON(all)
			}
			w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
			for _, d := range all {
				fmt.Fprintf(w, "%s\t%s\t%s\n", d.Device, oneLine(d.Name), d.Detail)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			if reason := noGPU(); reason != "" {
				a.logf("no GPU: %s", reason)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the devices as JSON")
	return cmd
}

// deviceDescription is a line of devices.
type deviceDescription struct {
	Device string `json:"device"`
	Name   string `json:"name"`
	Detail string `json:"detail"`
	Free   int64  `json:"free_bytes,omitempty"` // of a GPU
	Total  int64  `json:"total_bytes,omitempty"`
}

func describeCPU() deviceDescription {
	return deviceDescription{Device: "cpu", Name: cpuid.CPU.BrandName,
		Detail: fmt.Sprintf("%d threads, %s kernels", goruntime.GOMAXPROCS(0), simd.Active().Name())}
}
