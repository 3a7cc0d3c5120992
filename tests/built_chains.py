"""Chains built from torsions: all heavy atoms in place, with ideal bonds, and nothing owed to a file."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from protfold_peft.structure.geometry import (
    atom14_from_torsions,
    atom14_to_atom37,
    backbone_frames,
    restypes_of,
    rigid_groups,
)
from protfold_peft.structure.residues import ATOM37_MASK
from protfold_peft.structure.rigid import Rigid

# Every amino acid once, those with symmetric atoms (D E F Y) among them.
ALL_TWENTY = "ACDEFGHIKLMNPQRSTVWY"


@dataclass(frozen=True, eq=False)
class BuiltChain:
    """One chain as a batch of one: `frames` `(1, n, 8)`, `atom14` `(1, n, 14, 3)`, `atom37`, `mask` and `restypes`."""

    frames: Rigid
    atom14: Tensor
    atom37: Tensor
    mask: Tensor
    restypes: Tensor

    def padded(self, extra: int, value: float = 999.0) -> BuiltChain:
        """The same with `extra` residues at the end that hold `value` and are masked."""

        def add(tensor: Tensor, fill: float) -> Tensor:
            return torch.cat([tensor, tensor.new_full((1, extra, *tensor.shape[2:]), fill)], dim=1)

        return BuiltChain(
            frames=Rigid(add(self.frames.rotation, value), add(self.frames.translation, value)),
            atom14=add(self.atom14, value),
            atom37=add(self.atom37, value),
            mask=add(self.mask, False),
            restypes=add(self.restypes, 20),
        )

    def without(self, residue: int, *atoms: int) -> BuiltChain:
        """The same with these of the 37 atoms of a residue (all of them where none is named) missing."""
        mask = self.mask.clone()
        mask[:, residue, list(atoms) if atoms else slice(None)] = False
        return replace(self, mask=mask)


def build_chain(sequence: str, seed: int, *, dtype: torch.dtype = torch.float64) -> BuiltChain:
    """A chain whose residues follow each other 3.8 A apart in a random walk, turned and bent at random."""
    generator = torch.Generator().manual_seed(seed)
    restypes = restypes_of(sequence)[None]
    n = len(sequence)
    steps = torch.nn.functional.normalize(torch.randn(1, n, 3, dtype=torch.float64, generator=generator), dim=-1)
    turns = torch.randn(1, n, 4, dtype=torch.float64, generator=generator)
    backbone = Rigid.from_quaternion(turns, (3.8 * steps).cumsum(dim=1))
    angles = torch.randn(1, n, 7, 2, dtype=torch.float64, generator=generator)
    angles = torch.nn.functional.normalize(angles, dim=-1)
    atom14, _ = atom14_from_torsions(backbone, angles, restypes)
    return BuiltChain(
        frames=rigid_groups(backbone, angles, restypes).to(dtype),
        atom14=atom14.to(dtype),
        atom37=atom14_to_atom37(atom14, restypes).to(dtype),
        mask=torch.tensor(ATOM37_MASK)[restypes],
        restypes=restypes,
    )


def backbone_of(chain: BuiltChain) -> tuple[Rigid, Tensor]:
    """Backbone frames `(1, n)` and their mask."""
    return backbone_frames(chain.atom37, chain.mask)
