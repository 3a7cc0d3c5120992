"""FAPE, torsions and violations computed by OpenFold, for comparison with others who train with it.

The functions here take what those of `protfold_peft.losses` take and return the same shapes; only who computes
differs. Importing this module imports OpenFold (https://github.com/aqlaboratory/openfold; the package of that name on
PyPI is not it), so it is imported only by a run that asks for it.

What differs from our own functions, by a part in ten thousand where nothing else is said:

- OpenFold averages over the batch, or mixes its samples up (the half turns of `supervised_chi_loss`, its issue 381):
  here it is given one sample after the other.
- It holds frames in single precision whatever it is given, and rotates points and origins apart: far from the
  origin digits are lost.
- `compute_fape` adds its guard of 1e-4 to the count of frames and to that of points, we add it to their product.
- `supervised_chi_loss` adds 1e-4 to the counts of angles and of residues, we add 1e-10.
- `violation_loss` always has the two slips of AlphaFold 2.3 that ours has on request (see `violation`), which can
  change the result by much. Its clashes take memory for all pairs of atoms, `(n, n, 14, 14)` several times over.

Source: OpenFold, `openfold/utils/loss.py` and `openfold/utils/rigid_utils.py`; Ahdritz et al., Nature Methods 21 (2024)
1514.

Axis letters: `s` structure-module steps, `b` batch, `n` residues, 14 atoms of the compact layout, 8 rigid groups.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from protfold_peft.errors import ConfigError
from protfold_peft.losses.distance_bounds import DEVIATIONS, OVERLAP_TOLERANCE
from protfold_peft.losses.fape import CLAMP, EPSILON, LENGTH_SCALE
from protfold_peft.losses.renaming import AllAtomTarget
from protfold_peft.losses.torsion_angles import CHI_WEIGHT, LENGTH_EPSILON, NORM_WEIGHT, SQUARE_EPSILON
from protfold_peft.losses.violation import COUNT_EPSILON
from protfold_peft.structure.geometry import Torsions
from protfold_peft.structure.residues import ATOM14_MASK, ATOM14_TO_ATOM37, RESTYPE_INDEX
from protfold_peft.structure.rigid import Rigid

try:
    from openfold.utils.loss import compute_fape, find_structural_violations, supervised_chi_loss
    from openfold.utils.loss import violation_loss as loss_of_violations
    from openfold.utils.rigid_utils import Rigid as OpenFoldRigid
    from openfold.utils.rigid_utils import Rotation
except Exception as error:  # a half-installed package fails in any way
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise ConfigError(
        f"loss.backend is openfold, which cannot be imported ({reason}): install it from "
        "https://github.com/aqlaboratory/openfold (the openfold on PyPI is another package), or set loss.backend to own"
    ) from error

_FIRST_CHI = 3


def backbone_fape(predicted: Rigid, target: Rigid, mask: Tensor, *, clamp: float | Tensor | None = CLAMP) -> Tensor:
    """`compute_fape` of backbone frames on CA atoms, averaged over the steps; as `losses.backbone_fape`.

    Args:
        predicted: `(s, b, n)` backbone frames, one set per step, in angstrom.
        target: `(b, n)` frames of the experiment.
        mask: `(b, n)` true where the frame is known; false for padding.
        clamp: In angstrom; None or infinity clamps nothing; a tensor is `(b,)`.

    Returns:
        `(b,)`, without unit.
    """

    def of_sample(place: int) -> Tensor:
        model, truth, known = predicted[:, place], target[None, place], mask[None, place]
        return _fape(model, truth, known, model.translation, truth.translation, known, _clamp_of(clamp, place)).mean()

    return _each(of_sample, mask.shape[0], predicted.translation)


def side_chain_fape(
    predicted_frames: Rigid,
    predicted_positions: Tensor,
    target: AllAtomTarget,
    *,
    clamp: float | Tensor | None = CLAMP,
) -> Tensor:
    """`compute_fape` of all rigid groups on all heavy atoms; as `losses.side_chain_fape`.

    Args:
        predicted_frames: `(b, n, 8)` of the last step of the structure module, in angstrom.
        predicted_positions: `(b, n, 14, 3)` of the same step, in angstrom; finite everywhere.
        target: Of `all_atom_target`, `(b, n, ...)`; its masks are false for padding.
        clamp: As in `backbone_fape`.

    Returns:
        `(b,)`, without unit; 0 for a sample without a known frame.
    """

    def of_sample(place: int) -> Tensor:
        return _fape(
            _flat(predicted_frames[place]),
            _flat(target.frames[place]),
            target.frames_mask[place].flatten(),
            predicted_positions[place].flatten(0, 1),
            target.positions[place].flatten(0, 1),
            target.mask[place].flatten(),
            _clamp_of(clamp, place),
        )

    return _each(of_sample, len(predicted_positions), predicted_positions)


def torsion_loss(angles: Tensor, target: Torsions, mask: Tensor) -> Tensor:
    """`supervised_chi_loss` with AlphaFold's weights of its two terms; as `losses.torsion_loss`.

    Args:
        angles: `(s, b, n, 7, 2)` sines and cosines of any length, finite.
        target: Of the experiment, `(b, n, ...)`; its mask is false for padding.
        mask: `(b, n)` true for residues of the sequence; false for padding.

    Returns:
        `(b,)`.
    """
    length = angles.square().sum(dim=-1, keepdim=True).clamp_min(SQUARE_EPSILON).sqrt()
    unit = angles / length
    restypes = _types_of_half_turns(target)

    def of_sample(place: int) -> Tensor:
        return supervised_chi_loss(
            angles_sin_cos=unit[:, place],
            unnormalized_angles_sin_cos=angles[:, place],
            aatype=restypes[place],
            seq_mask=mask[place].to(angles),
            chi_mask=target.mask[place, :, _FIRST_CHI:].to(angles),
            chi_angles_sin_cos=target.sin_cos[place, :, _FIRST_CHI:].to(angles),
            chi_weight=CHI_WEIGHT,
            angle_norm_weight=NORM_WEIGHT,
            eps=LENGTH_EPSILON,
        )

    return _each(of_sample, mask.shape[0], angles)


def violation_loss(
    positions: Tensor,
    mask: Tensor,
    restypes: Tensor,
    residue_index: Tensor | None = None,
    *,
    like_alphafold_2_3: bool = False,
) -> Tensor:
    """`find_structural_violations` and their loss; as `losses.violation_loss` with the slips of AlphaFold 2.3.

    Args:
        positions: `(b, n, 14, 3)` atoms of the model in angstrom, finite everywhere; of the last step.
        mask: `(b, n, 14)` true where the model places the atom; false for padding.
        restypes: `(b, n)` residue types 0..20.
        residue_index: `(b, n)` numbers of residues: rows whose numbers follow each other are joined by a peptide bond.
            By default all neighbouring rows are.
        like_alphafold_2_3: Of no effect: OpenFold always has those slips.

    Returns:
        `(b,)`.
    """
    places = torch.tensor(ATOM14_TO_ATOM37, device=positions.device)
    exists = (mask.bool() & torch.tensor(ATOM14_MASK, device=positions.device)[restypes]).to(positions)
    numbers = _increasing_numbers(restypes, residue_index)

    def of_sample(place: int) -> Tensor:
        found = find_structural_violations(
            {
                "atom14_atom_exists": exists[place],
                "residue_index": numbers[place],
                "aatype": restypes[place],
                "residx_atom14_to_atom37": places[restypes[place]],
            },
            positions[place],
            violation_tolerance_factor=DEVIATIONS,
            clash_overlap_tolerance=OVERLAP_TOLERANCE,
        )
        return loss_of_violations(found, atom14_atom_exists=exists[place], eps=COUNT_EPSILON)

    return _each(of_sample, len(positions), positions)


def _each(of_sample: Callable[[int], Tensor], n_batch: int, like: Tensor) -> Tensor:
    """`(b,)` of the scalars of every sample, in the precision of `like`."""
    if not n_batch:
        return like.new_zeros(0)
    return torch.stack([of_sample(place) for place in range(n_batch)]).to(like.dtype)


def _fape(
    predicted: Rigid, target: Rigid, frames: Tensor, points: Tensor, truth: Tensor, known: Tensor, clamp: float | None
) -> Tensor:
    """`(...)` of `(..., f)` frames and `(..., p, 3)` points, with the masks as numbers, as OpenFold has them."""
    return compute_fape(
        pred_frames=_openfold(predicted),
        target_frames=_openfold(target),
        frames_mask=frames.to(points),
        pred_positions=points,
        target_positions=truth.to(points),
        positions_mask=known.to(points),
        length_scale=LENGTH_SCALE,
        l1_clamp_distance=clamp,
        eps=EPSILON,
    )


def _openfold(frames: Rigid) -> OpenFoldRigid:
    """The same frames: in both libraries `x -> rotation @ x + translation`."""
    return OpenFoldRigid(Rotation(rot_mats=frames.rotation, quats=None), frames.translation)


def _flat(frames: Rigid) -> Rigid:
    """Frames `(n, g)` as `(n * g,)`."""
    return Rigid(frames.rotation.flatten(0, 1), frames.translation.flatten(0, 1))


def _clamp_of(clamp: float | Tensor | None, place: int) -> float | None:
    """The clamp of one sample: OpenFold takes a number, and None for no clamp."""
    value = clamp[place].item() if isinstance(clamp, Tensor) else clamp
    return None if value is None or value == float("inf") else float(value)


def _types_of_half_turns(target: Torsions) -> Tensor:
    """`(b, n)` residue types with the half turns that the target forgives.

    OpenFold asks for the type to look up which chi angle may be half a turn off, and for nothing else; our target
    holds the half turns themselves. Aspartate stands for chi2, glutamate for chi3, alanine for none.
    """
    forgiven = (target.sin_cos != target.alternative).any(dim=-1)[..., _FIRST_CHI:]
    types = torch.full(forgiven.shape[:-1], RESTYPE_INDEX["A"], device=forgiven.device)
    types = types.masked_fill(forgiven[..., 1], RESTYPE_INDEX["D"])
    return types.masked_fill(forgiven[..., 2], RESTYPE_INDEX["E"])


def _increasing_numbers(restypes: Tensor, residue_index: Tensor | None) -> Tensor:
    """`(b, n)` numbers that grow along the rows, by one across a bond and by two where there is none.

    OpenFold compares the atoms of two residues by the order of their numbers, so those that begin anew with every
    chain would hide clashes.
    """
    steps = torch.ones_like(restypes)
    if residue_index is not None:
        steps[:, 1:] = torch.where(residue_index.diff(dim=1) == 1, 1, 2)
    return steps.cumsum(dim=1)
