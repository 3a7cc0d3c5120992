"""Scores of the interfaces of a complex: contacts kept, backbone distances, DockQ, and QS-score.

Sources: DockQ: Basu & Wallner, "DockQ: a quality measure for protein-protein docking models", PLoS ONE 11 (2016)
e0161879. Fnat, iRMSD, LRMSD: Lensink, Mendez & Wodak, Proteins 69 (2007) 704. QS-score: Bertoni et al., "Modeling
protein quaternary structure of homo- and hetero-oligomers", Sci. Rep. 7 (2017) 10480.

Axis letters: `n`, `m` residues of two chains, `a` atoms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protfold_peft.metrics.checks import masked
from protfold_peft.metrics.superpose import superpose
from protfold_peft.structure.residues import ATOM_INDEX, BACKBONE_ATOMS

# Two residues are in contact below the first distance of any heavy atoms, and at the interface below the second (A).
CONTACT = 5.0
INTERFACE = 10.0
# Distances (A) at which the two terms of DockQ are one half.
_IRMSD_SCALE, _LRMSD_SCALE = 1.5, 8.5
# QS-score: CB distances below the first count, fully below the second, and fall off with the third (A).
QS_CONTACT, _QS_FULL, _QS_WIDTH = 12.0, 5.0, 4.28

_BACKBONE = [ATOM_INDEX[name] for name in BACKBONE_ATOMS]
# Rows of the matrix of atom distances worked on at once.
_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class ChainPositions:
    """A chain of the reference and what the model has of it, residue by residue.

    Attributes:
        reference: `(n, 37, 3)` coordinates in angstrom.
        reference_mask: `(n, 37)` which atoms are there.
        model: `(n, 37, 3)` coordinates of the model's matched residues, in the reference's order.
        model_mask: `(n, 37)` which atoms are there; none for residues that have no partner.
    """

    reference: Tensor
    reference_mask: Tensor
    model: Tensor
    model_mask: Tensor

    def __len__(self) -> int:
        return self.reference.shape[0]


@dataclass(frozen=True)
class Interface:
    """How well one interface of the reference is modelled.

    Attributes:
        fnat: Fraction of the reference's contacts that the model has, 0..1.
        fnonnat: Fraction of the model's contacts (between matched residues) that the reference lacks, 0..1.
        irmsd: RMSD of the interface's backbone (N, CA, C, O), superposed on itself, in angstrom.
        lrmsd: RMSD of the ligand's backbone after superposing the receptor's, in angstrom.
        dockq: Their summary, 0..1; above 0.23 acceptable, 0.49 medium, 0.80 high.
        n_contacts: Contacts of the reference.
    """

    fnat: float
    fnonnat: float
    irmsd: float
    lrmsd: float
    dockq: float
    n_contacts: int


def dockq(fnat: float, irmsd: float, lrmsd: float) -> float:
    """DockQ of its three parts: their mean, the two distances (angstrom) mapped to 0..1 (Basu & Wallner, eq. 1-2)."""
    return (fnat + 1 / (1 + (irmsd / _IRMSD_SCALE) ** 2) + 1 / (1 + (lrmsd / _LRMSD_SCALE) ** 2)) / 3


def score_interface(first: ChainPositions, second: ChainPositions) -> Interface | None:
    """Scores of the interface between two chains; None where the reference has no contact there.

    Contacts are pairs of residues with heavy atoms below 5 A, the interface the residues with atoms below 10 A of the
    other chain, both in the reference. Contacts of residues that the model lacks are lost; distances are taken over
    backbone atoms present in both. The receptor is the chain with more residues in the reference, the second of two
    equally long ones (as in the DockQ program). A chain without a matched backbone atom gives a DockQ of 0 for its
    distances, which are NaN.

    Raises:
        NonFiniteCoordinatesError: A coordinate that takes part is NaN or infinite.
    """
    for chain in (first, second):
        masked(chain.reference[None], chain.reference_mask[None], "reference")
        masked(chain.model[None], chain.model_mask[None], "predicted")
    distances = residue_distances(
        first.reference, first.reference_mask, second.reference, second.reference_mask, within=INTERFACE
    )
    native = distances < CONTACT
    if not bool(native.any()):
        return None
    modelled = (
        residue_distances(first.model, first.model_mask, second.model, second.model_mask, within=CONTACT) < CONTACT
    )
    shared = int((native & modelled).sum())
    n_native, n_modelled = int(native.sum()), int(modelled.sum())
    near = distances < INTERFACE
    at_interface = (near.any(dim=1), near.any(dim=0))
    reference, model, both = _backbone((first, second))
    interface = torch.cat([at.repeat_interleave(len(_BACKBONE)) for at in at_interface]) & both
    irmsd = float(superpose(model[None], reference[None], interface[None]).rmsd)

    of_first = torch.arange(len(both), device=both.device) < len(_BACKBONE) * len(first)
    receptor = of_first if len(first) > len(second) else ~of_first
    moved = superpose(model[None], reference[None], (receptor & both)[None]).apply(model[None])[0]
    ligand = ~receptor & both
    lrmsd = float((moved - reference)[ligand].square().sum(dim=-1).mean().sqrt())
    if not bool((receptor & both).any()):
        lrmsd = float("nan")
    fnat = shared / n_native
    known = irmsd == irmsd and lrmsd == lrmsd
    return Interface(
        fnat=fnat,
        fnonnat=(n_modelled - shared) / n_modelled if n_modelled else 0.0,
        irmsd=irmsd,
        lrmsd=lrmsd,
        dockq=dockq(fnat, irmsd, lrmsd) if known else fnat / 3,
        n_contacts=n_native,
    )


def _backbone(chains: Sequence[ChainPositions]) -> tuple[Tensor, Tensor, Tensor]:
    """Backbone atoms of all chains in a row: reference `(a, 3)`, model `(a, 3)`, and `(a,)` which both have."""
    reference = torch.cat([chain.reference[:, _BACKBONE].flatten(0, 1) for chain in chains])
    model = torch.cat([chain.model[:, _BACKBONE].flatten(0, 1) for chain in chains])
    both = torch.cat([(chain.reference_mask & chain.model_mask)[:, _BACKBONE].flatten() for chain in chains])
    return reference, model, both


def residue_distances(
    one: Tensor, one_mask: Tensor, other: Tensor, other_mask: Tensor, *, within: float = math.inf
) -> Tensor:
    """`(n, m)` least distances of any two atoms of two residues, in angstrom; infinite without atoms.

    Args:
        one: `(n, a, 3)` coordinates in angstrom.
        one_mask: `(n, a)` which atoms are there.
        other: `(m, a, 3)` coordinates.
        other_mask: `(m, a)` which atoms are there.
        within: Distances above this need not be known and may be infinite: most chains of a large complex are nowhere
            near each other.
    """
    if math.isfinite(within):
        one_mask = one_mask & _near_box(one, other, other_mask, within)
        other_mask = other_mask & _near_box(other, one, one_mask, within)
    rows, row_atoms = one_mask.nonzero(as_tuple=True)
    columns, column_atoms = other_mask.nonzero(as_tuple=True)
    least = one.new_full((one.shape[0], other.shape[0]), torch.inf)
    if not len(rows) or not len(columns):
        return least
    points = other[columns, column_atoms]
    for chunk, atoms in zip(rows.split(_CHUNK), row_atoms.split(_CHUNK), strict=True):
        distances = torch.cdist(one[chunk, atoms][None], points[None], compute_mode="donot_use_mm_for_euclid_dist")[0]
        by_column = distances.new_full((len(chunk), other.shape[0]), torch.inf)
        by_column.scatter_reduce_(1, columns.expand(len(chunk), -1), distances, "amin")
        least.scatter_reduce_(0, chunk[:, None].expand(-1, other.shape[0]), by_column, "amin")
    return least


def _near_box(points: Tensor, others: Tensor, mask: Tensor, within: float) -> Tensor:
    """Which points are at most `within` from the box around the others."""
    inside = others[mask]
    if not len(inside):
        return torch.zeros(points.shape[:-1], dtype=torch.bool, device=points.device)
    low, high = inside.amin(dim=0) - within, inside.amax(dim=0) + within
    return ((points >= low) & (points <= high)).all(dim=-1)


@dataclass(frozen=True)
class QsScore:
    """Similarity of the contacts between the chains of two complexes, 0..1.

    Attributes:
        overall: Over all contacts of both (QS-global): missing and additional chains count against the model.
        best: Over the contacts of matched residues only (QS-best).

    Both are NaN where neither complex has a contact to judge.
    """

    overall: float
    best: float


def qs_score(
    reference: Sequence[tuple[Tensor, Tensor]],
    model: Sequence[tuple[Tensor, Tensor]],
    partners: Sequence[tuple[int, Tensor]],
) -> QsScore:
    """QS-score: distances below 12 A between CB of different chains, weighted by closeness, compared.

    Args:
        reference: Per chain `(n, 3)` CB coordinates (CA of glycine) in angstrom and `(n,)` which are there.
        model: The same for every chain of the model, matched or not.
        partners: Per chain of the reference the number of its chain in `model`, -1 for none, and `(n,)` the rows of
            its residues there, -1 for none.

    Raises:
        NonFiniteCoordinatesError: A coordinate that takes part is NaN or infinite.
    """
    for chains, what in ((reference, "reference"), (model, "predicted")):
        for positions, mask in chains:
            masked(positions[None], mask[None], what)
    kept = total = extra_mapped = extra = 0.0
    known = [_matched_rows(model, partner) for partner in partners]
    for i in range(len(reference)):
        for j in range(i + 1, len(reference)):
            in_reference = _cb_distances(reference[i], reference[j])
            in_model = torch.full_like(in_reference, torch.inf)
            (a, rows), (b, columns) = partners[i], partners[j]
            mapped = known[i][:, None] & known[j][None, :]
            if a >= 0 and b >= 0:
                all_distances = _cb_distances(model[a], model[b])
                in_model = torch.where(mapped, all_distances[rows.clamp_min(0)][:, columns.clamp_min(0)], torch.inf)
            here, there = in_reference < QS_CONTACT, in_model < QS_CONTACT
            shared = here & there
            weights = _qs_weight(torch.minimum(in_reference, in_model)[shared])
            difference = (in_reference - in_model)[shared].abs()
            kept += float((weights * (1 - difference / QS_CONTACT)).sum())
            total += float(weights.sum())
            lost = _qs_weight(in_reference[here & ~there & mapped]).sum()
            extra_mapped += float(lost) + float(_qs_weight(in_model[there & ~here]).sum())
            extra += float(_qs_weight(in_reference[here & ~mapped]).sum())
    extra += _unmapped_contacts(model, partners)
    worst = total + extra_mapped
    return QsScore(
        overall=kept / (worst + extra) if worst + extra else float("nan"),
        best=kept / worst if worst else float("nan"),
    )


def _matched_rows(model: Sequence[tuple[Tensor, Tensor]], partner: tuple[int, Tensor]) -> Tensor:
    """`(n,)` residues of a chain of the reference that have a partner with CB."""
    chain, rows = partner
    return torch.zeros_like(rows, dtype=torch.bool) if chain < 0 else (rows >= 0) & model[chain][1][rows.clamp_min(0)]


def _unmapped_contacts(model: Sequence[tuple[Tensor, Tensor]], partners: Sequence[tuple[int, Tensor]]) -> float:
    """Weight of the model's contacts in which a residue without partner takes part."""
    matched = [torch.zeros_like(mask) for _, mask in model]
    for chain, rows in partners:
        if chain >= 0:
            matched[chain][rows[rows >= 0]] = True
    weight = 0.0
    for i in range(len(model)):
        for j in range(i + 1, len(model)):
            distances = _cb_distances(model[i], model[j])
            outside = ~(matched[i][:, None] & matched[j][None, :])
            weight += float(_qs_weight(distances[outside & (distances < QS_CONTACT)]).sum())
    return weight


def _cb_distances(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    distances = torch.cdist(one[0][None], other[0][None], compute_mode="donot_use_mm_for_euclid_dist")[0]
    return distances.masked_fill(~(one[1][:, None] & other[1][None, :]), torch.inf)


def _qs_weight(distance: Tensor) -> Tensor:
    return torch.exp(-2 * ((distance - _QS_FULL).clamp_min(0) / _QS_WIDTH).square())
