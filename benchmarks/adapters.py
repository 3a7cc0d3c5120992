"""Cost of every tensor adapter beside PEFT's LoRA on the same sites of the same random models.

    python benchmarks/adapters.py                    # step time, forward time and memory, ESM-2 35M and a Llama
    python benchmarks/adapters.py --checkpointing    # the same under gradient checkpointing
    python benchmarks/adapters.py --tera             # TeRA's cost against the size of its core
    python benchmarks/adapters.py --mixed            # 1, 16, 64 adapters in one batch of 64 samples
    python benchmarks/adapters.py --files            # sizes of adapter files, and how long they take to load
    python benchmarks/adapters.py --generate         # tokens per second, one by one
    ... --device cuda --json results.json

A step is forward, backward and AdamW on 4 x 256 tokens. All methods of a table take turns in one process, every round
in another order, so that a drift of the machine's speed meets all alike; the weights lie in memory once. A time is the
median over the rounds, a ratio the median of the rounds' ratios to LoRA in the same round, with its quartiles. Memory
is the peak of one step, or forward pass, above what the model takes, in a process of its own: activations, gradients
and AdamW's moments.

TensLoRA with one rank for all modes has a core of that rank to the fifth power, so beyond 8 it is only shown with ranks
that match LoRA's number of parameters (`tenslora_as_lora`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from adapter_work import REFERENCE, WORK

RANKS = (1, 8, 64)
STEP_METHODS = (
    "lora",
    "site_lora",
    "lorta",
    "lotr",
    "tensor_train",
    "tensor_train_heads",
    "tenslora",
    "tenslora_as_lora",
)
STEP_METHODS += ("tera",)
FILE_METHODS = tuple(method for method in STEP_METHODS if method != "site_lora")
TERA_RANKS = (1, 4, 8, 16, 24)


def run(work: str, options: argparse.Namespace, *, frugal: bool = False, **task: Any) -> list[dict[str, Any]]:
    """One of `WORK`, in a process of its own."""
    task = {key: getattr(options, key) for key in ("batch", "tokens", "repeats", "dtype", "clock")} | task
    command = [sys.executable, __file__, "--worker", json.dumps({"work": work} | task)]
    command += ["--device", options.device, "--threads", str(options.threads)]
    # For the peak glibc is told to give freed memory back at once, so that it is what was in use.
    changes = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"} if frugal else {}
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads | changes)
    if done.returncode:
        sys.exit(f"{work} {task} failed:\n{done.stderr}")
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def table_of_steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Times and memory of every method at every rank, for each model."""
    results = []
    for model in options.models:
        for rank in options.ranks:
            methods = options.methods or ["base", *STEP_METHODS]
            entries = [(method, method, rank) for method in methods]
            title = f"{model}, rank {rank}, {options.batch} x {options.tokens} tokens"
            results += steps_and_memory(title, model, entries, options, rank=rank)
    return results


def table_of_tera(options: argparse.Namespace) -> list[dict[str, Any]]:
    """TeRA's cost against its core's size; LoRA of rank 8 beside it."""
    results = []
    for model in options.models:
        entries = [(REFERENCE, "lora", 8), *((f"tera r={rank}", "tera", rank) for rank in TERA_RANKS)]
        results += steps_and_memory(f"TeRA on {model}; lora has rank 8", model, entries, options)
    return results


def steps_and_memory(
    title: str, model: str, entries: list[tuple[str, str, int]], options: argparse.Namespace, **tags: Any
) -> list[dict[str, Any]]:
    """Measure a step of every entry (label, method, rank) beside plain LoRA's, print a table, and return its rows."""
    common = {"model": model, "checkpointing": options.checkpointing}
    rows = run("steps", options, entries=entries, **common)
    print(f"\n{title}{', gradient checkpointing' if options.checkpointing else ''}")
    print(
        f"{'':>18} {'parameters':>10} {'step':>9} {'ratio':>17} {'forward':>9} {'ratio':>17}  memory of step, forward"
    )
    reference: dict[str, int] = {}
    for entry, row in zip(entries, rows, strict=True):
        row |= tags | {"model": model, "checkpointing": options.checkpointing}
        if "refused" in row:
            print(f"{row['method']:>18} refused: {row['refused']}")
            continue
        if not options.no_memory:
            (peaks,) = run("memory", options, frugal=True, entries=[entry], **common)
            row["peaks"] = {kind: peaks[kind] for kind in ("step", "forward") if kind in peaks}
        if row["method"] == REFERENCE:
            reference = row.get("peaks", {})
        line = f"{row['method']:>18} {row['parameters']:>10,}"
        for kind in ("step", "forward"):
            line += f" {timing(row[kind])}" if kind in row else " " * 28
        for kind, peak in row.get("peaks", {}).items():
            ratio = f" {peak / reference[kind]:.2f}x" if reference.get(kind) else ""
            line += f" {peak / 2**20:>6.0f} MiB{ratio}"
        if row.get("core"):
            line += f"  core {row['core']:,}"
        print(line, flush=True)
    return rows


def timing(row: dict[str, Any]) -> str:
    """Milliseconds, and the ratio to the reference with its quartiles."""
    quartiles = "-".join(f"{ratio:.2f}" for ratio in row.get("quartiles", ()))
    ratio = f"{row['ratio']:.3f}x" if "ratio" in row else ""
    return f"{1000 * row['seconds']:>6.0f} ms {ratio:>7} {quartiles:>9}"


def table_of_mixed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Batches of samples that name their adapters, beside one adapter after the other."""
    results = []
    size = {"batch": 64, "tokens": options.mixed_tokens, "rank": 8}
    for model in options.models:
        print(f"\n{model}, rank 8, 64 samples of {options.mixed_tokens} tokens; ratio to PEFT's LoRA, mixed")
        for adapters in options.adapters:
            rows = run("mixed", options, model=model, adapters=adapters, methods=["lora", "lorta"], **size)
            times = {row["method"]: row["seconds"] for row in rows}
            for row in rows:
                row["model"] = model
                line = f"{adapters:>4} adapters {row['method']:>14} {timing(row)}"
                if row["method"].endswith("mixed"):
                    in_turn = times[row["method"].replace("mixed", "in turn")]
                    line += f"  {in_turn / row['seconds']:.2f}x as fast as in turn"
                print(line, flush=True)
            results += rows
    return results


def table_of_generation(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens per second."""
    methods = options.methods or ["lora", "lorta", "lotr", "tensor_train", "tensor_train_heads", "tenslora", "tera"]
    rows = run("generate", options, batch=1, rank=8, methods=methods, new_tokens=options.new_tokens)
    print(f"\nllama, rank 8, {options.new_tokens} new tokens, one sample; ratio of times to PEFT's LoRA")
    for row in rows:
        print(f"{row['method']:>28} {timing(row)} {row['tokens_per_second']:>7.1f} tokens/s", flush=True)
    return rows


def table_of_files(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Sizes of saved adapters, and times to load or add one."""
    results = []
    for model in options.file_models:
        for rank in options.ranks:
            rows = run("files", options, model=model, rank=rank, methods=options.methods or FILE_METHODS)
            print(f"\n{model}, rank {rank}")
            print(
                f"{'':>18} {'weights, KB':>12} {'against LoRA':>12} {'config, KB':>10} {'load, ms':>9} {'add, ms':>8}"
            )
            reference = next((row for row in rows if row["method"] == REFERENCE), None)
            for row in rows:
                if "refused" in row:
                    print(f"{row['method']:>18} refused: {row['refused']}")
                    continue
                share = f"1/{reference['weights'] / row['weights']:.1f}" if reference else ""
                line = f"{row['method']:>18} {row['weights'] / 1e3:>12,.1f} {share:>12} {row['config'] / 1e3:>10.1f}"
                if "load" in row:
                    line += f" {1000 * row['load']:>9.0f} {1000 * row['add']:>8.0f}"
                print(line, flush=True)
            results += rows
    return results


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=["esm", "llama"], choices=("esm", "llama", "esm-650M"))
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a machine that is not quiet"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the base weights")
    parser.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--tera", action="store_true")
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--adapters", type=int, nargs="+", default=(1, 16, 64))
    parser.add_argument("--mixed-tokens", type=int, default=32)
    parser.add_argument("--files", action="store_true")
    parser.add_argument("--file-models", nargs="+", default=["esm-35M", "esm-650M", "esm-3B"])
    parser.add_argument("--generate", action="store_true")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()

    import peft
    import torch
    import transformers

    if options.worker:
        device = torch.device(options.device)
        if device.type == "cpu":
            torch.set_num_threads(options.threads)
        task = json.loads(options.worker)
        rows = WORK[task.pop("work")](task, device)
        print(json.dumps(rows))
        return
    machine = platform.processor() or platform.machine()
    if options.device != "cpu":
        machine = torch.cuda.get_device_name(options.device)
    about = f"{machine}, {options.threads} threads, {options.dtype} weights, torch {torch.__version__}"
    about += f", transformers {transformers.__version__}, peft {peft.__version__}"
    print(f"# {about}")
    tables = {
        "tera": table_of_tera,
        "mixed": table_of_mixed,
        "files": table_of_files,
        "generate": table_of_generation,
    }
    chosen = [name for name in tables if getattr(options, name)]
    results = {name: tables[name](options) for name in chosen} or {"steps": table_of_steps(options)}
    if options.json:
        about_all = {"about": about, "options": {k: str(v) for k, v in vars(options).items()}}
        options.json.write_text(json.dumps(about_all | results, indent=1) + "\n")


if __name__ == "__main__":
    main()
