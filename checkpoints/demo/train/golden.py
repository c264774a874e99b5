"""Golden values of the demo model, by the original implementation.

    golden.py CHECKPOINT_DIR BOOKS_VALID.txt OUT_DIR

Runs transformers' xlstm in float32 on the CPU from the bfloat16 weights of
CHECKPOINT_DIR and writes

  golden.safetensors   input_ids I64 [2, 96], logits F32 [2, 96, V], nll F32 [2, 95];
                       ids_long I64 [1, 1500], nll_long F32 [1, 1499]
                       (nll[t] belongs to token t+1; every row begins with token 0,
                       its text is in the metadata: text_0, text_1, text_long)
  perplexity.json      over all of BOOKS_VALID.txt: the file's ids (its lines
                       <|endoftext|> are token 0), cut into windows of 1,023, each
                       read after token 0 from a fresh state
"""

import hashlib
import json
import math
import pathlib
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional as F

PASSAGES = [(2, 0), (0, 100_000)]  # (document, first character), 96 ids each
LONG_PASSAGE = (1, 50_000)  # 1,500 ids
WINDOW = 1024


def load(folder: pathlib.Path):
    model = transformers.xLSTMForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # Float32 throughout, whatever the checkpoint says its own run should use.
    assert model.config.autocast_kernel_dtype == model.config.inference_state_dtype == "float32"
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def passage(tok: Tokenizer, docs: list[str], where: tuple[int, int], length: int) -> tuple[list[int], str]:
    """Token 0, then the first tokens of the paragraph that begins at or after `where`."""
    doc, at = docs[where[0]], where[1]
    if at:
        at = doc.index("\n\n", at) + 2
    ids = tok.encode(doc[at : at + 16 * length], add_special_tokens=False).ids[: length - 1]
    text = tok.decode(ids, skip_special_tokens=False)
    assert doc.startswith(text, at) and tok.encode(text, add_special_tokens=False).ids == ids
    return [0] + ids, text


@torch.no_grad()
def logits_and_nll(model, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(ids, use_cache=False).logits
    # The model is float32; a softmax over the vocabulary in float32 would add errors of 3e-5.
    nll = F.cross_entropy(logits[:, :-1].double().transpose(1, 2), ids[:, 1:], reduction="none")
    return logits, nll.float()


def perplexity(model, ids: list[int]) -> dict:
    total, windows = 0.0, [ids[at : at + WINDOW - 1] for at in range(0, len(ids), WINDOW - 1)]
    full = [w for w in windows if len(w) == WINDOW - 1]
    batches = [full[at : at + 8] for at in range(0, len(full), 8)] + [[w] for w in windows[len(full) :]]
    for batch in batches:
        _, nll = logits_and_nll(model, torch.tensor([[0] + w for w in batch]))
        total += nll.double().sum().item()
    return {"window": WINDOW, "windows": len(windows), "tokens": len(ids),
            "nll": total / len(ids), "perplexity": math.exp(total / len(ids))}  # fmt: skip


def main() -> None:
    folder, books, out = (pathlib.Path(a) for a in sys.argv[1:4])
    out.mkdir(parents=True, exist_ok=True)
    model, tok = load(folder)
    raw = books.read_bytes()
    docs = raw.decode("utf-8").split("\n<|endoftext|>\n")
    short = [passage(tok, docs, where, 96) for where in PASSAGES]
    long_ids, long_text = passage(tok, docs, LONG_PASSAGE, 1500)
    input_ids, ids_long = torch.tensor([ids for ids, _ in short]), torch.tensor([long_ids])
    logits, nll = logits_and_nll(model, input_ids)
    _, nll_long = logits_and_nll(model, ids_long)
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    made_by = f"transformers {transformers.__version__}, torch {torch.__version__}, float32 on the CPU"
    save_file(
        {"input_ids": input_ids, "logits": logits, "nll": nll, "ids_long": ids_long, "nll_long": nll_long},
        out / "golden.safetensors",
        metadata={"made_by": made_by, "model_sha256": weights,
                  "text_0": short[0][1], "text_1": short[1][1], "text_long": long_text},
    )  # fmt: skip
    ids = tok.encode(raw.decode("utf-8"), add_special_tokens=False).ids
    result = {
        "made_by": made_by,
        "model_sha256": weights,
        "file": books.name,
        "file_sha256": hashlib.sha256(raw).hexdigest(),
        "ids_sha256": hashlib.sha256(np.array(ids, dtype="<u2").tobytes()).hexdigest(),
        **perplexity(model, ids),
    }
    (out / "perplexity.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    print("short passages:", nll.mean(1).tolist(), "long:", nll_long.mean().item())


if __name__ == "__main__":
    main()
