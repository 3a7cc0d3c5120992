"""Inference speed and peak memory of `EsmFold` beside stock transformers, on the same random weights.

    python benchmarks/predict.py                 # CPU, a medium model
    python benchmarks/predict.py --device cuda   # also the full 3.5-billion-parameter architecture in bf16

Every measurement runs in a process of its own, so that its peak memory is its own. Stock runs at its best setting: the
fastest (for speed) and the leanest (for memory) of the chunk sizes given. The last columns are ratios from this run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LENGTHS = (64, 128, 256)
STOCK_CHUNKS = ("none", "64", "16")

# Trunk of ESMFold's own widths with fewer blocks, on an ESM-2 the size of its 35M model.
MEDIUM = {"hidden": 480, "layers": 12, "heads": 20, "blocks": 4}
FULL = {"hidden": 2560, "layers": 36, "heads": 40, "blocks": 48}


def config(size: dict[str, int]) -> Any:
    """ESMFold's configuration at a size."""
    from transformers import EsmConfig
    from transformers.models.esm.configuration_esm import get_default_vocab_list

    return EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        intermediate_size=4 * size["hidden"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        layer_norm_eps=1e-5,
        token_dropout=True,
        is_folding_model=True,
        vocab_list=list(get_default_vocab_list()),
        esmfold_config={"fp16_esm": False, "trunk": {"num_blocks": size["blocks"]}},
    )


def memory(field: str) -> int:
    """Bytes of resident memory of this process: now (`VmRSS`) or at most since the last reset (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads memory from /proc: run it on Linux")


def reset_peak() -> None:
    """Start `VmHWM` anew, so that building the model does not count."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One model, one length: seconds of the fastest pass, and peak memory above and with the weights."""
    import torch
    from transformers.models.esm.modeling_esmfold import EsmForProteinFolding

    from protfold_peft.folding.model import EsmFold

    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    full = options.size == "full"
    kind = EsmFold if options.who == "ours" else EsmForProteinFolding
    with torch.device(device if full else "cpu"):
        torch.set_default_dtype(torch.bfloat16 if full else torch.float32)
        model = kind(config(FULL if full else MEDIUM)).eval()
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5) if parameter.dim() > 1 else parameter
    if full:
        # Stock's best: half-precision language model, bf16 trunk by autocast below; ours by its own switch.
        for name, part in model.named_children():
            part.to(torch.bfloat16 if name == "esm" else torch.float32)
    model.to(device)
    if options.who == "ours" and full:
        model.set_precision(language_model=torch.bfloat16, trunk=torch.bfloat16)
    model.trunk.chunk_size = None if options.chunk == "none" else int(options.chunk)
    ids = torch.randint(0, 20, (1, options.length), device=device)
    recycles = {"recycles": 0} if options.who == "ours" else {"num_recycles": 0}

    with torch.no_grad():
        model(ids[:, :8], **recycles)  # what libraries set aside once is no activation
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = memory("VmRSS")
        reset_peak()
    seconds = []
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=full and options.who == "stock")
    with torch.no_grad(), autocast:
        for _ in range(options.repeats + 1):
            start = time.perf_counter()
            model(ids, **recycles)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = memory("VmHWM")
    return {"seconds": min(seconds[1:]), "activations": max(0, peak - before), "peak": peak}


def run(who: str, length: int, chunk: str, size: str, options: argparse.Namespace) -> dict[str, float] | None:
    """`measure` in processes of its own; None where it failed, out of memory say."""
    command = [sys.executable, __file__, "--worker", "--who", who, "--length", str(length), "--chunk", chunk]
    command += ["--size", size, "--device", options.device, "--threads", str(options.threads)]
    command += ["--repeats", str(options.repeats)]
    # For the peak glibc is told to give freed memory back at once, so that it is what was in use. That costs time, so
    # the seconds are those of another process.
    frugal = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    results = []
    for changes in ({}, frugal):
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | changes)
        if done.returncode:
            print(f"{who} L={length} chunk={chunk} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return None
        results.append(json.loads(done.stdout.splitlines()[-1]))
    return results[1] | {"seconds": results[0]["seconds"]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--who", choices=("ours", "stock"), help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--chunk", default="none", help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=("medium", "full"), default=None)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options)))
        return
    size = options.size or ("full" if options.device.startswith("cuda") else "medium")
    import torch
    import transformers

    print(f"# {platform.processor() or platform.machine()}, {options.threads} threads, device {options.device}")
    print(f"# torch {torch.__version__}, transformers {transformers.__version__}, {size} model, batch 1, no recycles")
    print(f"{'L':>4} {'':>12} {'res/s':>8} {'activations':>12} {'peak':>9}")
    for length in options.lengths:
        rows = {f"stock {chunk}": run("stock", length, chunk, size, options) for chunk in STOCK_CHUNKS}
        ours = run("ours", length, "none", size, options)
        for name, row in {**rows, "ours": ours}.items():
            if row:
                mib = (row["activations"] / 2**20, row["peak"] / 2**20)
                print(f"{length:>4} {name:>12} {length / row['seconds']:>8.1f} {mib[0]:>8.0f} MiB {mib[1]:>5.0f} MiB")
        stock = [row for row in rows.values() if row]
        if ours and stock:
            speed = min(row["seconds"] for row in stock) / ours["seconds"]
            lean = ours["activations"] / min(row["activations"] for row in stock)
            fastest = min(stock, key=lambda row: row["seconds"])
            against_fastest = ours["activations"] / fastest["activations"]
            print(
                f"{length:>4} ours: {speed:.2f}x the fastest stock setting, {against_fastest:.2f}x its activations, "
                f"{lean:.2f}x those of the leanest"
            )


if __name__ == "__main__":
    main()
