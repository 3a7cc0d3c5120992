"""What the processes of `adapters.py` measure: times in turns, peaks of memory, sizes of files.

Libraries are imported within functions: a process that only prints tables needs none of them.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    """Times of a step and of a forward pass."""
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
        if method not in ("base", "lora", "tera"):
            runs[f"{method} collapsed"] = lambda generate=generate: generate(context=kept)
    turns = Turns(runs, device, task)
    rows = [{"method": name} | turns.row(name) for name in runs]
    for row in rows:
        row["tokens_per_second"] = task["batch"] * task["new_tokens"] / row["seconds"]
    return rows


def kept(model: Any) -> Any:
    """`collapsed(model)` for tensor adapters; else a context that does nothing."""
    from protfold_peft.adapters import TensorAdapterModel, collapsed

    ours = isinstance(getattr(model, "base_model", None), TensorAdapterModel)
    return collapsed(model) if ours else contextlib.nullcontext()


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
