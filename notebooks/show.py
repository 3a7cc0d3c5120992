"""Pictures of structures for the notebooks: drawn ones that every page can show, and a viewer in Jupyter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from protfold_peft.metrics import correspond, lddt, tm_score
from protfold_peft.structure import Chain

CA = 1


@dataclass(frozen=True, eq=False)
class LaidOver:
    """A model on its experiment.

    Attributes:
        model: `(n, 3)` CA of the model, moved onto the experiment, in angstrom.
        experiment: `(n, 3)` CA of the experiment.
        lddt: `(n,)` CA lDDT of every residue, 0..1.
        mean_lddt: CA lDDT of the chain, 0..1.
        tm: TM-score, 0..1.
    """

    model: np.ndarray
    experiment: np.ndarray
    lddt: np.ndarray
    mean_lddt: float
    tm: float


def lay_over(model: Chain, experiment: Chain) -> LaidOver:
    """Match residues, score, and superpose as the TM-score does. Every residue of the experiment is in the model."""
    index = correspond(model, experiment).model_index
    mobile = torch.tensor(model.atom_positions[index, CA])[None]
    target = torch.tensor(experiment.atom_positions[:, CA])[None]
    mask = torch.tensor(experiment.atom_mask[:, CA])[None]
    scored, fitted = lddt(mobile, target, mask), tm_score(mobile, target, mask)
    return LaidOver(
        fitted.superposition.apply(mobile)[0].numpy(),
        target[0].numpy(),
        scored.per_residue[0].numpy(),
        float(scored.score),
        float(fitted.score),
    )


def traces(panels: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str, low: float, high: float) -> None:
    """Draw CA traces side by side, seen along the thinnest direction of the first; what is nearer is larger.

    Args:
        panels: Title to CA `(n, 3)` and a value for every residue `(n,)`, which colours it.
        label: What the colours mean.
        low: Value of the darkest colour.
        high: Value of the lightest.
    """
    first = next(iter(panels.values()))[0]
    centre = first.mean(axis=0)
    directions = np.linalg.svd(first - centre, full_matrices=False)[2]
    figure, row = plt.subplots(1, len(panels), figsize=(3.4 * len(panels) + 0.8, 3.4), dpi=80, squeeze=False)
    for axes, (title, (ca, values)) in zip(row[0], panels.items()):
        x, y, z = ((ca - centre) @ directions.T).T
        order = np.argsort(z)
        sizes = 6 + 40 * (z - z.min()) / np.ptp(z)
        axes.plot(x, y, color="0.7", linewidth=1.5, zorder=0)
        points = axes.scatter(x[order], y[order], c=values[order], s=sizes[order], vmin=low, vmax=high, cmap="viridis")
        axes.set_title(title, fontsize=9)
        axes.set_aspect("equal")
        axes.axis("off")
    figure.colorbar(points, ax=row, label=label, shrink=0.8)
    plt.show()


def viewer(path: str | Path) -> None:
    """A structure to turn, coloured by its B-factors as pLDDT; nothing where `PROTFOLD_STATIC` is set."""
    if os.environ.get("PROTFOLD_STATIC"):
        return
    from ipymolstar import PDBeMolstar

    data = {"data": Path(path).read_text(encoding="utf-8"), "format": "pdb", "binary": False}
    display(PDBeMolstar(custom_data=data, alphafold_view=True, hide_water=True, height="380px"))
