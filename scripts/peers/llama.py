"""Times llama.cpp (through llama-cpp-python) on a Llama 2 7B of random weights, as a peer of `xlstm bench --synthetic 7b`.

    python -m venv venv && venv/bin/pip install numpy gguf==0.19.0
    venv/bin/pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36
    venv/bin/python scripts/peers/llama.py q8_0 --dir /tmp/peer --threads 2

Formats: f16, q8_0, q4_0. Random weights say nothing about quality and, all being read, everything about speed. The file is
written to --dir (13.5, 7.2 or 3.8 GB) and removed afterwards. Prints one line of JSON.
"""
import argparse, json, os, statistics, time

import numpy as np
import gguf

D, LAYERS, FF, HEADS, VOCAB = 4096, 32, 11008, 32, 32000


def random_tensor(rng, rows, cols, fmt):
    """rows x cols random weights in a format: bytes and the format's type."""
    if fmt == "f16":
        return (rng.standard_normal((rows, cols), dtype=np.float32) / np.sqrt(cols)).astype(np.float16), None
    blocks = rows * cols // 32
    scale = np.full((blocks, 1), 1 / np.sqrt(cols) / (64 if fmt == "q8_0" else 4), np.float16).view(np.uint8)
    values = rng.integers(0, 256, (blocks, 32 if fmt == "q8_0" else 16), dtype=np.uint8)
    raw = np.concatenate([scale, values], axis=1).reshape(rows, -1)
    return raw, gguf.GGMLQuantizationType.Q8_0 if fmt == "q8_0" else gguf.GGMLQuantizationType.Q4_0


def write_model(path, fmt):
    rng = np.random.default_rng(1)
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(LAYERS)
    w.add_context_length(4096)
    w.add_embedding_length(D)
    w.add_feed_forward_length(FF)
    w.add_head_count(HEADS)
    w.add_head_count_kv(HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(D // HEADS)
    w.add_vocab_size(VOCAB)
    w.add_tokenizer_model("no_vocab")
    shapes = {"attn_q": (D, D), "attn_k": (D, D), "attn_v": (D, D), "attn_output": (D, D),
              "ffn_gate": (FF, D), "ffn_up": (FF, D), "ffn_down": (D, FF)}
    made = {name: random_tensor(rng, *shape, fmt) for name, shape in shapes.items()}
    ones = np.ones(D, np.float32)
    w.add_tensor("token_embd.weight", *random_args(random_tensor(rng, VOCAB, D, fmt)))
    for i in range(LAYERS):
        w.add_tensor(f"blk.{i}.attn_norm.weight", ones)
        w.add_tensor(f"blk.{i}.ffn_norm.weight", ones)
        for name, tensor in made.items():
            w.add_tensor(f"blk.{i}.{name}.weight", *random_args(tensor))
    w.add_tensor("output_norm.weight", ones)
    w.add_tensor("output.weight", *random_args(random_tensor(rng, VOCAB, D, fmt)))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def random_args(tensor):
    data, kind = tensor
    return (data,) if kind is None else (data, None, kind)


def measure(path, threads, prompt, tokens, rounds):
    import llama_cpp as ll
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
    params = ll.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 1024, 512, 512
    params.n_threads = params.n_threads_batch = threads
    context = ll.llama_init_from_model(model, params)
    memory = ll.llama_get_memory(context)

    def decode(ids):
        array = (ll.llama_token * len(ids))(*ids)
        if ll.llama_decode(context, ll.llama_batch_get_one(array, len(ids))) != 0:
            raise SystemExit("llama_decode failed")
        ll.llama_synchronize(context)

    decode([1, 2, 3])
    prompts, rates = [], []
    for _ in range(rounds):
        ll.llama_memory_clear(memory, True)
        start = time.perf_counter()
        decode([(7 * i) % VOCAB for i in range(prompt)])
        prompts.append(prompt / (time.perf_counter() - start))
        ll.llama_memory_clear(memory, True)
        decode([1])
        start = time.perf_counter()
        for i in range(tokens):
            decode([(13 * i) % VOCAB])
        rates.append(tokens / (time.perf_counter() - start))
    return statistics.median(prompts), statistics.median(rates)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("format", choices=["f16", "q8_0", "q4_0"])
    p.add_argument("--dir", default=".")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--prompt", type=int, default=512)
    p.add_argument("--tokens", type=int, default=12)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--keep", action="store_true", help="leave the file, and use it if it is there")
    a = p.parse_args()
    os.makedirs(a.dir, exist_ok=True)
    path = os.path.join(a.dir, f"llama7b-{a.format}.gguf")
    if not (a.keep and os.path.exists(path)):
        write_model(path, a.format)
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as f:  # into the page cache
            while f.read(1 << 24):
                pass
        prompt, rate = measure(path, a.threads, a.prompt, a.tokens, a.rounds)
    finally:
        if not a.keep:
            os.remove(path)
    # The embedding is looked up, not read.
    read = size * (1 - VOCAB * D / (LAYERS * (4 * D * D + 3 * D * FF) + 2 * VOCAB * D))
    print(json.dumps({"format": a.format, "prompt_tokens_s": round(prompt, 3), "tokens_s": round(rate, 3),
                      "gb_a_token": round(read / 1e9, 3), "gb_s": round(rate * read / 1e9, 2)}))


if __name__ == "__main__":
    main()
