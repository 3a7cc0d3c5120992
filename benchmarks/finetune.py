"""A fine-tuning step's time and peak memory beside the plain route, on the same random weights.

    python benchmarks/finetune.py                 # CPU, a medium model
    python benchmarks/finetune.py --device cuda   # the full 3.5-billion-parameter architecture, bf16

The plain route is what one would write without this package: stock transformers with the line that cuts the language
model off taken out, PEFT's LoRA on its attention, and the checkpointing that stock code has (the language model's).
Ours is `EsmFold` with every block checkpointed, with the same LoRA and with LoRTA, and the former with nothing
checkpointed, for where memory is enough. All compute the same loss
(backbone FAPE and distogram), batch 1, no recycles. Every measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import subprocess
import sys
import textwrap
import time
from typing import Any

from predict import FULL, MEDIUM, config, memory, reset_peak

CROPS = {"medium": (64, 128, 192), "full": (128, 256, 384)}
ROUTES = ("plain", "ours, LoRA", "ours, LoRTA", "ours, no checkpoints")
TARGETS = ["query", "key", "value", "attention.output.dense"]
RANK = 8


def connected() -> type:
    """Stock `EsmForProteinFolding` without the line that detaches the language model's features."""
    from transformers.models.esm import modeling_esmfold

    cut = "esm_s = esm_s.detach()"
    source = textwrap.dedent(inspect.getsource(modeling_esmfold.EsmForProteinFolding.forward))
    if cut not in source:
        raise SystemExit("this release of transformers does not detach the features where it did: read its forward()")
    # Its decorators make documentation.
    source = source[source.index("def forward") :]
    names: dict[str, Any] = {}
    exec(source.replace(cut, "pass"), vars(modeling_esmfold) | {}, names)
    return type("Connected", (modeling_esmfold.EsmForProteinFolding,), {"forward": names["forward"]})


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One route, one crop: seconds of the fastest step, and peak memory above and with the weights."""
    import peft
    import torch

    from protfold_peft.adapters import LoRTAConfig
    from protfold_peft.folding.model import EsmFold
    from protfold_peft.training.objective import structure_loss

    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    full, plain = options.size == "full", options.route == "plain"
    with torch.device(device if full else "cpu"):
        torch.set_default_dtype(torch.bfloat16 if full else torch.float32)
        model = (connected() if plain else EsmFold)(config(FULL if full else MEDIUM))
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 * parameter.shape[-1] ** -0.5) if parameter.dim() > 1 else parameter
    if full:
        for name, part in model.named_children():
            part.to(torch.bfloat16 if name == "esm" else torch.float32)
        if not plain:
            model.set_precision(language_model=torch.bfloat16, trunk=torch.bfloat16)
    model.to(device).train()
    checkpointing = {"use_reentrant": False}
    # Frozen, the language model's inputs ask for no gradients, so stock code's own switch would be the reentrant one.
    if "no checkpoints" not in options.route:
        (model.esm if plain else model).gradient_checkpointing_enable(checkpointing)
    adapter: Any
    if options.route == "ours, LoRTA":
        adapter = LoRTAConfig(r=RANK, target_modules=TARGETS, init="orthogonal")
    else:
        # Neither route may adapt modules of the trunk that end alike.
        adapter = peft.LoraConfig(r=RANK, target_modules=r".*esm\.encoder\..*(query|key|value|output\.dense)")
    wrapped = peft.get_peft_model(model, adapter)
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    n = options.crop
    ids = torch.randint(0, 20, (1, n), device=device)
    mask = torch.ones_like(ids)
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": torch.arange(n, device=device)[None],
        "atom_positions": torch.randn(1, n, 37, 3, device=device).cumsum(1),
        "atom_mask": torch.ones(1, n, 37, dtype=torch.bool, device=device),
        "clamped": torch.ones(1, dtype=torch.bool, device=device),
    }
    recycles = {"num_recycles": 0} if plain else {"recycles": 0}

    def step(length: int) -> None:
        short = {name: value[:, :length] if value.dim() > 1 else value for name, value in batch.items()}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=full and plain):
            output = wrapped(short["input_ids"], short["attention_mask"], **recycles)
        structure_loss(output, short, {"fape": 1.0, "distogram": 0.3}).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    step(8)  # what libraries and the optimizer set aside once is no activation
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = memory("VmRSS")
        reset_peak()
    seconds = []
    for _ in range(options.repeats + 1):
        start = time.perf_counter()
        step(n)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else memory("VmHWM")
    return {"seconds": min(seconds[1:]), "activations": max(0, peak - before), "peak": peak}


def run(route: str, crop: int, size: str, options: argparse.Namespace) -> dict[str, float] | None:
    """`measure` in processes of its own; None where it failed, out of memory say."""
    command = [sys.executable, __file__, "--worker", "--route", route, "--crop", str(crop), "--size", size]
    command += ["--device", options.device, "--threads", str(options.threads), "--repeats", str(options.repeats)]
    # As in predict.py: the peak is measured with freed memory given back at once, which costs time.
    frugal = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    results = []
    for changes in ({}, frugal):
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | changes, check=False)
        if done.returncode:
            print(f"{route}, crop {crop} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return None
        results.append(json.loads(done.stdout.splitlines()[-1]))
    return results[1] | {"seconds": results[0]["seconds"]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--crops", type=int, nargs="+", default=None)
    parser.add_argument("--size", choices=("medium", "full"), default=None)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--route", choices=ROUTES, help=argparse.SUPPRESS)
    parser.add_argument("--crop", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options)))
        return
    size = options.size or ("full" if options.device.startswith("cuda") else "medium")
    import torch
    import transformers

    print(f"# {platform.processor() or platform.machine()}, {options.threads} threads, device {options.device}")
    print(f"# torch {torch.__version__}, transformers {transformers.__version__}, {size} model, batch 1, rank {RANK}")
    print(f"{'crop':>5} {'':>20} {'s/step':>8} {'activations':>12} {'peak':>10} {'time':>6} {'act.':>6}")
    for crop in options.crops or CROPS[size]:
        rows = {route: run(route, crop, size, options) for route in ROUTES}
        plain = rows["plain"]
        for route, row in rows.items():
            if row is None:
                continue
            mib = (row["activations"] / 2**20, row["peak"] / 2**20)
            ratios = (row["seconds"] / plain["seconds"], row["activations"] / plain["activations"]) if plain else (0, 0)
            print(
                f"{crop:>5} {route:>20} {row['seconds']:>8.2f} {mib[0]:>8.0f} MiB {mib[1]:>6.0f} MiB "
                f"{ratios[0]:>5.2f}x {ratios[1]:>5.2f}x"
            )


if __name__ == "__main__":
    main()
