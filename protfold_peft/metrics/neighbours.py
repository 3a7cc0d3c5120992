"""Pairs of atoms of different residues that lie near each other in the reference, a bounded number at a time.

A block of all distances is computed in float32, which says which pairs may be near; those few are measured in float64.

Axis letters: `b` batch, `n` residues, `a` atoms per residue, `m` atoms of one structure (those of the reference, in
the order of residues, padded), `r` rows and `c` columns of a block, `p` pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

# Distances computed at a time: on a CPU what its caches hold, on a GPU what keeps it busy; 4 bytes each, some three
# arrays of them live, and 100 bytes for every pair found near.
BLOCK_CPU = 1 << 18
BLOCK_GPU = 1 << 25
MOST_BANDS = 8
# float32 of centred coordinates is good to 1e-4 A in structures a thousand angstrom wide.
_MARGIN = 0.01
# Padding of columns lies here, that of rows at the opposite place: beyond any radius of any atom and of each other, and
# the squares still fit in float32.
_FAR = 1e9


@dataclass(frozen=True, eq=False)
class Atoms:
    """The reference's atoms of a batch in a row, `b m` of them with padding.

    Attributes:
        positions: `(b m, 6)` float64: x y z in the reference, and in the model, NaN where the model lacks the atom.
        residue: `(b m,)` int64 place of the atom's residue among the `b n` of the batch.
        place: `(b, m)` int64 place of the atom among the `n a` of its sample.
        present: `(b, m)` bool, false for padding.
        n_residues: `b n`.
        most_per_residue: `a`.
    """

    positions: Tensor
    residue: Tensor
    place: Tensor
    present: Tensor
    n_residues: int
    most_per_residue: int

    @classmethod
    def of(cls, model: Tensor, target: Tensor, in_reference: Tensor, in_model: Tensor) -> Atoms:
        """From `(b, n, a, 3)` coordinates and `(b, n, a)` masks."""
        n_batch, n, n_atoms = in_reference.shape
        present = in_reference.flatten(1)
        most = int(present.sum(dim=1).max()) if present.numel() else 0
        place = (~present).byte().argsort(dim=1, stable=True)[:, :most]
        sample = torch.arange(n_batch, device=place.device)[:, None]
        return cls(
            positions=torch.cat([_rows(target, place), _model_rows(model, in_model, place)], dim=1),
            residue=(sample * n + place // n_atoms).flatten(),
            place=place,
            present=present.gather(1, place),
            n_residues=n_batch * n,
            most_per_residue=n_atoms,
        )

    def with_model(self, model: Tensor, in_model: Tensor) -> Atoms:
        """The same reference with another model: `(b, n, a, 3)` coordinates and `(b, n, a)` mask."""
        positions = torch.cat([self.positions[:, :3], _model_rows(model, in_model, self.place)], dim=1)
        return replace(self, positions=positions)


def _rows(positions: Tensor, place: Tensor) -> Tensor:
    """`(b m, 3)` float64 of `(b, n, a, 3)` positions."""
    return positions.flatten(1, 2).gather(1, place[..., None].expand(-1, -1, 3)).double().flatten(0, 1)


def _model_rows(model: Tensor, in_model: Tensor, place: Tensor) -> Tensor:
    rows = _rows(model, place)
    # A distance to NaN is within no threshold: what the model lacks fails without being asked for again.
    return rows.masked_fill_(~in_model.flatten(1).gather(1, place).flatten()[:, None], torch.nan)


@dataclass(frozen=True, eq=False)
class Near:
    """Pairs of atoms near each other in the reference.

    Attributes:
        first: `(p,)` place of one atom among the `b m`.
        second: `(p,)` of the other.
        distances: `(p, 2)` float64 in the reference and in the model, in angstrom; NaN where the model lacks an atom.
        judged: `(p,)` bool, false for a few pairs a hair's breadth beyond the radius.
    """

    first: Tensor
    second: Tensor
    distances: Tensor
    judged: Tensor

    @classmethod
    def of(cls, atoms: Atoms, first: Tensor, second: Tensor, radius: float) -> Near:
        """The pairs `first`, `second`, `(p,)` each, with their distances; `radius` in angstrom."""
        distances = pair_distances(atoms, first, second)
        return cls(first, second, distances, distances[:, 0] <= radius)


def pair_distances(atoms: Atoms, first: Tensor, second: Tensor) -> Tensor:
    """`(p, 2)` distances in the reference and in the model."""
    difference = atoms.positions.index_select(0, first).sub_(atoms.positions.index_select(0, second))
    x, y, z = difference.square_().view(-1, 2, 3).unbind(dim=-1)
    return (x + y).add_(z).sqrt_()


@dataclass(frozen=True, eq=False)
class _Side:
    """One side of a block: float32 `(3, b, r)` positions, `(b, r)` residues (-1 in padding), `(b, r)` places."""

    position: Tensor
    residue: Tensor
    place: Tensor

    @classmethod
    def of(cls, atoms: Atoms, keep: Tensor, far: float) -> _Side:
        """Those atoms, in order, that `(b, m)` `keep` says; padding lies at `far`."""
        n_batch, width = keep.shape
        most = int(keep.sum(dim=1).max()) if keep.numel() else 0
        order = (~keep).byte().argsort(dim=1, stable=True)[:, :most]
        kept = keep.gather(1, order)
        place = order + torch.arange(n_batch, device=keep.device)[:, None] * width
        target = atoms.positions[:, :3].view(n_batch, width, 3)
        count = atoms.present.sum(dim=1).clamp_min(1)[:, None]
        centre = torch.where(atoms.present[..., None], target, 0.0).sum(dim=1) / count
        position = target.gather(1, order[..., None].expand(-1, -1, 3)) - centre[:, None]
        position = torch.where(kept[..., None], position, far)
        residue = torch.where(kept, atoms.residue[place], -1)
        return cls(position.permute(2, 0, 1).float().contiguous(), residue.int(), place)

    def part(self, samples: slice, atoms: slice) -> _Side:
        """The atoms of a slice, in a slice of the samples."""
        return _Side(self.position[:, samples, atoms], self.residue[samples, atoms], self.place[samples, atoms])


def neighbour_pairs(atoms: Atoms, radius: float, kind: Tensor | None = None) -> Iterator[Near]:
    """Pairs within `radius` in the reference, block by block.

    Args:
        atoms: The atoms; results are places among their `b m`.
        radius: In angstrom.
        kind: `(b m,)` bool. Where given, the pairs are those of a first atom where it is true and a second where it is
            false. Otherwise every pair comes once.
    """
    kind = None if kind is None else kind.view(atoms.present.shape)
    rows = _Side.of(atoms, atoms.present if kind is None else atoms.present & kind, -_FAR)
    columns = _Side.of(atoms, atoms.present if kind is None else atoms.present & ~kind, _FAR)
    n_batch, n_rows = rows.place.shape
    n_columns = columns.place.shape[1]
    if not n_rows or not n_columns:
        return
    budget = BLOCK_CPU if atoms.residue.device.type == "cpu" else BLOCK_GPU
    # A few bands of rows, for each of which columns before it need no look when every pair is to come once; where there
    # is little to look at, fewer blocks count for more than that.
    blocks = n_batch * n_rows * n_columns // budget
    bands = 1 if kind is not None else min(MOST_BANDS, max(1, blocks))
    n_band = max(1, min(-(-n_rows // bands), budget // n_columns))
    n_samples = max(1, budget // (n_band * n_columns))
    for sample in range(0, n_batch, n_samples):
        samples = slice(sample, sample + n_samples)
        for row in range(0, n_rows, n_band):
            from_column = row if kind is None else 0
            first, second = _screened(
                rows.part(samples, slice(row, row + n_band)),
                columns.part(samples, slice(from_column, n_columns)),
                radius,
                kind is None,
                atoms.most_per_residue,
            )
            if len(first):
                yield Near.of(atoms, first, second, radius)


def _screened(rows: _Side, columns: _Side, radius: float, once: bool, most_per_residue: int) -> tuple[Tensor, Tensor]:
    """Places of pairs that may be near, `(p,)` each."""
    square: Tensor | None = None
    for axis in range(3):
        difference = rows.position[axis][:, :, None] - columns.position[axis][:, None, :]
        square = difference.square_() if square is None else square.addcmul_(difference, difference)
    assert square is not None
    near = square <= (radius + _MARGIN) ** 2
    # Atoms come in the order of residues, so every pair of different residues is met once where the row's is lower.
    # Columns start with the rows' own atoms; those further on than a residue has atoms cannot share one.
    shared = slice(0, rows.place.shape[1] + most_per_residue) if once else slice(None)
    compare = torch.lt if once else torch.ne
    near[:, :, shared] &= compare(rows.residue[:, :, None], columns.residue[:, None, shared])
    n_samples, n_rows, n_columns = near.shape
    found = _places(near)
    line = torch.repeat_interleave(near.sum(dim=2, dtype=torch.int32).flatten(), output_size=len(found))
    # From a place in the block to one among the columns of all samples.
    lines = torch.arange(n_samples * n_rows, device=near.device)
    step = (lines // n_rows - lines) * n_columns
    second = columns.place.flatten().index_select(0, found.add_(step.index_select(0, line)))
    return rows.place.flatten().index_select(0, line), second


def _places(near: Tensor) -> Tensor:
    """`(p,)` where a contiguous tensor of bool is true, counted through all its axes."""
    if near.device.type == "cpu":
        # Four times as fast as torch's.
        return torch.from_numpy(np.flatnonzero(near.numpy()))
    return near.flatten().nonzero().squeeze(1)
