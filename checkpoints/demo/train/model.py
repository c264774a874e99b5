"""The demo's network: the original xLSTMLarge, its init, its kernels, its export."""

import json
import math
import pathlib

import torch
from torch import nn
from torch.nn import functional as F

from mlstm_kernels.torch import get_mlstm_kernel
from safetensors.torch import save_file
from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

# (kernel, chunk size). The first Triton kernel that works and agrees is taken.
TRITON_KERNELS = [("chunkwise--triton_xl_chunk", 128), ("chunkwise--triton_limit_chunk", 64)]
NATIVE_KERNEL = ("chunkwise--native_custbw", 64)
REFERENCE_KERNEL = ("chunkwise--native_autograd", 64)


def build(cfg: dict, vocab_size: int, kernel: tuple[str, int], kernel_dtype: str) -> xLSTMLarge:
    """An xLSTMLarge that computes its memory cells with the given kernel."""
    m = cfg["model"]
    keys = (
        "embedding_dim num_blocks num_heads qk_dim_factor v_dim_factor ffn_proj_factor "
        "ffn_round_up_to_multiple_of gate_soft_cap output_logit_soft_cap eps norm_eps"
    ).split()
    model = xLSTMLarge(
        xLSTMLargeConfig(
            vocab_size=vocab_size,
            chunkwise_kernel=kernel[0],
            chunk_size=kernel[1],
            sequence_kernel="native_sequence__native",
            step_kernel="native",
            mode="train",
            return_last_states=False,
            autocast_kernel_dtype=kernel_dtype,
            weight_mode="single",
            **{k: m[k] for k in keys},
        )
    )
    for block in model.backbone.blocks:
        _stateless(block.mlstm_layer.mlstm_backend)
    return model


def _stateless(backend: nn.Module) -> None:
    """The layer wants (h, states) of its backend, which without last states gives
    h alone. The compiler is kept out: the kernels are compiled already."""
    forward = backend.forward
    backend.forward = torch.compiler.disable(lambda **inputs: (forward(**inputs), None))


@torch.no_grad()
def init(model: xLSTMLarge, cfg: dict, generator: torch.Generator) -> None:
    """The 7B's init (arXiv 2503.13427): small init for what reads the residual
    stream, Wang's for what writes to it, gates that depend on nothing but their
    biases at first: closed to input, slow to forget."""
    m = cfg["model"]
    dim, blocks = m["embedding_dim"], m["num_blocks"]
    small = math.sqrt(2 / (5 * dim))
    for name, p in model.named_parameters():
        if name.endswith("gate_preact.weight") and "ogate" not in name:
            p.zero_()
        elif name.endswith("igate_preact.bias"):
            p.fill_(m["igate_bias_init"])
        elif name.endswith("fgate_preact.bias"):
            p.copy_(torch.linspace(*m["fgate_bias_init"], p.numel()))
        elif name.endswith(("out_proj.weight", "proj_down.weight")):
            p.normal_(0, 2 / (blocks * math.sqrt(p.shape[1])), generator=generator)
        elif p.ndim == 2:
            p.normal_(0, small, generator=generator)
        else:
            assert "norm" in name, name
            p.fill_(1)


def add_dropout(model: xLSTMLarge, p: float) -> None:
    """Drops elements of the embeddings and of what blocks add, in training mode."""
    if p == 0:
        return
    drop = lambda module, inputs, out: F.dropout(out, p, module.training)
    model.embedding.register_forward_hook(drop)
    for block in model.backbone.blocks:
        block.mlstm_layer.out_proj.register_forward_hook(drop)
        block.ffn.proj_down.register_forward_hook(drop)


def parameter_groups(model: xLSTMLarge, weight_decay: float) -> list[dict]:
    decayed, plain = [], []
    for name, p in model.named_parameters():
        gate = "igate_preact" in name or "fgate_preact" in name
        (decayed if p.ndim == 2 and not gate else plain).append(p)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def head_loss(model: xLSTMLarge, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy a token, the cap and the softmax in float32; targets < 0 count not."""
    logits = model.lm_head(hidden).float()
    cap = model.config.output_logit_soft_cap
    logits = cap * torch.tanh(logits / cap)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


# ---- kernels ----


def _cell_inputs(batch: int, heads: int, dk: int, dv: int, length: int):
    g = torch.Generator("cuda").manual_seed(7)
    r = lambda *s: torch.randn(batch, heads, length, *s, device="cuda", generator=g)
    return [r(dk), r(dk), r(dv), r() - 2, r() + 4], r(dv)


def _run_cell(kernel: tuple[str, int], dtype: torch.dtype, inputs, grad):
    """Output and input gradients of a cell with the per-head norm that follows it.
    The norm belongs to it: all kernels but the reference leave out the gradient of
    the denominator, which the norm, blind to scale, cancels."""
    xs = [x.clone().requires_grad_() for x in inputs]
    h = get_mlstm_kernel(kernel[0])(
        *xs, return_last_states=False, eps=1e-6, chunk_size=kernel[1], autocast_kernel_dtype=dtype
    )
    y = F.layer_norm(h.float(), h.shape[-1:], eps=1e-6)
    y.backward(grad)
    return [y.detach()] + [x.grad.float() for x in xs]


def pick_kernel(cfg: dict, log) -> tuple[str, int]:
    """The kernel that the config names or, for auto, the first Triton kernel that
    agrees with the reference at this model's shapes; the native one where none does."""
    if cfg["schedule"]["kernel"] == "native":
        return NATIVE_KERNEL
    m = cfg["model"]
    dk = int(m["embedding_dim"] * m["qk_dim_factor"]) // m["num_heads"]
    dv = int(m["embedding_dim"] * m["v_dim_factor"]) // m["num_heads"]
    inputs, grad = _cell_inputs(2, m["num_heads"], dk, dv, 512)
    inputs = [x.bfloat16().float() for x in inputs]
    want = _run_cell(REFERENCE_KERNEL, torch.float32, inputs, grad)
    for kernel in TRITON_KERNELS:
        try:
            got = _run_cell(kernel, torch.bfloat16, inputs, grad)
        except Exception as e:  # a kernel that does not build here is passed over
            log(event="kernel", kernel=kernel, error=repr(e)[:300])
            continue
        errors = [((a - b).norm() / b.norm()).item() for a, b in zip(got, want)]
        log(event="kernel", kernel=kernel, relative_errors=errors)
        if max(errors) < 0.05:
            return kernel
    return NATIVE_KERNEL


# ---- export ----


def hf_state(model: xLSTMLarge) -> dict[str, torch.Tensor]:
    """The parameters in bfloat16 under the names of transformers' xlstm."""
    state = {}
    for name, p in model.named_parameters():
        if name == "embedding.weight":
            name = "backbone.embeddings.weight"
        state[name] = p.detach().to("cpu", torch.bfloat16).contiguous()
    return state


def save_checkpoint(state: dict[str, torch.Tensor], folder: pathlib.Path, part_bytes: int = 0) -> None:
    """Writes model.safetensors, or model.safetensors.{0,1,...} of at most
    part_bytes each, to be concatenated. A file is replaced only when whole."""
    tmp = folder / "model.tmp"
    save_file(state, tmp, metadata={"format": "pt"})
    raw = tmp.read_bytes()
    tmp.unlink()
    step = part_bytes or len(raw)
    for i, at in enumerate(range(0, len(raw), step)):
        name = f"model.safetensors.{i}" if part_bytes else "model.safetensors"
        part = folder / "part.tmp"
        part.write_bytes(raw[at : at + step])
        part.rename(folder / name)


def hf_config(cfg: dict, vocab_size: int) -> dict:
    m = cfg["model"]
    return {
        "architectures": ["xLSTMForCausalLM"],
        "model_type": "xlstm",
        "vocab_size": vocab_size,
        "embedding_dim": m["embedding_dim"],
        "hidden_size": m["embedding_dim"],
        "num_blocks": m["num_blocks"],
        "num_hidden_layers": m["num_blocks"],
        "num_heads": m["num_heads"],
        "use_bias": False,
        "norm_eps": m["norm_eps"],
        "norm_reduction_force_float32": True,
        "add_out_norm": True,
        "qk_dim_factor": m["qk_dim_factor"],
        "v_dim_factor": m["v_dim_factor"],
        "chunk_size": 64,
        "eps": m["eps"],
        "ffn_proj_factor": m["ffn_proj_factor"],
        "ffn_round_up_to_multiple_of": m["ffn_round_up_to_multiple_of"],
        "gate_soft_cap": m["gate_soft_cap"],
        "output_logit_soft_cap": m["output_logit_soft_cap"],
        "weight_mode": "single",
        "tie_word_embeddings": False,
        "chunkwise_kernel": "chunkwise--native_autograd",
        "sequence_kernel": "native_sequence__native",
        "step_kernel": "native",
        "mode": "inference",
        "return_last_states": True,
        "autocast_kernel_dtype": "float32",
        "inference_state_dtype": "float32",
        "force_bos_token_insert": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def save_configs(cfg: dict, vocab_size: int, folder: pathlib.Path) -> None:
    generation = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "do_sample": True}
    for name, value in (("config.json", hf_config(cfg, vocab_size)), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
