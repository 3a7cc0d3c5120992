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
import contextlib
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
REFERENCE = "lora"


class Turns:
    """Rounds in which everything that is compared runs once."""

    def __init__(self, runs: dict[str, Callable[[], Any]], device: Any, task: dict[str, Any]) -> None:
        import torch

        clock = time.process_time if task["clock"] == "cpu" else time.perf_counter
        names = list(runs)
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        gc.collect()
        gc.disable()
        for turn in range(task["repeats"] + 1):  # the first is to warm up
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                start = clock()
                runs[name]()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    self.seconds[name].append(clock() - start)
            gc.collect()
        gc.enable()

    def row(self, name: str, reference: str = REFERENCE) -> dict[str, Any]:
        """Median seconds, and the quartiles of the ratios to the reference."""
        row: dict[str, Any] = {"seconds": statistics.median(self.seconds[name])}
        if reference in self.seconds:
            pairs = zip(self.seconds[name], self.seconds[reference], strict=True)
            ratios = sorted(own / other for own, other in pairs)
            row["ratio"] = statistics.median(ratios)
            row["quartiles"] = statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else [ratios[0]] * 2
        return row


def step_runs(task: dict[str, Any], device: Any) -> dict[str, dict[str, Any]]:
    """The models of a table: for each label `step`, `forward` and what they are."""
    import torch
    from adapter_models import adapt, batch, core_size, make_model, n_trainable, shared_copy, trainable

    from protfold_peft.errors import ConfigError

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[task["dtype"]]
    first = make_model(task["model"], dtype).to(device)
    runs: dict[str, dict[str, Any]] = {}
    for label, method, rank in task["entries"]:
        base = first if len(task["entries"]) == 1 else shared_copy(task["model"], first, device)
        try:
            model = adapt(base, method, task["model"], rank)
        except ConfigError as error:
            runs[label] = {"refused": str(error)}
            continue
        if task["checkpointing"]:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        inputs = batch(task["model"], task["batch"], task["tokens"], device)
        small = {name: ids[:1, :8] for name, ids in inputs.items()}

        def step(model: Any = model, inputs: Any = inputs, state: Any = None) -> None:
            model.train()
            model(**inputs).loss.backward()
            state.step()
            state.zero_grad()

        def forward(model: Any = model, inputs: Any = inputs) -> None:
            model.eval()
            with torch.no_grad():
                model(**inputs)

        runs[label] = {"forward": forward, "parameters": n_trainable(model), "core": core_size(model)}
        if method != "base":
            # AdamW's moments are made in its first step; a trial run with another one does not make them.
            step(inputs=small, state=torch.optim.AdamW(trainable(model), lr=0.0))
            optimizer = torch.optim.AdamW(trainable(model), lr=1e-5)
            runs[label]["step"] = lambda step=step, optimizer=optimizer: step(state=optimizer)
        forward(inputs=small)
    return runs


def time_steps(task: dict[str, Any], device: Any) -> list[dict[str, Any]]:
    runs = step_runs(task, device)
    rows = {label: {"method": label} | {k: v for k, v in run.items() if not callable(v)} for label, run in runs.items()}
    for kind in ("step", "forward"):
        turns = Turns({label: run[kind] for label, run in runs.items() if kind in run}, device, task)
        for label in turns.seconds:
            rows[label][kind] = turns.row(label)
    return list(rows.values())


def peak_memory(task: dict[str, Any], device: Any) -> list[dict[str, Any]]:
    """Of one forward pass and then one step, above what is held before each."""
    import torch
    from adapter_models import memory, reset_peak

    ((label, run),) = step_runs(task, device).items()
    row: dict[str, Any] = {"method": label}
    for kind in ("forward", "step"):
        if kind not in run:
            continue
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            before = memory("VmRSS")
            reset_peak()
        run[kind]()
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else memory("VmHWM")
        row[kind] = max(0, peak - before)
    return [row]


def time_mixed(task: dict[str, Any], device: Any) -> list[dict[str, Any]]:
    """A batch of samples that are spread over n adapters: in one pass, and one adapter after the other."""
    import torch
    from adapter_models import adapt, batch, make_config, make_model

    inputs = batch(task["model"], task["batch"], task["tokens"], device)["input_ids"]
    runs: dict[str, Callable[[], Any]] = {}
    for method in task["methods"]:
        model = adapt(make_model(task["model"]).to(device), method, task["model"], task["rank"])
        names = ["default"] + [f"a{index}" for index in range(1, task["adapters"])]
        for name in names[1:]:
            model.add_adapter(name, make_config(method, task["model"], task["rank"]))
        model.eval()
        own = [names[index * len(names) // len(inputs)] for index in range(len(inputs))]
        parts = {name: [i for i, other in enumerate(own) if other == name] for name in names}

        def together(model: Any = model, own: list[str] = own) -> Any:
            with torch.no_grad(), kept(model):
                return model(input_ids=inputs, adapter_names=own).logits

        def apart(model: Any = model, parts: dict[str, list[int]] = parts) -> Any:
            with torch.no_grad():
                outputs = []
                for name, rows in parts.items():
                    model.set_adapter(name)
                    outputs.append(model(input_ids=inputs[rows]).logits)
                return torch.cat(outputs)

        assert torch.allclose(together(), apart(), atol=1e-3)
        runs |= {f"{method} mixed": together, f"{method} in turn": apart}
    plain = make_model(task["model"]).to(device).eval()

    def base() -> None:
        with torch.no_grad():
            plain(input_ids=inputs)

    runs["base"] = base
    turns = Turns(runs, device, task)
    return [{"method": name, "adapters": task["adapters"]} | turns.row(name, "lora mixed") for name in runs]


def time_generation(task: dict[str, Any], device: Any) -> list[dict[str, Any]]:
    """Greedy, one token after the other."""
    import torch
    from adapter_models import adapt, batch, make_model, shared_copy

    first = make_model("llama").to(device)
    prompt = batch("llama", task["batch"], 8, device)["input_ids"]
    runs: dict[str, Callable[[], Any]] = {}
    for method in ["base", *task["methods"]]:
        model = adapt(shared_copy("llama", first, device), method, "llama", task["rank"]).eval()

        def generate(model: Any = model, context: Any = contextlib.nullcontext) -> None:
            with torch.no_grad(), context(model) if context is kept else contextlib.nullcontext():
                model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=task["new_tokens"],
                    min_new_tokens=task["new_tokens"],
                    do_sample=False,
                )

        runs[method] = generate
        if collapsed_is_there() and method not in ("base", "lora", "tera"):
            runs[f"{method} collapsed"] = lambda generate=generate: generate(context=kept)
    turns = Turns(runs, device, task)
    rows = [{"method": name} | turns.row(name) for name in runs]
    for row in rows:
        row["tokens_per_second"] = task["batch"] * task["new_tokens"] / row["seconds"]
    return rows


def collapsed_is_there() -> bool:
    import protfold_peft.adapters

    return hasattr(protfold_peft.adapters, "collapsed")


def kept(model: Any) -> Any:
    """`collapsed(model)` for tensor adapters, where this version has it; else a context that does nothing."""
    import protfold_peft.adapters as adapters

    ours = isinstance(getattr(model, "base_model", None), adapters.TensorAdapterModel)
    return adapters.collapsed(model) if ours and collapsed_is_there() else contextlib.nullcontext()


def time_files(task: dict[str, Any], device: Any) -> list[dict[str, Any]]:
    """Size of a saved adapter, and seconds to load it beside another into a model that is in memory."""
    import torch
    from adapter_models import adapt, make_config, make_model, safetensors_bytes
    from peft import get_peft_model_state_dict

    from protfold_peft.errors import ConfigError

    rows = []
    on_paper = task["model"] == "esm-3B"  # too large to be made here
    for method in task["methods"]:
        with torch.device("meta") if on_paper else contextlib.nullcontext():
            base = make_model(task["model"], torch.bfloat16)
        try:
            model = adapt(base if on_paper else base.to(device), method, task["model"], task["rank"])
        except ConfigError as error:
            rows.append({"method": method, "refused": str(error)})
            continue
        row: dict[str, Any] = {"method": method, "rank": task["rank"], "model": task["model"]}
        with tempfile.TemporaryDirectory() as folder:
            if on_paper:
                shapes = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(model).items()}
                row["weights"] = safetensors_bytes(shapes)
                model.peft_config["default"].save_pretrained(folder)
            else:
                model.save_pretrained(folder)
                row["weights"] = (Path(folder) / "adapter_model.safetensors").stat().st_size
            row["config"] = (Path(folder) / "adapter_config.json").stat().st_size
            if not on_paper:
                seconds = []
                for _ in range(task["repeats"] + 1):
                    start = time.perf_counter()
                    model.load_adapter(folder, "another")
                    seconds.append(time.perf_counter() - start)
                    model.delete_adapter("another")
                row["load"] = statistics.median(seconds[1:])
                config = make_config(method, task["model"], task["rank"])
                start = time.perf_counter()
                model.add_adapter("another", config)
                row["add"] = time.perf_counter() - start
        rows.append(row)
        del base, model
        gc.collect()
    return rows


WORK = {
    "steps": time_steps,
    "memory": peak_memory,
    "mixed": time_mixed,
    "generate": time_generation,
    "files": time_files,
}


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
    quartiles = "-".join(f"{ratio:.2f}" for ratio in row.get("quartiles", ()))
    ratio = f"{row['ratio']:.3f}x" if "ratio" in row else ""
    return f"{1000 * row['seconds']:>6.0f} ms {ratio:>7} {quartiles:>9}"


def table_of_mixed(options: argparse.Namespace) -> list[dict[str, Any]]:
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
    methods = options.methods or ["lora", "lorta", "lotr", "tensor_train", "tensor_train_heads", "tenslora", "tera"]
    rows = run("generate", options, batch=1, rank=8, methods=methods, new_tokens=options.new_tokens)
    print(f"\nllama, rank 8, {options.new_tokens} new tokens, one sample; ratio of times to PEFT's LoRA")
    for row in rows:
        print(f"{row['method']:>28} {timing(row)} {row['tokens_per_second']:>7.1f} tokens/s", flush=True)
    if not collapsed_is_there():
        print("this version has no `collapsed`")
    return rows


def table_of_files(options: argparse.Namespace) -> list[dict[str, Any]]:
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
