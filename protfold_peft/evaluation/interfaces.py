"""Interface scores of a matched complex: DockQ of every interface of the reference, QS-score of all contacts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from protfold_peft.evaluation.matching import Link, Matched
from protfold_peft.metrics.interface import ChainPositions, Interface, qs_score, score_interface
from protfold_peft.structure.residues import ATOM_INDEX
from protfold_peft.structure.types import Chain


@dataclass(frozen=True)
class ComplexScores:
    """Interfaces of a complex.

    Attributes:
        interfaces: Chains of the reference, those of the model (None where one is missing), and scores.
        dockq: Mean over the interfaces, 0..1; NaN where the reference has none.
        qs_score: Over all contacts of both complexes, 0..1; NaN where there is none.
    """

    interfaces: tuple[tuple[str, str | None, Interface], ...]
    dockq: float
    qs_score: float


def score_complex(pair: Matched) -> ComplexScores:
    """Interfaces between the reference's chains, taken by id, so that the order in the file does not matter.

    An interface with a chain that the model lacks has no contact left and a DockQ of 0.
    """
    places = [(link, start) for link, start in zip(pair.links, np.cumsum([0, *pair.chain_lengths]), strict=False)]
    places.sort(key=lambda place: place[0].reference.id)
    found = []
    for (first, first_start), (second, second_start) in combinations(places, 2):
        scores = score_interface(_positions(pair, first, first_start), _positions(pair, second, second_start))
        if scores is not None:
            found.append((_name(first.reference, second.reference), _partners(first, second), scores))
    values = [scores.dockq for _, _, scores in found]
    qs = qs_score(
        [_cb(link.reference) for link in pair.links], [_cb(chain) for chain in pair.model.chains], _rows(pair.links)
    )
    return ComplexScores(tuple(found), float(np.mean(values)) if values else float("nan"), qs.overall)


def _positions(pair: Matched, link: Link, start: int) -> ChainPositions:
    span = slice(int(start), int(start) + len(link.reference))
    arrays = (pair.reference_positions, pair.reference_mask, pair.model_positions, pair.model_mask)
    return ChainPositions(*(torch.from_numpy(np.ascontiguousarray(array[span])) for array in arrays))


def _rows(links: tuple[Link, ...]) -> list[tuple[int, torch.Tensor]]:
    return [
        (link.place, torch.from_numpy(link.residues.model_index))
        if link.residues is not None
        else (-1, torch.full((len(link.reference),), -1))
        for link in links
    ]


def _cb(chain: Chain) -> tuple[torch.Tensor, torch.Tensor]:
    """`(n, 3)` CB, CA of glycine, and `(n,)` which are there."""
    atoms = np.where([letter == "G" for letter in chain.sequence], ATOM_INDEX["CA"], ATOM_INDEX["CB"])
    rows = np.arange(len(chain))
    return torch.from_numpy(chain.atom_positions[rows, atoms]), torch.from_numpy(chain.atom_mask[rows, atoms])


def _name(first: Chain, second: Chain) -> str:
    return f"{first.id}-{second.id}"


def _partners(first: Link, second: Link) -> str | None:
    return None if first.model is None or second.model is None else _name(first.model, second.model)
