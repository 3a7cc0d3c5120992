"""Which sequences of a set resemble which: candidates by MMseqs2 or by shared words, each judged by one alignment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protfold_peft.data.prepare.alignment import Likeness, Match, align
from protfold_peft.data.prepare.parallel import each
from protfold_peft.data.prepare.settings import BUILTIN, MMSEQS
from protfold_peft.data.prepare.words import WordIndex, neighbourhoods
from protfold_peft.errors import ProtfoldError
from protfold_peft.runtime import LOGGER

_PROGRAM = "mmseqs"
# MMseqs2's highest sensitivity, and an E-value that lets through whatever the alignment may confirm.
_SENSITIVITY, _MAX_EVALUE = "7.5", "10"


@dataclass(frozen=True)
class Pair:
    """A query and a target that resemble each other, by their places in their lists."""

    query: int
    target: int
    match: Match


def resolve_search(search: str) -> str:
    """`mmseqs` or `builtin`.

    Raises:
        ProtfoldError: MMseqs2 is asked for and not installed.
    """
    installed = shutil.which(_PROGRAM) is not None
    if search == MMSEQS and not installed:
        raise ProtfoldError("--search mmseqs: no program 'mmseqs' is on the PATH: install MMseqs2, or use builtin")
    return (MMSEQS if installed else BUILTIN) if search not in (MMSEQS, BUILTIN) else search


def similar_pairs(
    queries: Sequence[str],
    targets: Sequence[str] | None,
    likeness: Likeness,
    *,
    search: str,
    processes: int,
    what: str,
) -> list[Pair]:
    """The pairs that resemble each other.

    Args:
        queries: Sequences.
        targets: Sequences to compare them with; None: the queries themselves, each pair once, the earlier one first.
        likeness: What it takes.
        search: `mmseqs` or `builtin`.
        processes: How many work at a time.
        what: Text of the progress bar.
    """
    among = targets is None
    others = queries if targets is None else targets
    if not queries or not others:
        return []
    if search == MMSEQS:
        found = mmseqs_candidates(queries, others, processes)
        index = None
    else:
        found = {}
        index = WordIndex(others)
        neighbourhoods()  # made once, before the processes are forked
    job = _Job(tuple(queries), tuple(others), among, likeness, index, found, sum(map(len, others)))
    results = each(job.find, range(len(queries)), processes=processes, what=what, unit="chains")
    return [pair for pairs in results for pair in pairs]


@dataclass(frozen=True, eq=False)
class _Job:
    """A search for similar pairs, as every process that takes part in it gets it once."""

    queries: tuple[str, ...]
    targets: tuple[str, ...]
    among: bool
    likeness: Likeness
    index: WordIndex | None
    found: dict[int, np.ndarray]
    residues: int

    def find(self, query: int) -> list[Pair]:
        """The pairs of one query: its candidates, aligned, as far as they are alike enough."""
        sequence = self.queries[query]
        if self.index is not None:
            candidates = self.index.candidates(sequence)
        else:
            candidates = self.found.get(query, np.zeros(0, dtype=np.int64))
        pairs = []
        for target in candidates:
            if self.among and target <= query:
                continue
            match = align(sequence, self.targets[target], searched=self.residues, likeness=self.likeness)
            if match is not None:
                pairs.append(Pair(query, int(target), match))
        return pairs


def _run(command: Sequence[str], folder: Path) -> tuple[int, str]:
    """A program's exit status and the last line that it said.

    MMseqs2 is a script that starts programs. An interruption ends them all before it is let through: they would go on
    writing into a folder that is being removed.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, errors = process.communicate()
    except BaseException:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        raise
    return process.returncode, (errors.strip() or out.strip() or "nothing said").splitlines()[-1]


def mmseqs_candidates(queries: Sequence[str], targets: Sequence[str], processes: int) -> dict[int, np.ndarray]:
    """The targets that MMseqs2 finds for every query.

    Raises:
        ProtfoldError: MMseqs2 fails; with the last line that it said.
    """
    with tempfile.TemporaryDirectory(prefix="protfold-mmseqs-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for file, sequences in (("queries.fasta", queries), ("targets.fasta", targets)):
            (folder / file).write_text("".join(f">{i}\n{sequence}\n" for i, sequence in enumerate(sequences)))
        command = [_PROGRAM, "easy-search", "queries.fasta", "targets.fasta", "hits.tsv", "tmp", "-v", "1"]
        command += ["--format-output", "query,target", "-s", _SENSITIVITY, "-e", _MAX_EVALUE]
        # Every target may be found: by default a query of a large family keeps 300.
        command += ["--max-seqs", str(max(300, len(targets))), "--threads", str(processes)]
        LOGGER.info("running %s", " ".join(command))
        status, said = _run(command, folder)
        hits = folder / "hits.tsv"
        if status or not hits.exists():
            raise ProtfoldError(f"MMseqs2 failed (status {status}): {said}; --search builtin does without it")
        found: dict[int, list[int]] = {}
        for line in hits.read_text().splitlines():
            query, target = line.split("\t")
            found.setdefault(int(query), []).append(int(target))
    return {query: np.unique(np.array(hit)) for query, hit in found.items()}
