"""Trains the demo model by config.yaml.

    train.py DATA_DIR OUT_DIR [section.key=value ...]

DATA_DIR holds what tokenize_books.py wrote. OUT_DIR gets config.json,
generation_config.json, the weights in bfloat16 (the best by validation loss)
and log.jsonl. Needs one NVIDIA GPU; without one it runs, slowly, on the CPU.
With --parts the weights come as files of at most 15 MB, to be concatenated.
"""

import json
import math
import pathlib
import sys
import time

import numpy as np
import torch
import yaml

import model as demo

START = time.time()


class Log:
    def __init__(self, path: pathlib.Path):
        self.file = path.open("w")

    def __call__(self, **row) -> None:
        row = {"t": round(time.time() - START, 1), **row}
        line = json.dumps(row)
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()


def sequences(ids: torch.Tensor, cfg: dict, seed: int):
    """Endless (inputs, targets) batches, [B, T] each. An epoch cuts the stream
    into sequences from a random offset and visits them in random order."""
    d = cfg["data"]
    length, batch, share = d["sequence_length"], d["batch_sequences"], d["begin_share"]
    rng = np.random.default_rng(seed)
    steps = torch.arange(-1, length, device=ids.device)
    epoch, pending = 0, np.empty(0, dtype=np.int64)
    while True:
        while len(pending) < batch:
            offset = int(rng.integers(1, length + 1))
            count = (len(ids) - offset) // length
            pending = np.concatenate([pending, offset + rng.permutation(count) * length])
            epoch += 1
        starts, pending = pending[:batch], pending[batch:]
        begun = torch.from_numpy(rng.random(batch) < share).to(ids.device)
        rows = ids[torch.from_numpy(starts).to(ids.device)[:, None] + steps].long()
        rows[:, 0] = rows[:, 0].masked_fill(begun, 0)
        yield epoch, rows[:, :-1], rows[:, 1:]


def valid_windows(ids: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets [N, window]: token 0, then window-1 tokens of text, each
    predicted once. Positions that predict nothing have target -1."""
    text = ids[ids != 0].long()
    n = -(-len(text) // (window - 1))
    padded = torch.full((n * (window - 1),), -1, dtype=torch.long, device=ids.device)
    padded[: len(text)] = text
    targets = padded.view(n, window - 1)
    nothing = targets.new_full((n, 1), -1)
    targets = torch.cat([targets, nothing], dim=1)
    inputs = torch.cat([torch.zeros_like(nothing), targets[:, :-1].clamp(min=0)], dim=1)
    return inputs, targets


@torch.no_grad()
def evaluate(model, windows, batch: int, autocast: bool) -> float:
    """Mean negative log likelihood of a text token, in nats."""
    inputs, targets = windows
    model.eval()
    total, count = 0.0, 0
    for at in range(0, len(inputs), batch):
        x, y = inputs[at : at + batch], targets[at : at + batch]
        n = int((y >= 0).sum())
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            hidden, _ = model.backbone(model.embedding(x))
            total += demo.head_loss(model, hidden, y).item() * n
        count += n
    model.train()
    return total / count


def lr_at(step: int, total: int, o: dict) -> float:
    warm = min(1.0, (step + 1) / o["warmup_steps"])
    progress = min(1.0, step / total)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return o["lr"] * warm * (o["lr_final_ratio"] + (1 - o["lr_final_ratio"]) * cosine)


class Trainer:
    def __init__(self, cfg: dict, data: pathlib.Path, out: pathlib.Path, parts: bool):
        self.cfg, self.out, self.part_bytes = cfg, out, 15_000_000 if parts else 0
        self.log = Log(out / "log.jsonl")
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        torch.set_float32_matmul_precision("high")
        o = cfg["optimizer"]
        torch.manual_seed(o["seed"])
        self.vocab = cfg["tokenizer"]["vocab_size"]
        load = lambda name: torch.from_numpy(np.fromfile(data / name, dtype="<u2").astype(np.int32)).to(self.device)
        self.train_ids = load("train.bin")
        self.windows = valid_windows(load("valid.bin"), cfg["schedule"]["valid_window"])
        self.log(
            event="start",
            torch=torch.__version__,
            device=torch.cuda.get_device_name() if self.cuda else "cpu",
            train_tokens=len(self.train_ids),
            valid_tokens=int((self.windows[1] >= 0).sum()),
        )
        kernel = demo.pick_kernel(cfg, self.log) if self.cuda else demo.NATIVE_KERNEL
        self.model = demo.build(cfg, self.vocab, kernel, "bfloat16" if self.cuda else "float32").to(self.device)
        demo.init(self.model, cfg, torch.Generator(self.device).manual_seed(o["seed"]))
        demo.add_dropout(self.model, o["dropout"])
        self.opt = torch.optim.AdamW(
            demo.parameter_groups(self.model, o["weight_decay"]),
            lr=o["lr"], betas=tuple(o["betas"]), eps=1e-8, fused=self.cuda,
        )  # fmt: skip
        self.log(event="model", kernel=kernel, parameters=sum(p.numel() for p in self.model.parameters()))
        self.best, self.saved_at = (math.inf, 0, None), time.time()
        self.compile()

    def compile(self) -> None:
        self.blocks = list(self.model.backbone.blocks)
        self.head = demo.head_loss
        if not self.cuda:
            return
        self.blocks = [torch.compile(b) for b in self.blocks]
        self.head = torch.compile(demo.head_loss)

    def check_compiled(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Gives up on the compiler where it fails, rather than on the training."""
        try:
            self.loss(x, y).backward()
        except Exception as e:
            self.log(event="eager", error=repr(e)[:500])
            self.blocks, self.head = list(self.model.backbone.blocks), demo.head_loss
        self.opt.zero_grad(set_to_none=True)
        self.log(event="compiled")

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda):
            h = self.model.embedding(x)
            for block in self.blocks:
                h, _ = block(h, None)
            return self.head(self.model, self.model.backbone.out_norm(h), y)

    def step(self, x: torch.Tensor, y: torch.Tensor, lr: float) -> torch.Tensor:
        for group in self.opt.param_groups:
            group["lr"] = lr
        loss = self.loss(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg["optimizer"]["grad_clip"])
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        return loss.detach()

    def sync(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.time()

    def affordable_steps(self, step: int, seconds_a_step: float) -> int:
        """How many steps in all fit into the budget, `step` of them done."""
        s, d = self.cfg["schedule"], self.cfg["data"]
        left = s["budget_s"] - s["reserve_s"] - (time.time() - START)
        most = int(s["max_tokens"] / (d["sequence_length"] * d["batch_sequences"]))
        return min(most, step + max(1, int(left / seconds_a_step)))

    def run(self) -> None:
        s, o = self.cfg["schedule"], self.cfg["optimizer"]
        fixed = s["steps"] is not None
        total = int(s["steps"]) if fixed else 10**9
        tokens = self.cfg["data"]["sequence_length"] * self.cfg["data"]["batch_sequences"]
        # Before this step the first kernels compile; throughput is measured from it.
        warm, measured = 10, 60
        losses, since, mark = [], 0, None
        step = 0
        for epoch, x, y in sequences(self.train_ids, self.cfg, o["seed"]):
            if step == total:
                break
            if step == warm:
                since, mark = step, self.sync()
            if step == 0:
                self.check_compiled(x, y)
            losses.append(self.step(x, y, lr_at(step, total, o)))
            step += 1
            replan = not fixed and (step == measured or (step > measured and step % 250 == 0))
            if step % 50 == 0 or replan or step == total:
                now = self.sync()
                pace = (now - mark) / (step - since) if mark else math.inf
                mean = torch.stack(losses).mean().item()
                if not math.isfinite(mean):
                    raise SystemExit(f"loss is {mean} at step {step}")
                self.log(event="step", step=step, epoch=epoch, loss=round(mean, 4),
                         lr=self.opt.param_groups[0]["lr"], tokens_s=int(tokens / pace))  # fmt: skip
                losses = []
                if replan:
                    fit = self.affordable_steps(step, pace)
                    if step == measured or fit < total * 0.995:
                        total = fit
                        self.log(event="plan", steps=total, tokens=total * tokens)
            if step % s["valid_every"] == 0 or step == total:
                began = self.sync()
                self.validate(step, step == total)
                if mark:  # evaluations are no part of the pace
                    mark += self.sync() - began
        self.finish(step, tokens)

    def validate(self, step: int, last: bool) -> None:
        nll = evaluate(self.model, self.windows, 32, self.cuda)
        self.log(event="valid", step=step, nll=round(nll, 4), perplexity=round(math.exp(nll), 3))
        if nll < self.best[0]:
            self.best = (nll, step, demo.hf_state(self.model))
            due = time.time() - self.saved_at > self.cfg["schedule"]["save_every_s"]
            if due and not last:
                demo.save_checkpoint(self.best[2], self.out, self.part_bytes)
                self.saved_at = time.time()

    def finish(self, steps: int, tokens: int) -> None:
        demo.save_checkpoint(self.best[2], self.out, self.part_bytes)
        demo.save_configs(self.cfg, self.vocab, self.out)
        names = dict(self.model.named_parameters())
        for name, value in self.best[2].items():
            name = name.replace("backbone.embeddings.", "embedding.")
            names[name].data.copy_(value.float())
        nll = evaluate(self.model, self.windows, 32, self.cuda)
        self.log(event="done", steps=steps, tokens=steps * tokens, best_step=self.best[1],
                 nll=round(self.best[0], 4), nll_bf16=round(nll, 4), perplexity_bf16=round(math.exp(nll), 3),
                 memory_gb=round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.cuda else None)  # fmt: skip


def main() -> None:
    args = [a for a in sys.argv[1:] if a != "--parts"]
    cfg = yaml.safe_load(pathlib.Path(__file__).with_name("config.yaml").read_text())
    for override in args[2:]:
        path, value = override.split("=", 1)
        section, key = path.split(".")
        if key not in cfg[section]:
            raise SystemExit(f"config.yaml has no {path}")
        cfg[section][key] = yaml.safe_load(value)
    out = pathlib.Path(args[1])
    out.mkdir(parents=True, exist_ok=True)
    Trainer(cfg, pathlib.Path(args[0]), out, "--parts" in sys.argv).run()


if __name__ == "__main__":
    main()
