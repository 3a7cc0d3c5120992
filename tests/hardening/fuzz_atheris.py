"""Readers under damaged files, guided by coverage: slower at each file than `test_fuzz.py`, and sees where each leads.

    python -m venv --system-site-packages fuzzing && fuzzing/bin/pip install atheris
    fuzzing/bin/python tests/hardening/fuzz_atheris.py pdb mmcif --seconds 120 --out fuzzed

Each reader is tried for so long in a process of its own. A file that a reader neither reads nor refuses in one line is
kept in OUT, one for each place in the code where it fell; the smallest of them becomes a test in `test_cases.py`. Exit
status: 0 nothing fell, 1 something did.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import atheris

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

with atheris.instrument_imports(include=["protfold_peft", "yaml"]):
    from readers import Reader, make_readers, read_damaged

from mutations import damaged  # noqa: E402

# A file that takes longer is told as one that fell.
_SECONDS_PER_FILE = 60


class Target:
    """What libFuzzer calls: a reader, and which of its files is damaged.

    The first byte of an input says which file of the reader's it stands for; the rest is that file's content.
    """

    def __init__(self, name: str, reader: Reader, out: Path) -> None:
        self.name, self.reader, self.out = name, reader, out
        self.folder = Path(tempfile.mkdtemp()) / "damaged"
        self.fell: set[str] = set()

    def inputs(self, folder: Path) -> None:
        """Write the sound files in the form of inputs: what libFuzzer begins with."""
        for place, seed in enumerate(self.reader.seeds):
            (folder / f"{place}").write_bytes(bytes([place]) + seed.read_bytes())

    def mutate(self, data: bytes, most: int, seed: int) -> bytes:
        """Half of the damages are those that files meet, half are libFuzzer's own."""
        if random.Random(seed).random() < 0.5 and len(data) > 1:
            return (data[:1] + damaged(data[1:], seed))[:most]
        return atheris.Mutate(data, most)

    def __call__(self, data: bytes) -> None:
        if not data:
            return
        source = self.reader.seeds[data[0] % len(self.reader.seeds)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read_damaged(self.reader, source, data[1:], self.folder)
            except AssertionError as error:
                self.keep(source, data[1:], error)

    def keep(self, source: Path, data: bytes, error: AssertionError) -> None:
        cause = error.__cause__ or error
        frames = traceback.extract_tb(cause.__traceback__)
        ours = [f"{Path(frame.filename).stem}_{frame.lineno}" for frame in frames if "protfold_peft" in frame.filename]
        where = f"{type(cause).__name__}_{ours[-1] if ours else 'message'}"
        if where in self.fell:
            return
        self.fell.add(where)
        folder = self.out / self.name / where
        folder.mkdir(parents=True, exist_ok=True)
        (folder / source.name).write_bytes(data)
        (folder / "why.txt").write_text("".join(traceback.format_exception(cause)), encoding="utf-8")
        print(f"{self.name}: {source.name}: {error}", flush=True)


def fuzz(name: str, seconds: int, out: Path) -> None:
    """Try one reader; does not return."""
    made = Path(tempfile.mkdtemp())
    data = os.environ.get("PROTFOLD_TEST_DATA")
    awkward = Path(data) / "metrics" / "io" if data else None
    reader = make_readers(made, awkward if awkward and awkward.is_dir() else None)[name]
    target = Target(name, reader, out)
    corpus = Path(tempfile.mkdtemp())
    target.inputs(corpus)
    largest = max(seed.stat().st_size for seed in reader.seeds) + 4096
    limits = [f"-max_total_time={seconds}", f"-max_len={largest}", f"-timeout={_SECONDS_PER_FILE}"]
    limits += ["-rss_limit_mb=6000", f"-artifact_prefix={out}/{name}-", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], target, custom_mutator=target.mutate)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="+", help="as in test_fuzz.py, such as pdb")
    parser.add_argument("--seconds", type=int, default=120, help="for each reader")
    parser.add_argument("--out", type=Path, default=Path("fuzzed"))
    wanted = parser.parse_args()
    wanted.out.mkdir(parents=True, exist_ok=True)
    if len(wanted.readers) == 1:
        fuzz(wanted.readers[0], wanted.seconds, wanted.out)
    options = ["--seconds", str(wanted.seconds), "--out", str(wanted.out)]
    for name in wanted.readers:
        subprocess.run([sys.executable, __file__, name, *options], check=False)
    kept = sorted(path for path in wanted.out.rglob("*") if path.is_file() and path.name != "why.txt")
    print("\n".join(["what fell:", *map(str, kept)] if kept else ["nothing fell"]))
    return int(bool(kept))


if __name__ == "__main__":
    sys.exit(main())
