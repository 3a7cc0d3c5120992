"""Geometry that no protein has: of the backbone, counted; of any part, taken out of the lDDT on request.

Axis letters: `b` batch, `n` residues, 37 atoms of `residues.ATOM_TYPES`, `k` bonds or angles of a residue.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protfold_peft.metrics.checks import check_masks, check_pair, masked
from protfold_peft.metrics.clashes import clashes
from protfold_peft.metrics.ideal_geometry import BACKBONE, angle, restraints
from protfold_peft.structure.geometry import PEPTIDE_BOND_CUTOFF, dihedral
from protfold_peft.structure.residues import ATOM_INDEX, ATOM_TYPES, BACKBONE_ATOMS, RESTYPE_INDEX

# wwPDB validation reports list bonds and angles more than five deviations from Engh & Huber's mean.
OUTLIER_Z = 5.0
# The lDDT of Mariani et al. (2013) leaves out what is more than twelve deviations off.
UNSOUND_Z = 12.0
# Peptides by omega, as MolProbity has them: cis within 30 degrees of 0, twisted more than 30 from both 0 and 180
# (Williams et al., Protein Sci. 27 (2018) 293).
OMEGA_TOLERANCE = 30.0


@dataclass(frozen=True, eq=False)
class BackboneGeometry:
    """What is odd about the backbones of a batch; all `(b,)` int64 counts.

    Attributes:
        bonds: Bonds measured: N-CA, CA-C, C-O, and the peptide bond.
        bond_outliers: Those more than `OUTLIER_Z` deviations off.
        angles: Angles measured: at CA, at C and at N.
        angle_outliers: Those more than `OUTLIER_Z` deviations off.
        peptides: Peptide bonds of no more than 2 A, whose omega could be measured.
        cis: Those with omega within 30 degrees of 0, before proline or any other residue.
        cis_not_proline: Those of them that are not before proline: rare (1 in 2,000) in real structures.
        twisted: Those with omega more than 30 degrees from 0 and from 180.
        breaks: Neighbours in sequence whose C and N are more than 2 A apart.
        mirrored: Residues whose CB lies where that of a D amino acid would.
    """

    bonds: Tensor
    bond_outliers: Tensor
    angles: Tensor
    angle_outliers: Tensor
    peptides: Tensor
    cis: Tensor
    cis_not_proline: Tensor
    twisted: Tensor
    breaks: Tensor
    mirrored: Tensor


@dataclass(frozen=True, eq=False)
class _Count:
    """`(b,)` of what was measured, and of what is odd among it."""

    measured: Tensor
    outliers: Tensor

    @classmethod
    def zeros(cls, like: Tensor) -> _Count:
        """Nothing counted yet, in the shape of `like`."""
        return cls(torch.zeros_like(like), torch.zeros_like(like))


@torch.no_grad()
def backbone_geometry(
    positions: Tensor, mask: Tensor, restypes: Tensor, residue_index: Tensor | None = None
) -> BackboneGeometry:
    """Count what is odd in backbones.

    Args:
        positions: `(b, n, 37, 3)` coordinates in angstrom, float32 or float64.
        mask: `(b, n, 37)` true where the atom exists.
        restypes: `(b, n)` residue types 0..20.
        residue_index: `(b, n)` numbers of residues: rows whose numbers follow each other are neighbours in sequence.
            By default all neighbouring rows are.

    Raises:
        ValueError: The shapes do not agree, or a coordinate that takes part is NaN or infinite
            (`NonFiniteCoordinatesError`).
    """
    placed, present = _checked(positions, mask, restypes, "backbone_geometry")
    if residue_index is not None and residue_index.shape != restypes.shape:
        raise ValueError(f"residue_index's shape {tuple(residue_index.shape)} is not {tuple(restypes.shape)}")
    atom = {name: placed[:, :, ATOM_INDEX[name]] for name in (*BACKBONE_ATOMS, "CB")}
    has = {name: present[:, :, ATOM_INDEX[name]] for name in atom}
    for name in ("N", "CA"):
        atom[name + "+"], has[name + "+"] = _next(atom[name]), _next(has[name])
    glycine, proline = (restypes == RESTYPE_INDEX[letter] for letter in "GP")
    following = torch.zeros_like(has["C"])
    following[:, :-1] = True if residue_index is None else residue_index[:, 1:] == residue_index[:, :-1] + 1
    joined = following & has["C"] & has["N+"]
    bonded = joined & ((atom["C"] - atom["N+"]).norm(dim=-1) <= PEPTIDE_BOND_CUTOFF)

    bonds = _Count.zeros(joined.sum(1))
    angles = _Count.zeros(joined.sum(1))
    for key, values in BACKBONE.items():
        names = key.split()
        points = [atom[name] for name in names]
        measured = torch.stack([has[name] for name in names]).all(0)
        across = any(name.endswith("+") for name in names)
        if across:
            measured = measured & bonded
        value = (points[0] - points[1]).norm(dim=-1) if len(points) == 2 else angle(*points)
        is_proline = _next(proline) if across else proline
        is_glycine = _next(glycine) if names[-1] == "CA+" else glycine
        kind = torch.where(is_proline, 2, is_glycine.long())
        mean, deviation = torch.tensor(values, dtype=value.dtype, device=value.device)[kind].unbind(-1)
        count = bonds if len(points) == 2 else angles
        count.measured.add_(measured.sum(1))
        count.outliers.add_((measured & ((value - mean).abs() > OUTLIER_Z * deviation)).sum(1))

    sine, cosine = dihedral(atom["CA"], atom["C"], atom["N+"], atom["CA+"]).unbind(-1)
    omega = torch.atan2(sine, cosine).rad2deg().abs()
    planar = bonded & has["CA"] & has["CA+"]
    cis = planar & (omega < OMEGA_TOLERANCE)
    twisted = planar & (omega >= OMEGA_TOLERANCE) & (omega <= 180 - OMEGA_TOLERANCE)
    n, c, cb = (atom[name] - atom["CA"] for name in ("N", "C", "CB"))
    handed = (torch.linalg.cross(n, c) * cb).sum(dim=-1)
    whole = has["N"] & has["CA"] & has["C"] & has["CB"] & ~glycine
    return BackboneGeometry(
        bonds=bonds.measured,
        bond_outliers=bonds.outliers,
        angles=angles.measured,
        angle_outliers=angles.outliers,
        peptides=planar.sum(1),
        cis=cis.sum(1),
        cis_not_proline=(cis & ~_next(proline)).sum(1),
        twisted=twisted.sum(1),
        breaks=(joined & ~bonded).sum(1),
        mirrored=(whole & (handed < 0)).sum(1),
    )


@torch.no_grad()
def sound_atoms(positions: Tensor, mask: Tensor, restypes: Tensor) -> Tensor:
    """`(b, n, 37)` bool: the atoms whose stereochemistry lets them count in an lDDT with stereochemistry checks.

    A bond or an angle within a residue that is more than 12 deviations off, or a clash (`clashes`), takes out the side
    chain from CB on; where a backbone atom is an end of the bond, the centre of the angle or part of the clash, the
    whole residue. Source: Mariani et al., Bioinformatics 29 (2013) 2722, section 2.4, with the rule of OpenStructure's
    `lddt -f`. The deviations are those of `ideal_geometry`, by class, not Engh & Huber's own for every angle.

    Args:
        positions: `(b, n, 37, 3)` coordinates in angstrom, float32 or float64. Rows in the order of the chain.
        mask: `(b, n, 37)` true where the atom exists.
        restypes: `(b, n)` residue types 0..20.

    Raises:
        ValueError: As `backbone_geometry`.
    """
    placed, present = _checked(positions, mask, restypes, "sound_atoms")
    backbone = torch.zeros(len(ATOM_TYPES), dtype=torch.bool, device=mask.device)
    backbone[[ATOM_INDEX[name] for name in BACKBONE_ATOMS]] = True
    touched = clashes(positions, present).atoms
    side_chain, whole = touched.any(-1), (touched & backbone).any(-1)
    for table in restraints():
        atoms = table.atoms.to(restypes.device)[restypes.long()]
        flat = atoms.flatten(2)
        points = placed.gather(2, flat[..., None].expand(*flat.shape, 3)).unflatten(2, atoms.shape[2:]).unbind(-2)
        exists = present.gather(2, flat).unflatten(2, atoms.shape[2:]).all(-1)
        exists &= table.exists.to(restypes.device)[restypes.long()]
        value = (points[0] - points[1]).norm(dim=-1) if len(points) == 2 else angle(*points)
        mean, deviation = (values.to(restypes.device)[restypes.long()] for values in (table.mean, table.deviation))
        off = exists & ((value - mean).abs() > UNSOUND_Z * deviation)
        decisive = backbone[atoms[..., 1]] if len(points) == 3 else backbone[atoms].any(-1)
        side_chain |= off.any(-1)
        whole |= (off & decisive).any(-1)
    return present & ~whole[..., None] & (backbone | ~side_chain[..., None])


def _checked(positions: Tensor, mask: Tensor, restypes: Tensor, what: str) -> tuple[Tensor, Tensor]:
    check_pair(positions, positions, what, dims=(4,))
    if positions.shape[2] != len(ATOM_TYPES) or restypes.shape != positions.shape[:2]:
        raise ValueError(
            f"{what} takes (batch, residues, {len(ATOM_TYPES)}, 3) coordinates and (batch, residues) types, "
            f"got {tuple(positions.shape)} and {tuple(restypes.shape)}"
        )
    present = check_masks(positions, mask, None)[0]
    return masked(positions, present, "predicted").double(), present


def _next(values: Tensor) -> Tensor:
    """`(b, n, ...)` values of the row after; zeros (false) after the last."""
    return torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
