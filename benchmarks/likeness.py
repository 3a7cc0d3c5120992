"""How many of the pairs that resemble each other the searches of `protfold prepare` find, and what part they align.

    python benchmarks/likeness.py MANIFEST.tsv --queries 200

MANIFEST.tsv has a column `sequence`. Queries drawn at random are aligned with every sequence: the pairs that resemble
each other are then known, and each search is asked for its candidates.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
from pathlib import Path

from protfold_peft.data.prepare.alignment import Likeness, align
from protfold_peft.data.prepare.search import mmseqs_candidates
from protfold_peft.data.prepare.words import WordIndex


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--remote", type=float, default=0.4, help="below this identity a pair is a remote one")
    options = parser.parse_args()
    with options.manifest.open() as handle:
        sequences = [row["sequence"] for row in csv.DictReader(handle, delimiter="\t")]
    searched = sum(map(len, sequences))
    queries = random.Random(1).sample(range(len(sequences)), options.queries)
    alike: list[tuple[int, int, bool]] = []
    for place, query in enumerate(queries):
        for target, sequence in enumerate(sequences):
            match = align(sequences[query], sequence, searched=searched, likeness=Likeness())
            if target != query and match is not None:
                alike.append((place, target, match.identity < options.remote))
    index = WordIndex(sequences)
    searches = {"builtin": {place: index.candidates(sequences[query]) for place, query in enumerate(queries)}}
    if shutil.which("mmseqs"):
        searches["mmseqs"] = mmseqs_candidates([sequences[query] for query in queries], sequences, 1)
    n_remote = sum(remote for *_, remote in alike)
    for name, found in searches.items():
        candidates = {(place, int(target)) for place, targets in found.items() for target in targets}
        hits = [remote for place, target, remote in alike if (place, target) in candidates]
        part = len(candidates) / (len(queries) * len(sequences))
        found_remote = f"{sum(hits)} of {n_remote} remote ones"
        print(f"{name}: {len(hits)} of {len(alike)} pairs found, {found_remote}; {part:.1%} aligned")


if __name__ == "__main__":
    main()
