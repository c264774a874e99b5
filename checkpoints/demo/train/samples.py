"""Prints the model card's samples: transformers on the CPU, float32, uncurated.

    samples.py CHECKPOINT_DIR

Every sample begins with token 0 and the prompt, and is drawn token by token at
temperature 0.8 from the 0.95 nucleus, with the seed that its heading names.
"""

import pathlib
import sys

import torch
import transformers
from tokenizers import Tokenizer

TEMPERATURE, TOP_P, TOKENS = 0.8, 0.95, 160
SAMPLES = [
    (1, ""),
    (2, "CHAPTER I\n\n"),
    (3, "It was a dark and stormy night, and"),
    (4, '"My dear Watson," said'),
    (5, "The old man sat down by the fire and began his story."),
]


def draw(logits: torch.Tensor, generator: torch.Generator) -> int:
    p, order = torch.softmax(logits.double() / TEMPERATURE, -1).sort(descending=True)
    p[p.cumsum(0) - p >= TOP_P] = 0
    return int(order[torch.multinomial(p, 1, generator=generator)])


@torch.no_grad()
def sample(model, tok: Tokenizer, seed: int, prompt: str) -> str:
    generator = torch.Generator().manual_seed(seed)
    ids = [0] + tok.encode(prompt, add_special_tokens=False).ids
    start, cache = len(ids), None
    feed = torch.tensor([ids])
    while len(ids) < start + TOKENS:
        out = model(feed, cache_params=cache, use_cache=True)
        cache = out.cache_params
        ids.append(draw(out.logits[0, -1], generator))
        if ids[-1] == 0:
            break
        feed = torch.tensor([ids[-1:]])
    return tok.decode(ids[start:], skip_special_tokens=False)


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    model = transformers.xLSTMForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for seed, prompt in SAMPLES:
        shown = repr(prompt)[1:-1] if prompt else "none"
        text = sample(model, tok, seed, prompt)
        print(f"Seed {seed}, prompt: `{shown}`\n")
        print("\n".join("> " + line if line else ">" for line in (prompt + text).split("\n")), end="\n\n")


if __name__ == "__main__":
    main()
