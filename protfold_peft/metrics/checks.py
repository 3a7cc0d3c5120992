"""The edge of every score: shapes agree, and nothing that takes part is NaN or infinite.

Axis letters: `b` batch, `n` residues, `a` atoms per residue.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protfold_peft.errors import NonFiniteError
from protfold_peft.structure.residues import ATOM_INDEX, ATOM_TYPES


class NonFiniteCoordinatesError(NonFiniteError, ValueError):
    """A coordinate that takes part in a score is NaN or infinite: one line for users, a ValueError for code."""


def check_pair(predicted: Tensor, reference: Tensor, what: str, dims: tuple[int, ...] = (3, 4)) -> None:
    """Refuse two tensors that are not both `(b, n, 3)` or both `(b, n, a, 3)` of one floating type on one device.

    Raises:
        ValueError: They are not; the message names the function `what`.
    """
    if predicted.dim() not in dims or predicted.shape[-1] != 3 or reference.shape != predicted.shape:
        layouts = {3: "(batch, residues, 3)", 4: "(batch, residues, atoms, 3)"}
        wanted = " or ".join(f"two {layouts[dim]} tensors" for dim in dims)
        raise ValueError(f"{what} takes {wanted}, got {tuple(predicted.shape)} and {tuple(reference.shape)}")
    if predicted.dtype not in (torch.float32, torch.float64) or reference.dtype != predicted.dtype:
        raise ValueError(f"{what} takes float32 or float64 of one type, got {predicted.dtype} and {reference.dtype}")
    if predicted.device != reference.device:
        raise ValueError(f"{what} takes tensors of one device, got {predicted.device} and {reference.device}")


def check_masks(positions: Tensor, mask: Tensor, predicted_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(`in_reference`, `in_model`), bool, of the positions' shape without the last axis.

    `in_model` is what the model has, with or without a counterpart in the reference.

    Raises:
        ValueError: A mask has another shape.
    """
    for given in (mask, predicted_mask):
        if given is not None and given.shape != positions.shape[:-1]:
            raise ValueError(f"the mask's shape {tuple(given.shape)} is not {tuple(positions.shape[:-1])}")
    in_reference = mask.bool()
    return in_reference, in_reference if predicted_mask is None else predicted_mask.bool()


def ca_of(
    predicted: Tensor, reference: Tensor, mask: Tensor, predicted_mask: Tensor | None, what: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(`predicted`, `reference`, `in_reference`, `in_model`) of CA, of tensors of CA or of the 37 atoms.

    Raises:
        ValueError: As `check_pair` and `check_masks`, or there are other atoms than the 37.
    """
    check_pair(predicted, reference, what)
    in_reference, in_model = check_masks(predicted, mask, predicted_mask)
    if predicted.dim() == 3:
        return predicted, reference, in_reference, in_model
    if predicted.shape[2] != len(ATOM_TYPES):
        raise ValueError(f"{what} takes CA or all {len(ATOM_TYPES)} atoms, got {predicted.shape[2]} per residue")
    ca = ATOM_INDEX["CA"]
    return predicted[:, :, ca], reference[:, :, ca], in_reference[:, :, ca], in_model[:, :, ca]


def masked(positions: Tensor, mask: Tensor, what: str) -> Tensor:
    """`positions` with zeros where `mask` is false.

    Raises:
        NonFiniteCoordinatesError: Something within the mask is NaN or infinite; the message says whose.
    """
    positions = torch.where(mask[..., None], positions, positions.new_zeros(()))
    # One number tells for the whole tensor: NaN and infinity survive multiplication by zero and addition.
    if not bool((positions.detach() * 0).sum().isfinite()):
        sample, residue = (~positions.isfinite().all(dim=-1)).nonzero()[0].tolist()[:2]
        raise NonFiniteCoordinatesError(
            f"the {what} coordinates of sample {sample}, residue {residue} (counted from 0) are not finite: "
            "mask what is missing, or look for the cause where they were made"
        )
    return positions
