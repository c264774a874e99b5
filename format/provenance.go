package format

// Provenance says how a file was made. It has no time, so that the same input gives the same file.
type Provenance struct {
	Program string            `json:"program"`           // name and version of the program that wrote the file
	Source  string            `json:"source"`            // what the checkpoint was called
	Files   []SourceFile      `json:"files,omitempty"`   // what the checkpoint consisted of
	Options map[string]string `json:"options,omitempty"` // how it was converted, beside the recipe: a rotation's seed and the like
}

// SourceFile is one file of a checkpoint.
type SourceFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`             // bytes
	SHA256 string `json:"sha256,omitempty"` // in hexadecimal; empty where it was not computed
}
