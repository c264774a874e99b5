//go:build cuda

package main

import (
	"fmt"

	"xlstm/format"
	"xlstm/kernels"
	"xlstm/kernels/cuda"
	"xlstm/quantize"
)

// handOver has nothing to do: this is the program that has the CUDA engine.
func handOver(device) error { return nil }

// noGPU is never asked in vain: without a GPU this program does not start.
func noGPU() string { return "" }

func describeGPUs() []deviceDescription {
	devices, err := cuda.Devices()
	if err != nil {
		return []deviceDescription{{Device: "cuda", Name: "cannot be listed", Detail: oneLine(err.Error())}}
	}
	var all []deviceDescription
	for _, d := range devices {
		all = append(all, deviceDescription{Device: fmt.Sprintf("cuda:%d", d.Index), Name: d.Name, Free: d.Free, Total: d.Total,
			Detail: fmt.Sprintf("compute capability %d.%d, %d multiprocessors, %s of %s free", d.Major, d.Minor, d.Multiprocessors, size(d.Free), size(d.Total))})
	}
	return all
}

// gpuOptions are the options of an engine that the flags ask for.
func (a *app) gpuOptions(e engineFlags) (cuda.Options, error) {
	o := cuda.Options{Device: e.where.index}
	var err error
	if o.State, err = cuda.ParseStateType(e.state); err != nil {
		return o, err
	}
	if o.Prompts, err = cuda.ParsePromptMath(e.promptMath); err != nil {
		return o, err
	}
	o.Progress = a.lateBar("loading", bytesUnit)
	return o, nil
}

// openGPU starts the engine of a GPU.
func (a *app) openGPU(f *format.File, e engineFlags) (kernels.Engine, error) {
	o, err := a.gpuOptions(e)
	if err != nil {
		return nil, err
	}
	engine, err := cuda.Open(f, o)
	a.closeBars()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path(), err)
	}
	return engine, nil
}

// benchGPU makes a GPU's engine of f, or of a synthetic model where f is nil.
func (a *app) benchGPU(m *measurement, f *format.File, e engineFlags) error {
	o, err := a.gpuOptions(e)
	if err != nil {
		return err
	}
	var engine *cuda.Engine
	if f != nil {
		engine, err = cuda.Open(f, o)
	} else {
		var recipe *quantize.Recipe
		if recipe, err = quantize.ParseRecipe(m.flags.recipe); err != nil {
			return err
		}
		engine, err = cuda.Synthetic(shapes[m.flags.synthetic](), recipe.Encoding, o)
	}
	a.closeBars()
	if err != nil {
		return fmt.Errorf("%s: %w", m.report.Model, err)
	}
	m.report.Device, m.report.Limit = engine.Name(), "copying"
	m.engine, m.bandwidth = engine, engine.CopyRate
	return nil
}

// gpuWanted reports whether an engine for d is to be a GPU's.
func gpuWanted(d device) bool { return d.kind != "cpu" }
