package format

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// cause drops the operation and the path that a file system's error repeats.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	var l *os.LinkError
	if errors.As(err, &l) {
		return l.Err
	}
	return err
}

func describeMode(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return m.Type().String()
}

// ErrNoSpace is that the disk has less free space than a file needs.
var ErrNoSpace = errors.New("not enough free space")

func noSpace(need, free int64) error {
	return fmt.Errorf("%w: the file needs %d bytes, the disk has %d", ErrNoSpace, need, free)
}
