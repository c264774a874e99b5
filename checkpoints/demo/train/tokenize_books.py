"""Trains the demo's tokenizer and encodes the texts with it.

    tokenize_books.py TRAIN.txt[.gz] VALID.txt OUT_DIR

writes OUT_DIR/tokenizer.json and OUT_DIR/{train,valid}.bin: little-endian
uint16 ids, every document begun with the end-of-text token (id 0). Documents
are separated in the texts by a line that holds the end-of-text token alone.
"""

import gzip
import pathlib
import sys

import numpy as np
import yaml
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers


def read_documents(path: pathlib.Path, separator: str) -> list[str]:
    raw = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
    docs = raw.decode("utf-8").split(f"\n{separator}\n")
    return [d for d in docs if d.strip()]


def train_tokenizer(docs: list[str], cfg: dict) -> Tokenizer:
    """A byte-level BPE with the conventions of GPT-NeoX."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=cfg["vocab_size"],
        min_frequency=cfg["min_frequency"],
        special_tokens=[cfg["end_of_text"]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(docs, trainer)
    assert tok.get_vocab_size() == cfg["vocab_size"]
    assert tok.token_to_id(cfg["end_of_text"]) == 0
    return tok


def encode(tok: Tokenizer, docs: list[str]) -> np.ndarray:
    ids: list[int] = []
    for doc in docs:
        ids.append(0)
        ids.extend(tok.encode(doc, add_special_tokens=False).ids)
    return np.array(ids, dtype="<u2")


def main() -> None:
    train_path, valid_path, out = (pathlib.Path(a) for a in sys.argv[1:4])
    cfg = yaml.safe_load(pathlib.Path(__file__).with_name("config.yaml").read_text())["tokenizer"]
    out.mkdir(parents=True, exist_ok=True)
    train_docs = read_documents(train_path, cfg["end_of_text"])
    tok = train_tokenizer(train_docs, cfg)
    tok.save(str(out / "tokenizer.json"), pretty=False)
    for name, docs in (("train", train_docs), ("valid", read_documents(valid_path, cfg["end_of_text"]))):
        ids = encode(tok, docs)
        ids.tofile(out / f"{name}.bin")
        size = sum(len(d.encode()) for d in docs)
        print(f"{name}: {len(docs)} documents, {size} bytes, {len(ids)} tokens, {size / len(ids):.3f} bytes a token")


if __name__ == "__main__":
    main()
