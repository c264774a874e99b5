#!/usr/bin/env bash
# From a checkpoint to text, on the model in the repository: convert it, check that the files still compute what the checkpoint
# does, and let them write. Usage: scripts/demo.sh path/to/xlstm
set -euo pipefail
xlstm=$(realpath "$1")
cd "$(dirname "$0")/.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

step() { # what is done, then the command
    printf '\n== %s\n' "$1"
    shift
    printf '$ xlstm'
    for word in "$@"; do
        case $word in *' '*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    "$xlstm" "$@"
}

step "Convert the checkpoint to one file, in float16" convert checkpoints/demo -o "$tmp/fp16.xlstm" --recipe fp16
step "Convert it to 8 bits a weight" convert checkpoints/demo -o "$tmp/int8.xlstm" --recipe int8
step "Quantize it to 4 bits a weight, rounded against what occurs in a text" \
    quantize checkpoints/demo -o "$tmp/int4.xlstm" --recipe int4 --calibrate testdata/books-calibrate.txt --samples 16
step "Check every byte of a file" verify "$tmp/fp16.xlstm"
step "What is in a file" inspect "$tmp/int4.xlstm"
step "Hold all three against the original, computed a second way, on a passage of a book" \
    perplexity "$tmp/fp16.xlstm" "$tmp/int8.xlstm" "$tmp/int4.xlstm" -f testdata/books-valid.txt --limit 1024 --against checkpoints/demo
step "Let the 4-bit file write" run "$tmp/int4.xlstm" -p "It was a dark and" -n 80 --seed 7
step "The same model, from inside the program" run demo -p "It was a dark and" -n 80 --seed 7
