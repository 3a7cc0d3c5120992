"""Pairs per second of our batched TM-score, GDT and CA lDDT beside tmtools, TMscore and biotite, on the same pairs.

    python benchmarks/scores.py                     # as many processes or threads for everybody as there are cores
    python benchmarks/scores.py --device cpu        # a GPU, if there is one, left out
    python benchmarks/scores.py --ways gpu --batches 256 --lengths 128 256 --seconds 1   # a GPU only, in seconds
    python benchmarks/scores.py --cpu-time          # on a busy machine: pairs per second of one core's time

Where there is a GPU, ours are measured there too; the programs beside stay on the CPU.

The pairs are real chains laid end to end to the wanted length and five kinds of models of them: shaken, swung about a
hinge, with a stretch missing, threaded backwards, drifted. Our scores run in two ways: one process with a thread per
core, and a process per core with one thread each, every one with batches of its own; the programs beside run in a
process per core. Every measurement on a CPU is of fresh processes, after one batch to warm up; memory is what the
process had at its peak above what it had before. TMscore (Debian: tm-align), where installed, gives TM-score and GDT at
once, from files, one process per pair.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
LENGTHS = (64, 128, 256)
BATCHES = (1, 32, 256)
WAYS = ("threads", "processes", "gpu")
PEER = {"tm": "tmtools", "gdt": "TMscore", "lddt": "biotite"}


def made_pairs(length: int, count: int, structures: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(b, n, 3)` models, `(b, n, 3)` references, `(b, n)` masks of the residues the models have."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from scored_pairs import KINDS, perturbed, real_chains

    chains = [chain for chain in real_chains(structures, longest=10_000).values() if len(chain) >= 20]
    rng = np.random.default_rng(length)
    models, references, masks = [], [], []
    for pair in range(count):
        pieces: list[np.ndarray] = []
        while sum(map(len, pieces)) < length:
            chain = chains[rng.integers(len(chains))]
            pieces.append(chain - chain[0] + (pieces[-1][-1] + [3.8, 0, 0] if pieces else 0))
        reference = np.concatenate(pieces)[:length]
        model, present = perturbed(reference, KINDS[pair % len(KINDS)], rng)
        models.append(model)
        references.append(reference)
        masks.append(present)
    return np.stack(models), np.stack(references), np.stack(masks)


def ours(kind: str, pairs: tuple[np.ndarray, ...], device: str) -> Callable[[], int]:
    """A function that scores the batch and returns how many pairs that were."""
    import torch

    from protfold_peft.metrics import lddt, tm_and_gdt, tm_score

    models, references, masks = (torch.tensor(array, device=device) for array in pairs)
    whole = torch.ones_like(masks)
    score: dict[str, Callable[..., Any]] = {"tm": tm_score, "gdt": tm_and_gdt, "lddt": lddt}

    def run() -> int:
        score[kind](models, references, whole, masks)
        if device != "cpu":
            torch.cuda.synchronize()
        return len(models)

    return run


def peer(kind: str, pairs: tuple[np.ndarray, ...]) -> Callable[[], int]:
    """A function that scores the next pair with the program beside, and returns 1."""
    place = 0
    prepared = [{"tm": for_tmtools, "gdt": for_tmscore, "lddt": for_biotite}[kind](*pair) for pair in zip(*pairs)]

    def run() -> int:
        nonlocal place
        prepared[place % len(prepared)]()
        place += 1
        return 1

    return run


def for_tmtools(model: np.ndarray, reference: np.ndarray, present: np.ndarray) -> Callable[[], Any]:
    """TM-score by Zhang and Skolnick's program as a library."""
    import tmtools

    kept, n = np.ascontiguousarray(model[present]), len(reference)
    alignment = ["".join("A" if there else "-" for there in present), "A" * n]
    return lambda: tmtools.tm_align(kept, reference, "A" * len(kept), "A" * n, alignment=alignment)


def for_biotite(model: np.ndarray, reference: np.ndarray, present: np.ndarray) -> Callable[[], Any]:
    """lDDT of CA atoms by biotite."""
    import biotite.structure as struc

    def atoms(coordinates: np.ndarray) -> Any:
        array = struc.AtomArray(len(coordinates))
        array.coord = coordinates.astype(np.float32)
        array.res_id = np.arange(1, len(coordinates) + 1)
        array.chain_id[:], array.res_name[:], array.atom_name[:] = "A", "ALA", "CA"
        return array

    mobile, target = atoms(np.where(present[:, None], model, np.nan)), atoms(reference)
    return lambda: struc.lddt(target, mobile)


def for_tmscore(model: np.ndarray, reference: np.ndarray, present: np.ndarray) -> Callable[[], Any]:
    """TM-score by Zhang and Skolnick's program TMscore."""
    from scored_pairs import write_ca_pdb

    folder = Path(tempfile.mkdtemp(prefix="scores_"))
    write_ca_pdb(folder / "model.pdb", model, present)
    write_ca_pdb(folder / "ref.pdb", reference)
    command = ["TMscore", str(folder / "model.pdb"), str(folder / "ref.pdb")]
    return lambda: subprocess.run(command, capture_output=True, check=True)


def memory(field: str) -> int:
    """Bytes of resident memory of this process: now (`VmRSS`) or at most (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads memory from /proc: run it on Linux")


def worker(options: argparse.Namespace) -> dict[str, float]:
    """One process of one measurement."""
    pairs = made_pairs(options.length, options.batch, options.structures)
    if options.who == "peer":
        run = peer(options.kind, pairs)
    else:
        import torch

        if options.device == "cpu":
            torch.set_num_threads(options.threads)
        run = ours(options.kind, pairs, options.device)
        ours(options.kind, tuple(array[:1, :20] for array in pairs), options.device)()  # what libraries set aside once
    cuda = options.who == "ours" and options.device != "cpu"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    run()
    # Time of this process and the programs it starts, or of the clock on the wall.
    clock = (lambda: sum(os.times()[:4])) if options.cpu_time else time.perf_counter
    done, start = 0, clock()
    while clock() - start < options.seconds or not done:
        done += run()
    rate = done / (clock() - start)
    peak = torch.cuda.max_memory_allocated() if cuda else memory("VmHWM")
    return {"rate": rate, "memory": max(0, peak - before)}


def measure(
    options: argparse.Namespace, who: str, kind: str, length: int, batch: int, **changes: Any
) -> dict[str, float]:
    """Rate of all processes together (per core with `--cpu-time`) and the peak memory of the largest."""
    settings = {"processes": options.processes, "threads": 1, "device": "cpu", **changes}
    command = [sys.executable, __file__, "--worker", "--who", who, "--kind", kind, "--length", str(length)]
    command += ["--batch", str(batch), "--seconds", str(options.seconds), "--structures", str(options.structures)]
    command += ["--threads", str(settings["threads"]), "--device", settings["device"]]
    command += ["--cpu-time"] if options.cpu_time else []
    environment = os.environ | {"OMP_NUM_THREADS": str(settings["threads"])}
    with tempfile.TemporaryDirectory() as scratch:
        environment["TMPDIR"] = scratch
        started = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            for _ in range(settings["processes"])
        ]
        results = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    rate = sum(r["rate"] for r in results) / (len(results) if options.cpu_time else 1)
    return {"rate": rate, "memory": max(r["memory"] for r in results)}


def row(options: argparse.Namespace, kind: str, length: int, batch: int, theirs: float | None) -> dict[str, Any]:
    """Ours in every way asked for, and the ratios to the program beside."""
    found: dict[str, Any] = {"score": kind, "length": length, "batch": batch, "beside": theirs}
    if "threads" in options.ways:
        found["threads"] = measure(options, "ours", kind, length, batch, processes=1, threads=options.processes)
    if "processes" in options.ways:
        found["processes"] = measure(options, "ours", kind, length, batch)
    if "gpu" in options.ways and options.device != "cpu":
        # In this process: starting one takes longer than measuring.
        there = argparse.Namespace(**vars(options) | {"who": "ours", "kind": kind, "length": length, "batch": batch})
        found["gpu"] = worker(there)
    return found


def shown(found: dict[str, Any]) -> str:
    """A line of the table."""
    cells = []
    for way in WAYS:
        cells.append(
            f"{found[way]['rate']:>10.0f} {found[way]['memory'] / 2**20:>6.0f}" if way in found else f"{'':>17}"
        )
    line = f"{found['score']:>5}{found['length']:>5}{found['batch']:>6} {' '.join(cells)}"
    if found["beside"]:
        ratios = " ".join(f"{found[way]['rate'] / found['beside']:.1f}x" for way in WAYS if way in found)
        line += f" {PEER[found['score']]:>8} {found['beside']:>6.0f}  {ratios}"
    return line


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cpu, or a GPU to measure too; auto: the GPU there is")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="cores that everybody may use")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each measurement lasts")
    parser.add_argument("--cpu-time", action="store_true", help="count the time of a core instead of the clock's")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--scores", nargs="+", choices=tuple(PEER), default=tuple(PEER))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="how ours run")
    parser.add_argument("--out", type=Path, help="JSON file: machine, versions, commit and rows")
    parser.add_argument("--structures", type=Path, default=REPOSITORY / "structures", help="folder of PDB files")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--who", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=tuple(PEER), help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(options)))
        return
    import torch

    from protfold_peft.benchmarks.machine import machine

    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    n = options.processes
    unit = "pairs per second of one core's time" if options.cpu_time else "pairs per second"
    print(f"# {platform.processor() or platform.machine()}, {n} cores, torch {torch.__version__}; {unit}")
    if options.device != "cpu":
        print(f"# {torch.cuda.get_device_name(options.device)}")
    heads = " ".join(f"{way:>10} {'MiB':>6}" for way in WAYS)
    print(f"{'':>5}{'L':>5}{'batch':>6} {heads} {'beside':>15}  ratios")
    rows = []
    for kind in options.scores:
        for length in options.lengths:
            there = kind != "gdt" or shutil.which("TMscore") is not None
            theirs = measure(options, "peer", kind, length, 32)["rate"] if there else None
            for batch in options.batches:
                rows.append(row(options, kind, length, batch, theirs))
                print(shown(rows[-1]), flush=True)
                if options.out:
                    content = {"machine": machine(options.device), "seconds": options.seconds, "rows": rows}
                    options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
