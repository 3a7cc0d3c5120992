"""Atoms, backbone frames and torsions of proteins, each computed from the others; differentiable, any device and dtype.

Axis letters: `...` batch axes, `n` residues, 37 or 14 atoms (`residues.ATOM_TYPES`, `residues.ATOM14_NAMES`), 8 rigid
groups, 7 torsions (omega, phi, psi, chi1..chi4) as (sine, cosine). `restypes` are residue types, 0..20, `(..., n)`.
Coordinates in angstrom. Source: Jumper et al. 2021 (AlphaFold 2), supplement 1.8 and algorithms 21 and 24.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from protfold_peft.structure import residues
from protfold_peft.structure.rigid import DEGENERATE_LENGTH, Rigid

# Two residues are joined when C and N are closer than this; a peptide bond has 1.33 angstrom.
PEPTIDE_BOND_CUTOFF = 2.0


@cache
def _constant(name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Made outside inference mode even when first asked for inside it: the cached tensor also serves training.
    with torch.inference_mode(False):
        return torch.tensor(getattr(residues, name), dtype=dtype, device=device)


def _of_types(name: str, restypes: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of the constant `residues.<name>` for every residue: `(..., n, *row)`."""
    return _constant(name, dtype, restypes.device)[restypes]


def virtual_cb(n: Tensor, ca: Tensor, c: Tensor) -> Tensor:
    """Ideal CB positions `(..., 3)` from those of N, CA and C, with the constants of ESMFold's distogram."""
    b = ca - n
    c_vector = c - ca
    a = torch.linalg.cross(b, c_vector)
    return -0.58273431 * a + 0.56802827 * b - 0.54067466 * c_vector + ca


def dihedral(p1: Tensor, p2: Tensor, p3: Tensor, p4: Tensor) -> Tensor:
    """Sine and cosine `(..., 2)` of the dihedral angle around `p2 - p3` (IUPAC sign).

    Where it is not defined (three points on a line) the angle is 0 and has zero gradient.
    """
    b1, b2, b3 = p2 - p1, p3 - p2, p4 - p3
    normal = torch.linalg.cross(b2, b3)
    length = (b2 * b2).sum(-1).clamp_min(DEGENERATE_LENGTH**2).sqrt()
    sine = length * (b1 * normal).sum(-1)
    cosine = (torch.linalg.cross(b1, b2) * normal).sum(-1)
    pair = torch.stack([sine, cosine], dim=-1)
    flat = ((pair * pair).sum(-1) < DEGENERATE_LENGTH**4)[..., None]
    pair = torch.where(flat, pair.new_tensor([0.0, 1.0]), pair)
    return pair / pair.norm(dim=-1, keepdim=True)


def backbone_frames(positions: Tensor, mask: Tensor | None = None) -> tuple[Rigid, Tensor]:
    """Frames of the residues: origin CA, x axis towards C, N in the xy plane.

    Args:
        positions: `(..., n, k, 3)` with N, CA, C as the first three of the `k` atoms: atom37, atom14, or these alone.
        mask: `(..., n, k)` bool, which atoms there are; all of them where not given.

    Returns:
        Frames `(..., n)` and a bool mask `(..., n)`, true where all three atoms are present.
    """
    n, ca, c = positions[..., :3, :].unbind(-2)
    present = mask[..., :3].bool().all(-1) if mask is not None else torch.ones_like(ca[..., 0], dtype=torch.bool)
    return Rigid.from_three_points(n, ca, c), present


def backbone_from_frames(frames: Rigid, restypes: Tensor | None = None) -> Tensor:
    """Ideal N, CA, C `(..., n, 3, 3)` of frames `(..., n)`; of alanine's geometry where no residue types are given."""
    device, dtype = frames.translation.device, frames.translation.dtype
    if restypes is None:
        restypes = torch.zeros(frames.shape, dtype=torch.long, device=device)
    # An unknown residue has no ideal side chain, but a backbone: alanine's.
    known = torch.where(restypes == residues.UNKNOWN, 0, restypes)
    return frames[..., None].apply(_of_types("ATOM14_POSITIONS", known, dtype)[..., :3, :])


def peptide_bonds(positions: Tensor, mask: Tensor, cutoff: float = PEPTIDE_BOND_CUTOFF) -> Tensor:
    """`(..., n)` bool: the residue is joined to the one before it (C-N below `cutoff`); false for the first.

    Args:
        positions: `(..., n, k, 3)` with N, CA, C as the first three atoms.
        mask: `(..., n, k)` bool.
        cutoff: In angstrom.
    """
    n, c = positions[..., 1:, 0, :], positions[..., :-1, 2, :]
    near = ((n - c) ** 2).sum(-1) < cutoff**2
    joined = near & mask[..., 1:, 0].bool() & mask[..., :-1, 2].bool()
    return torch.cat([torch.zeros_like(mask[..., :1, 0], dtype=torch.bool), joined], dim=-1)


def _take_atoms(values: Tensor, places: Tensor, present: Tensor) -> Tensor:
    """Gather along the atom axis (the one after the residues) and zero what is not present."""
    axis = places.ndim - 1
    trailing = (1,) * (values.ndim - places.ndim)
    places = places.reshape(*places.shape, *trailing).expand(*places.shape, *values.shape[axis + 1 :])
    taken = values.gather(axis, places)
    return torch.where(present.reshape(*present.shape, *trailing), taken, torch.zeros_like(taken))


def atom14_to_atom37(values: Tensor, restypes: Tensor) -> Tensor:
    """`(..., n, 14, *)` values (positions, masks, anything per atom) in the 37-atom layout, `(..., n, 37, *)`.

    Atoms a residue type does not have are 0 (false).
    """
    places = _of_types("ATOM37_TO_ATOM14", restypes, torch.long)
    return _take_atoms(values, places, _of_types("ATOM37_MASK", restypes, torch.bool))


def atom37_to_atom14(values: Tensor, restypes: Tensor) -> Tensor:
    """`(..., n, 37, *)` values in the 14-atom layout, `(..., n, 14, *)`; OXT and unknown residues have no place."""
    places = _of_types("ATOM14_TO_ATOM37", restypes, torch.long)
    return _take_atoms(values, places, _of_types("ATOM14_MASK", restypes, torch.bool))


def swap_ambiguous(values: Tensor, restypes: Tensor) -> Tensor:
    """`(..., n, 14, *)` values under the other naming of symmetric atoms (OD1/OD2, OE1/OE2, CD1/CD2 with CE1/CE2)."""
    places = _of_types("ATOM14_SWAP", restypes, torch.long)
    return _take_atoms(values, places, torch.ones_like(places, dtype=torch.bool))


@dataclass(frozen=True, eq=False)
class Torsions:
    """The seven torsions of residues.

    Attributes:
        sin_cos: `(..., n, 7, 2)` omega, phi, psi, chi1..chi4; (0, 1) where masked.
        alternative: The same under the other naming of symmetric atoms: half a turn on for those chi angles.
        mask: `(..., n, 7)` bool, true where all four atoms are present (and, for omega and phi, the bond before is).
    """

    sin_cos: Tensor
    alternative: Tensor
    mask: Tensor


def torsions(positions: Tensor, mask: Tensor, restypes: Tensor) -> Torsions:
    """Torsions from the atoms.

    Omega and phi of a residue lie across the bond to the residue before. Psi is measured on the residue's own O and
    turned by half a turn, as AlphaFold 2 does: the last residue has one, and O is rebuilt where it was.

    Args:
        positions: `(..., n, 37, 3)`.
        mask: `(..., n, 37)` bool.
        restypes: `(..., n)`.
    """
    mask = mask.bool()
    n, ca, c, _, o = positions[..., :5, :].unbind(-2)
    has_n, has_ca, has_c, _, has_o = mask[..., :5].unbind(-1)
    joined = peptide_bonds(positions, mask)
    # The first residue stands in for the one before it; `joined` masks it.
    before_ca, before_c = (torch.cat([x[..., :1, :], x[..., :-1, :]], dim=-2) for x in (ca, c))
    before_has_ca = torch.cat([has_ca[..., :1], has_ca[..., :-1]], dim=-1)

    omega = dihedral(before_ca, before_c, n, ca)
    phi = dihedral(before_c, n, ca, c)
    psi = -dihedral(n, ca, c, o)
    places = _of_types("CHI_ATOMS", restypes, torch.long)
    flat = places.flatten(-2)
    atoms = positions.gather(-2, flat[..., None].expand(*flat.shape, 3)).unflatten(-2, (4, 4))
    chi = dihedral(*atoms.unbind(-2))
    chi_mask = mask.gather(-1, flat).unflatten(-1, (4, 4)).all(-1) & _of_types("CHI_MASK", restypes, torch.bool)

    backbone = has_n & has_ca & has_c
    backbone_masks = [joined & before_has_ca & has_ca, joined & backbone, backbone & has_o]
    full_mask = torch.cat([torch.stack(backbone_masks, dim=-1), chi_mask], dim=-1)
    sin_cos = torch.cat([torch.stack([omega, phi, psi], dim=-2), chi], dim=-2)
    sin_cos = torch.where(full_mask[..., None], sin_cos, sin_cos.new_tensor([0.0, 1.0]))
    half_turn = _of_types("CHI_PI_PERIODIC", restypes, torch.bool)
    turned = torch.cat([torch.zeros_like(full_mask[..., :3]), half_turn & chi_mask], dim=-1)
    return Torsions(sin_cos, torch.where(turned[..., None], -sin_cos, sin_cos), full_mask)


def rigid_groups(backbone: Rigid, sin_cos: Tensor, restypes: Tensor) -> Rigid:
    """Frames `(..., n, 8)` of all rigid groups from backbone frames `(..., n)` and torsions `(..., n, 7, 2)`.

    Algorithm 24, lines 1 to 10. Sines and cosines are used as they are: give them length 1.
    """
    dtype = backbone.translation.dtype
    defaults = _of_types("GROUP_FRAMES", restypes, dtype)
    default = Rigid(defaults[..., :3, :3], defaults[..., :3, 3])
    # A turn about x for each group; the backbone itself is not turned.
    still = sin_cos.new_tensor([0.0, 1.0]).expand(*sin_cos.shape[:-2], 1, 2)
    sine, cosine = torch.cat([still, sin_cos], dim=-2).to(dtype).unbind(-1)
    zero, one = torch.zeros_like(sine), torch.ones_like(sine)
    turn = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], dim=-1).unflatten(-1, (3, 3))
    local = default.compose(Rigid(turn, torch.zeros_like(default.translation)))

    # Omega, phi, psi and chi1 hang on the backbone, each further chi on the one before.
    frames = [backbone.compose(local[..., group]) for group in range(5)]
    for group in range(5, 8):
        frames.append(frames[-1].compose(local[..., group]))
    return Rigid(
        torch.stack([frame.rotation for frame in frames], dim=-3),
        torch.stack([frame.translation for frame in frames], dim=-2),
    )


def atom14_from_groups(groups: Rigid, restypes: Tensor) -> Tensor:
    """Ideal positions `(..., n, 14, 3)` of the atoms of rigid groups `(..., n, 8)`; 0 where a type has no atom."""
    group = _of_types("ATOM14_GROUP", restypes, torch.long)
    rotation = groups.rotation.gather(-3, group[..., None, None].expand(*group.shape, 3, 3))
    translation = groups.translation.gather(-2, group[..., None].expand(*group.shape, 3))
    local = _of_types("ATOM14_POSITIONS", restypes, translation.dtype)
    positions = Rigid(rotation, translation).apply(local)
    return positions * _of_types("ATOM14_MASK", restypes, positions.dtype)[..., None]


def atom14_from_torsions(backbone: Rigid, sin_cos: Tensor, restypes: Tensor) -> tuple[Tensor, Tensor]:
    """All heavy atoms from backbone frames `(..., n)` and torsions `(..., n, 7, 2)` (algorithm 24).

    Returns:
        Positions `(..., n, 14, 3)` with ideal bond lengths and angles, and the mask `(..., n, 14)` of the atoms that
        the residue types have.
    """
    positions = atom14_from_groups(rigid_groups(backbone, sin_cos, restypes), restypes)
    return positions, _of_types("ATOM14_MASK", restypes, torch.bool)


def groups_from_atoms(positions: Tensor, mask: Tensor, restypes: Tensor) -> tuple[Rigid, Tensor]:
    """Frames of all rigid groups measured on the atoms: the truth that side-chain losses compare with.

    Args:
        positions: `(..., n, 37, 3)`.
        mask: `(..., n, 37)` bool.
        restypes: `(..., n)`.

    Returns:
        Frames `(..., n, 8)` and their bool mask: true where the group is one of the residue type's (backbone, psi and
        its chi angles; omega and phi place no heavy atom) and its three atoms are present.
    """
    places = _of_types("GROUP_BASE_ATOMS", restypes, torch.long)
    flat = places.flatten(-2)
    points = positions.gather(-2, flat[..., None].expand(*flat.shape, 3)).unflatten(-2, (8, 3))
    before, origin, plane = points.unbind(-2)
    present = mask.bool().gather(-1, flat).unflatten(-1, (8, 3)).all(-1)
    # The x axis runs from `before` to the origin and beyond, but towards C for the backbone, whose `before` is C.
    sign = torch.ones(8, dtype=positions.dtype, device=positions.device)
    sign[0] = -1
    ahead = origin + sign[:, None] * (origin - before)
    return Rigid.from_three_points(plane, origin, ahead), present & _of_types("GROUP_MASK", restypes, torch.bool)


def restypes_of(sequence: str, device: torch.device | str | None = None) -> Tensor:
    """`(n,)` residue types of one-letter codes, as a tensor."""
    return torch.as_tensor(np.array(residues.sequence_to_restypes(sequence)), device=device)
