// Package quantize holds the number formats that weights are stored in, and the ways that weights get into them: plain
// rounding, scale search for least squared error, calibration with error compensation (GPTQ), and rotation.
// docs/QUANTIZATION.md says what each of them costs and gains.
package quantize
