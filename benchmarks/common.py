"""Options that the scripts beside share; what they run is `protfold_peft.benchmarks`, as `protfold bench` does."""

from __future__ import annotations

import argparse
from pathlib import Path

from protfold_peft.benchmarks import suite
from protfold_peft.errors import ProtfoldError
from protfold_peft.runtime import configure_logging, resolve_device


def main(part: str, description: str, lengths: str) -> None:
    """Measure one part as the command line asks, print its table, and leave with 1 if a row could not be measured."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=("mini", "medium", "full"), help="by default full on a GPU, medium on a CPU")
    parser.add_argument("--threads", type=int, help="on a CPU; by default one per core")
    parser.add_argument("--cpu-time", action="store_true", help="on a busy machine: one core's time, not the clock's")
    parser.add_argument("--seconds", type=float, default=5.0, help="limit of every measurement (two passes at least)")
    parser.add_argument(lengths, type=int, nargs="+", dest="lengths")
    parser.add_argument("--routes", nargs="+", metavar="NAME", help="only these rows, by their names in the table")
    parser.add_argument("--out", type=Path, help="JSON file: machine, versions, commit and rows")
    options = parser.parse_args()
    configure_logging()
    try:
        device = str(resolve_device(options.device))
        benchmark = suite.Benchmark(
            size=options.size or ("full" if device.startswith("cuda") else "medium"),
            device=device,
            parts=(part,),
            seconds=options.seconds,
            threads=1 if options.cpu_time else options.threads,
            cpu_time=options.cpu_time,
            lengths={part: options.lengths} if options.lengths else None,
            routes={part: options.routes} if options.routes else None,
            out=options.out,
        )
        raise SystemExit(suite.run_and_tell(benchmark))
    except ProtfoldError as error:
        raise SystemExit(f"error: {error}") from error
