"""Pairs of atoms of different residues that lie near each other in the reference, a bounded number at a time.

A block of all distances is computed in float32, which says which pairs may be near; those few are measured in float64.

Axis letters: `b` batch, `n` residues, `a` atoms per residue, `m` atoms of one structure (those of the reference, in
the order of residues, padded), `r` rows and `c` columns of a block, `p` pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Distances computed at a time: on a CPU what its caches hold, on a GPU what keeps it busy; 4 bytes each, some three
# arrays of them live, and 100 bytes for every pair found near.
BLOCK_CPU = 1 << 18
BLOCK_GPU = 1 << 25
# float32 of centred coordinates is good to 1e-4 A in structures a thousand angstrom wide.
_MARGIN = 0.01
# Padding lies here: beyond any radius, and its square still fits in float32.
_FAR = 1e9


@dataclass(frozen=True, eq=False)
class Atoms:
    """The reference's atoms of a batch in a row, `b m` of them with padding.

    Attributes:
        model: `(b m, 3)` float64 positions in the model.
        target: `(b m, 3)` float64 positions in the reference; `_FAR` in padding.
        in_model: `(b m,)` bool, the model has the atom.
        residue: `(b m,)` int64 place of the atom's residue among the `b n` of the batch.
        place: `(b, m)` int64 place of the atom among the `n a` of its sample.
        present: `(b, m)` bool, false for padding.
        n_residues: `b n`.
    """

    model: Tensor
    target: Tensor
    in_model: Tensor
    residue: Tensor
    place: Tensor
    present: Tensor
    n_residues: int

    @classmethod
    def of(cls, model: Tensor, target: Tensor, in_reference: Tensor, in_model: Tensor) -> Atoms:
        """From `(b, n, a, 3)` coordinates and `(b, n, a)` masks."""
        n_batch, n, n_atoms = in_reference.shape
        present = in_reference.flatten(1)
        most = int(present.sum(dim=1).max()) if present.numel() else 0
        place = (~present).byte().argsort(dim=1, stable=True)[:, :most]
        present = present.gather(1, place)
        sample = torch.arange(n_batch, device=place.device)[:, None]
        positions = torch.where(present[..., None], _rows(target, place), _FAR)
        return cls(
            model=_rows(model, place).flatten(0, 1),
            target=positions.flatten(0, 1),
            in_model=(in_model.flatten(1).gather(1, place) & present).flatten(),
            residue=(sample * n + place // n_atoms).flatten(),
            place=place,
            present=present,
            n_residues=n_batch * n,
        )

    def repack(self, model: Tensor, in_model: Tensor) -> tuple[Tensor, Tensor]:
        """`(b m, 3)` and `(b m,)` for other positions, `(b, n, a, 3)`, of the model's atoms, and their mask."""
        kept = in_model.flatten(1).gather(1, self.place) & self.present
        return _rows(model, self.place).flatten(0, 1), kept.flatten()


def _rows(positions: Tensor, place: Tensor) -> Tensor:
    """`(b, m, 3)` float64 of `(b, n, a, 3)` positions."""
    return positions.flatten(1, 2).gather(1, place[..., None].expand(-1, -1, 3)).double()


@dataclass(frozen=True, eq=False)
class _Side:
    """One side of a block: float32 `(3, b, r)` positions, `(b, r)` residues (-1 in padding), `(b, r)` places."""

    position: Tensor
    residue: Tensor
    place: Tensor

    @classmethod
    def of(cls, atoms: Atoms, keep: Tensor) -> _Side:
        """Those atoms, in order, that `(b, m)` `keep` says."""
        n_batch, width = keep.shape
        most = int(keep.sum(dim=1).max()) if keep.numel() else 0
        order = (~keep).byte().argsort(dim=1, stable=True)[:, :most]
        kept = keep.gather(1, order)
        place = order + torch.arange(n_batch, device=keep.device)[:, None] * width
        target = atoms.target.view(n_batch, width, 3)
        count = atoms.present.sum(dim=1).clamp_min(1)[:, None]
        centre = torch.where(atoms.present[..., None], target, 0.0).sum(dim=1) / count
        position = torch.where(kept[..., None], atoms.target[place] - centre[:, None], _FAR)
        residue = torch.where(kept, atoms.residue[place], -1)
        return cls(position.permute(2, 0, 1).float().contiguous(), residue.int(), place)


def neighbour_pairs(atoms: Atoms, radius: float, kind: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pairs within `radius` in the reference: `(p,)` first, `(p,)` second, `(p,)` float64 distance, block by block.

    Args:
        atoms: The atoms; results are places among their `b m`.
        radius: In angstrom.
        kind: `(b m,)` bool. Where given, the pairs are those of a first atom where it is true and a second where it is
            false. Otherwise every pair comes once.
    """
    kind = None if kind is None else kind.view(atoms.present.shape)
    rows = _Side.of(atoms, atoms.present if kind is None else atoms.present & kind)
    columns = rows if kind is None else _Side.of(atoms, atoms.present & ~kind)
    n_batch, n_rows = rows.place.shape
    n_columns = columns.place.shape[1]
    if not n_rows or not n_columns:
        return
    budget = BLOCK_CPU if atoms.model.device.type == "cpu" else BLOCK_GPU
    # A few bands of rows, for each of which columns before it need no look when every pair is to come once.
    bands = 1 if kind is not None else 4
    n_band = max(1, min(-(-n_rows // bands), budget // n_columns))
    n_samples = max(1, budget // (n_band * n_columns))
    for sample in range(0, n_batch, n_samples):
        for row in range(0, n_rows, n_band):
            own = slice(sample, sample + n_samples), slice(row, row + n_band)
            other = slice(sample, sample + n_samples), slice(row if kind is None else 0, n_columns)
            pairs = _near(atoms, rows, columns, own, other, radius, once=kind is None)
            if len(pairs[0]):
                yield pairs


def _near(
    atoms: Atoms,
    rows: _Side,
    columns: _Side,
    own: tuple[slice, slice],
    other: tuple[slice, slice],
    radius: float,
    once: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    square: Tensor | None = None
    for axis in range(3):
        difference = rows.position[axis][own][:, :, None] - columns.position[axis][other][:, None, :]
        square = difference.square_() if square is None else square.addcmul_(difference, difference)
    assert square is not None
    row_residue, column_residue = rows.residue[own][:, :, None], columns.residue[other][:, None, :]
    # Atoms come in the order of residues, so every pair of different residues is met once in this order.
    apart = row_residue < column_residue if once else row_residue != column_residue
    sample, row, column = (apart.logical_and_(square <= (radius + _MARGIN) ** 2)).nonzero(as_tuple=True)
    first, second = rows.place[own][sample, row], columns.place[other][sample, column]
    distance = torch.linalg.vector_norm(atoms.target[first] - atoms.target[second], dim=-1)
    near = distance <= radius
    return first[near], second[near], distance[near]
