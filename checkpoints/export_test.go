package checkpoints

// What tests in package checkpoints_test see of the inside.
var (
	HFConfig   = hfConfig
	YAMLConfig = yamlConfig
	ParseIndex = parseIndex
	DecodeF16  = decodeF16
	DecodeBF16 = decodeBF16
)

// ParseShard lists the names of a safetensors file's tensors and reads every value of each.
func ParseShard(b []byte) ([]string, error) {
	entries, err := parseShard("model.safetensors", &store{data: b})
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		c := converters[e.dtype]
		s := stored{store: e.store, off: e.off, size: e.size, convert: c}
		if err := s.read(make([]float32, e.size/c.size), 0); err != nil {
			return nil, err
		}
	}
	return sortedKeys(entries), nil
}
