"""How good is protfold-mini, beside three predictors that know nothing of folding?

    python benchmarks/mini.py DATA [--model FOLDER] [--json scores.json]

DATA holds `structures/manifest.tsv` with `structures/train/*.pdb`, and `casp14/*.pdb`. For the chains kept out of its
training (role `validation`), for families kept out (role `family`) and for CASP14 domains of up to 128 residues, it
prints mean lDDT-CA and TM-score by length of

- protfold-mini,
- the same architecture with the random weights that training began with,
- an ideal alpha helix of the same length,
- the nearest chain of the training set by sequence (the best local alignment, Biopython, BLOSUM62, among the 100 chains
  that share most words of three residues): its CA atoms where the alignment lays them; residues it does not cover count
  as missing,

and the paired bootstrap interval (95 %, over chains) of how much protfold-mini is above each.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from Bio.Align import PairwiseAligner, substitution_matrices

from protfold_peft import load_model
from protfold_peft.data import TrainingChain, read_chains
from protfold_peft.metrics import lddt, tm_score
from protfold_peft.runtime import progress_bar, quieten
from protfold_peft.structure.residues import ATOM_INDEX, RESTYPE_INDEX
from protfold_peft.training.evaluate import fold_chains

CA = ATOM_INDEX["CA"]
LENGTHS = ((1, 40), (40, 60), (60, 80), (80, 128), (128, 10_000))
PREDICTORS = ("protfold-mini", "untrained", "all helix", "nearest neighbour")
# Rise and turn of one residue in an ideal alpha helix, and the radius of its CA atoms (angstrom, degrees).
RISE, TURN, RADIUS = 1.5, 100.0, 2.3
LONGEST_CASP = 128
RESAMPLES = 10_000
CANDIDATES = 100
NOT_HELICAL = 0.35


def helix(n: int) -> torch.Tensor:
    """`(n, 3)` CA atoms of an ideal alpha helix, right-handed."""
    angle = torch.arange(n, dtype=torch.float64) * math.radians(TURN)
    rise = torch.arange(n, dtype=torch.float64) * RISE
    return torch.stack([RADIUS * angle.cos(), RADIUS * angle.sin(), rise], dim=-1)


def score(predicted: torch.Tensor, chain: TrainingChain, covered: torch.Tensor | None = None) -> tuple[float, float]:
    """lDDT-CA and TM-score of `(n, 3)` CA atoms, of which `covered` `(n,)` are predicted."""
    true = torch.from_numpy(chain.atom_positions[:, CA]).double()[None]
    mask = torch.from_numpy(chain.atom_mask[:, CA])[None]
    has = None if covered is None else covered[None]
    return lddt(predicted[None], true, mask, has).score.item(), tm_score(predicted[None], true, mask, has).score.item()


def words(sequence: str) -> np.ndarray:
    """`(8000,)` how often every word of three amino acids occurs."""
    places = [RESTYPE_INDEX.get(letter) for letter in sequence]
    counts = np.zeros(8000, dtype=np.int16)
    for first, second, third in zip(places, places[1:], places[2:]):
        if first is not None and second is not None and third is not None:
            counts[400 * first + 20 * second + third] += 1
    return counts


class Neighbours:
    """The training chain most like a sequence, as a prediction of its structure."""

    def __init__(self, chains: Sequence[TrainingChain]) -> None:
        self.chains = chains
        self.words = np.stack([words(chain.sequence) for chain in chains])
        self.aligner = PairwiseAligner(mode="local")
        self.aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")
        self.aligner.open_gap_score, self.aligner.extend_gap_score = -11, -1

    def predict(self, sequence: str) -> tuple[torch.Tensor, torch.Tensor]:
        """CA atoms `(n, 3)` and which of them are covered `(n,)`."""
        shared = np.minimum(self.words, words(sequence)).sum(axis=1)
        candidates = np.argsort(-shared, kind="stable")[:CANDIDATES]
        nearest = max((self.chains[i] for i in candidates), key=lambda c: self.aligner.score(sequence, c.sequence))
        alignment = self.aligner.align(sequence, nearest.sequence)[0]
        atoms, covered = (
            torch.zeros(len(sequence), 3, dtype=torch.float64),
            torch.zeros(len(sequence), dtype=torch.bool),
        )
        for (start, stop), (own, _) in zip(*alignment.aligned):
            places = np.arange(own, own + stop - start)
            known = torch.from_numpy(nearest.atom_mask[places, CA])
            atoms[start:stop] = torch.from_numpy(nearest.atom_positions[places, CA]).double()
            covered[start:stop] = known
        return atoms, covered


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default=None, help="folder of the weights; the built-in ones by default")
    parser.add_argument("--json", type=Path, default=None, help="write every chain's scores here")
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    table = arguments.data / "structures" / "manifest.tsv"
    folder = arguments.data / "structures" / "train"

    def role(name: str) -> list[TrainingChain]:
        return list(read_chains(folder, table=table, where={"role": name}).chains)

    with table.open(newline="") as handle:
        families = {row["name"]: row["family"] for row in csv.DictReader(handle, delimiter="\t")}
    casp = [c for c in read_chains(arguments.data / "casp14").chains if len(c) <= LONGEST_CASP]
    sets = {"validation": role("validation"), "families": role("family"), "CASP14": casp}
    networks = {
        "protfold-mini": load_model(arguments.model, device="cpu").network,
        "untrained": load_model("protfold-mini-untrained", device="cpu").network,
    }
    neighbours = Neighbours(role("pretrain"))

    rows: list[dict[str, object]] = []
    with progress_bar("chains") as progress:
        for name, chains in sets.items():
            task = progress.add_task(name, total=len(chains))
            folded = {which: fold_chains(network, chains, 0) for which, network in networks.items()}
            for chain in chains:
                scores = {}
                for which in networks:
                    own = next(folded[which]).scores
                    scores[which] = (own["lddt_ca"], own["tm_score"])
                scores["all helix"] = score(helix(len(chain)), chain)
                atoms, covered = neighbours.predict(chain.sequence)
                scores["nearest neighbour"] = score(atoms, chain, covered)
                row = {"set": name, "name": chain.name, "length": len(chain), "family": families.get(chain.name, "")}
                rows.append(row | {"scores": scores})
                progress.advance(task)
    report(rows)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def report(rows: Sequence[dict]) -> None:
    """Print the tables as Markdown."""
    groups: dict[str, list[dict]] = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        for low, high in LENGTHS:
            span = f"{low}..{high - 1}" if high < 10_000 else f"{low} and more"
            groups[f"{name}, {span} residues"] = [row for row in own if low <= row["length"] < high]
        # An all-helix protein is no test of folding.
        harder = [row for row in own if row["length"] >= 60 and row["scores"]["all helix"][0] < NOT_HELICAL]
        groups[f"{name}, 60 and more, all helix below {NOT_HELICAL}"] = harder
    for family in sorted({row["family"] for row in rows} - {""}):
        groups[family] = [row for row in rows if row["family"] == family]
    groups = {group: members for group, members in groups.items() if members}
    for place, metric in enumerate(("lDDT-CA", "TM-score")):
        print(f"\n| {metric} | chains | " + " | ".join(PREDICTORS) + " |")
        print("|---|" + "---|" * (len(PREDICTORS) + 1))
        for group, members in groups.items():
            means = [np.mean([row["scores"][which][place] for row in members]) for which in PREDICTORS]
            print(f"| {group} | {len(members)} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    print("\n| lDDT-CA of protfold-mini above | " + " | ".join(PREDICTORS[1:]) + " |\n|---|" + "---|" * 3)
    for group, members in groups.items():
        cells = []
        for which in PREDICTORS[1:]:
            difference = np.array([row["scores"]["protfold-mini"][0] - row["scores"][which][0] for row in members])
            low, high = interval(difference)
            cells.append(f"{difference.mean():+.3f} ({low:+.3f} to {high:+.3f})")
        print(f"| {group} | " + " | ".join(cells) + " |")


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean, by percentiles."""
    rng = np.random.default_rng(0)
    means = rng.choice(differences, size=(RESAMPLES, len(differences))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
