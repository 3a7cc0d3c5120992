"""Pairs of structures to score: the stored ones with other programs' values, and fresh perturbations of real chains."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import torch
from torch import Tensor

from protfold_peft.structure.geometry import restypes_of

CA = 1  # place of CA among the 37 atoms
BACKBONE = [0, 1, 2, 4]  # N CA C O


@dataclass(frozen=True, eq=False)
class Pair:
    """A stored pair, batch of one: `(1, n, 37, 3)` coordinates (NaN where absent), `(1, n, 37)` masks."""

    name: str
    expected: dict[str, Any]
    sequence: str
    model: Tensor
    reference: Tensor
    reference_mask: Tensor
    model_mask: Tensor
    model_length: int
    reference_numbers: list[str]

    @property
    def all_atoms(self) -> tuple[Tensor, ...]:
        return self.model, self.reference, self.reference_mask, self.model_mask

    @property
    def ca(self) -> tuple[Tensor, ...]:
        return tuple(tensor[:, :, CA] for tensor in self.all_atoms)

    @property
    def backbone(self) -> tuple[Tensor, ...]:
        return tuple(tensor[:, :, BACKBONE] for tensor in self.all_atoms)

    @property
    def restypes(self) -> Tensor:
        return restypes_of(self.sequence)[None]


def stored_pairs(test_data: Path, dtype: torch.dtype = torch.float64) -> list[Pair]:
    folder = test_data / "metrics"
    pairs = []
    for name, expected in json.loads((folder / "expected_pairs.json").read_text()).items():
        with np.load(folder / "pairs" / name / "arrays.npz") as arrays:
            pairs.append(
                Pair(
                    name=name,
                    expected=expected,
                    sequence=str(arrays["sequence"]),
                    model=torch.tensor(arrays["model_atom37"][None], dtype=dtype),
                    reference=torch.tensor(arrays["ref_atom37"][None], dtype=dtype),
                    reference_mask=torch.tensor(arrays["ref_mask37"][None]).bool(),
                    model_mask=torch.tensor(arrays["model_mask37"][None]).bool(),
                    model_length=int(arrays["L_model"]),
                    reference_numbers=[str(number) for number in arrays["ref_seqid"]],
                )
            )
    assert len(pairs) >= 13
    return pairs


def stored_json(test_data: Path, name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((test_data / "metrics" / f"expected_{name}.json").read_text())
    return values


def ca_of_file(path: Path, model: int = 0) -> np.ndarray:
    """`(n, 3)` CA coordinates of a file's first chain, read by gemmi."""
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    residues = structure[model][0].get_polymer()
    return np.array([atom.pos.tolist() for residue in residues for atom in residue if atom.name == "CA"])


def real_chains(structures: Path, extra: Path | None = None, longest: int = 200) -> dict[str, np.ndarray]:
    """name -> `(n, 3)` CA coordinates of the example structures and, where given, of those in another folder."""
    paths = sorted(structures.glob("*.pdb")) + (sorted(extra.glob("*.pdb")) if extra else [])
    chains = {path.stem: ca_of_file(path) for path in paths}
    return {name: chain for name, chain in chains.items() if len(chain) <= longest}


def perturbed(chain: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A model of a chain, `(n, 3)`, and the mask `(n,)` of the residues it has.

    noise: every atom shaken. hinge: one half swung about the middle. deletion: a stretch missing, the rest shaken.
    wrong: the chain threaded backwards through its own fold. drift: a random walk away from the truth.
    """
    n = len(chain)
    present = np.ones(n, dtype=bool)
    if kind == "noise":
        return chain + rng.normal(scale=rng.uniform(0.3, 4.0), size=chain.shape), present
    if kind == "hinge":
        turn = random_rotation(rng, largest=1.5)
        half = n // 2
        swung = np.concatenate([chain[:half], (chain[half:] - chain[half]) @ turn.T + chain[half]])
        return swung + rng.normal(scale=0.3, size=chain.shape), present
    if kind == "deletion":
        start = int(rng.integers(n // 2))
        present[start : start + n // 4] = False
        return chain + rng.normal(scale=1.0, size=chain.shape), present
    if kind == "wrong":
        return chain[::-1] + rng.normal(scale=0.5, size=chain.shape), present
    assert kind == "drift"
    return chain + np.cumsum(rng.normal(scale=0.5, size=chain.shape), axis=0), present


KINDS = ("noise", "hinge", "deletion", "wrong", "drift")


def random_rotation(rng: np.random.Generator, largest: float = np.pi) -> np.ndarray:
    """A proper rotation about a random axis by up to `largest` radians (Rodrigues)."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = rng.uniform(0.1, largest)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def random_walk(n: int, rng: np.random.Generator) -> np.ndarray:
    """`(n, 3)` a chain of steps of 3.8 A."""
    steps = rng.normal(size=(n, 3))
    return np.cumsum(3.8 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)


def padded(arrays: list[np.ndarray], fill: float) -> Tensor:
    """A batch of arrays that differ in their first axis, filled up."""
    longest = max(len(array) for array in arrays)
    batch = np.full((len(arrays), longest, *arrays[0].shape[1:]), fill, dtype=arrays[0].dtype)
    for row, array in zip(batch, arrays, strict=True):
        row[: len(array)] = array
    return torch.tensor(batch)


def write_ca_pdb(path: Path, chain: np.ndarray, present: np.ndarray | None = None) -> None:
    """CA atoms only, numbered from 1: what the TMscore program reads."""
    lines = [
        f"ATOM  {i + 1:5d}  CA  ALA A{i + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           C  "
        for i, (x, y, z) in enumerate(chain)
        if present is None or present[i]
    ]
    path.write_text("\n".join([*lines, "TER", "END", ""]))


def tmscore_program(folder: Path, model: np.ndarray, chain: np.ndarray, present: np.ndarray) -> dict[str, float]:
    """TM-score and GDT of the program TMscore, four decimals."""
    write_ca_pdb(folder / "model.pdb", model, present)
    write_ca_pdb(folder / "ref.pdb", chain)
    command = ["TMscore", str(folder / "model.pdb"), str(folder / "ref.pdb")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    patterns = {
        "tm": r"TM-score\s*=\s*([0-9.]+)",
        "ts": r"GDT-TS-score=\s*([0-9.]+)",
        "ha": r"GDT-HA-score=\s*([0-9.]+)",
    }
    found = {name: re.search(pattern, output) for name, pattern in patterns.items()}
    return {name: float(match.group(1)) for name, match in found.items() if match}


def made_pair(seed: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A random walk and a model of it, batch of one, with some residues missing."""
    rng = np.random.default_rng(seed)
    chain = random_walk(n, rng)
    model, present = (
        perturbed(chain, KINDS[seed % len(KINDS)], rng) if n > 3 else (chain + rng.normal(size=(n, 3)), None)
    )
    kept = torch.ones(1, n, dtype=torch.bool) if present is None else torch.tensor(present)[None]
    return torch.tensor(model)[None], torch.tensor(chain)[None], torch.ones(1, n, dtype=torch.bool), kept
