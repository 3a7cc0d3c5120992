"""What the functions of OpenFold that we call are documented to do, written anew as plain loops.

No line of it is OpenFold's: it holds the arguments to the shapes and conventions that OpenFold's docstrings name, one
sample at a time, and computes in double precision what they say they compute. Names of arguments are OpenFold's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType

import torch
from torch import Tensor

LETTERS = "ARNDCQEGHILKMFPSTWYV"
HALF_TURNS = {"D": 1, "E": 2, "F": 1, "Y": 1}
RADII = {"C": 1.7, "N": 1.55, "O": 1.52, "S": 1.8}
_ATOMS = (
    "N CA C CB O CG CG1 CG2 OG OG1 SG CD CD1 CD2 ND1 ND2 OD1 OD2 SD CE CE1 CE2 CE3 NE NE1 NE2 OE1 OE2 CH2 NH1 NH2 OH "
    "CZ CZ2 CZ3 NZ OXT"
)
ATOMS = _ATOMS.split()


class Rotation:
    def __init__(self, rot_mats: Tensor | None = None, quats: Tensor | None = None) -> None:
        assert (rot_mats is None) != (quats is None)
        assert rot_mats.shape[-2:] == (3, 3)
        self.matrices = rot_mats.float()


class Rigid:
    def __init__(self, rots: Rotation, trans: Tensor) -> None:
        assert rots.matrices.shape[:-2] == trans.shape[:-1]
        self.matrices, self.origins = rots.matrices.double(), trans.float().double()


def number_mask(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask as OpenFold has them: 0 and 1 as floating-point numbers."""
    assert mask.is_floating_point()
    assert mask.shape == shape
    assert set(mask.detach().flatten().tolist()) <= {0.0, 1.0}
    return mask.double()


def compute_fape(
    pred_frames, target_frames, frames_mask, pred_positions, target_positions, positions_mask, length_scale,
    pair_mask=None, l1_clamp_distance=None, eps=1e-8,
):  # fmt: skip
    """Frames `(*, f)` and points `(*, p, 3)`; the truth may have one step for all of the prediction's."""
    assert pair_mask is None
    assert l1_clamp_distance is None or isinstance(l1_clamp_distance, float)
    *lead, n_frames = pred_frames.origins.shape[:-1]
    n_points = pred_positions.shape[-2]
    assert pred_positions.shape[:-2] == tuple(lead)
    assert len(lead) <= 1, "steps of one sample"
    few = (1,) * len(lead)
    assert target_frames.origins.shape == (*few, n_frames, 3)
    assert target_positions.shape == (*few, n_points, 3)
    frames_known, points_known = (
        number_mask(frames_mask, (*few, n_frames)),
        number_mask(positions_mask, (*few, n_points)),
    )
    means = []
    for step in range(math.prod(lead)):
        at = (step,) if lead else ()
        of_truth = (0,) if lead else ()
        total = torch.zeros((), dtype=torch.float64)
        for frame in range(n_frames):
            errors = []
            for frames, positions, place in (
                (pred_frames, pred_positions.double(), at),
                (target_frames, target_positions.double(), of_truth),
            ):
                offsets = positions[place] - frames.origins[(*place, frame)]
                errors.append(torch.stack([frames.matrices[(*place, frame)].T @ offset for offset in offsets]))
            distance = ((errors[0] - errors[1]).square().sum(dim=-1) + eps).sqrt()
            if l1_clamp_distance is not None:
                distance = distance.clamp(max=l1_clamp_distance)
            total = total + (distance / length_scale * points_known[of_truth]).sum() * frames_known[(*of_truth, frame)]
        means.append(total / (frames_known.sum() + eps) / (points_known.sum() + eps))
    return torch.stack(means).reshape(lead)


def supervised_chi_loss(
    angles_sin_cos, unnormalized_angles_sin_cos, aatype, seq_mask, chi_mask, chi_angles_sin_cos, chi_weight,
    angle_norm_weight, eps=1e-6, **kwargs,
):  # fmt: skip
    """Steps of one sample: angles `(s, n, 7, 2)`, the truth's four chi angles `(n, 4, 2)`."""
    assert not kwargs
    n_steps, n, *rest = angles_sin_cos.shape
    assert rest == [7, 2]
    assert unnormalized_angles_sin_cos.shape == angles_sin_cos.shape
    torch.testing.assert_close(angles_sin_cos.norm(dim=-1), torch.ones_like(angles_sin_cos[..., 0]))
    assert aatype.shape == (n,)
    assert aatype.dtype == torch.int64
    assert chi_angles_sin_cos.shape == (n, 4, 2)
    chi_known, known = number_mask(chi_mask, (n, 4)), number_mask(seq_mask, (n,))
    wrong, count = 0.0, 1e-4
    for residue, kind in enumerate(aatype.tolist()):
        for chi in range(4):
            truth = chi_angles_sin_cos[residue, chi].double()
            signs = (1, -1) if HALF_TURNS.get(LETTERS[kind]) == chi else (1,)
            for step in range(n_steps):
                angle = angles_sin_cos[step, residue, 3 + chi].double()
                nearest = min(((angle - sign * truth).square().sum() for sign in signs), key=Tensor.item)
                wrong = wrong + nearest * chi_known[residue, chi]
                count += chi_known[residue, chi].item()
    off = ((unnormalized_angles_sin_cos.double().square().sum(dim=-1) + eps).sqrt() - 1).abs()
    norm = (off * known[:, None]).sum() / (1e-4 + n_steps * 7 * known.sum())
    return chi_weight * wrong / count + angle_norm_weight * norm


def find_structural_violations(
    batch: Mapping[str, Tensor], atom14_pred_positions, violation_tolerance_factor, clash_overlap_tolerance, **kwargs
):
    """Of one sample, peptide bonds and clashes only: the rest of the dictionary is 0."""
    assert not kwargs
    assert set(batch) == {"atom14_atom_exists", "residue_index", "aatype", "residx_atom14_to_atom37"}
    n = len(atom14_pred_positions)
    assert atom14_pred_positions.shape == (n, 14, 3)
    exists = number_mask(batch["atom14_atom_exists"], (n, 14))
    for name, shape in (("residue_index", (n,)), ("aatype", (n,)), ("residx_atom14_to_atom37", (n, 14))):
        assert batch[name].shape == shape
        assert batch[name].dtype == torch.int64
    numbers, kinds = batch["residue_index"].tolist(), batch["aatype"].tolist()
    positions = atom14_pred_positions.double()
    excess, n_bonds = torch.zeros((), dtype=torch.float64), 1e-6
    for row in range(n - 1):
        if numbers[row + 1] - numbers[row] == 1 and exists[row, 2] and exists[row + 1, 0]:
            mean, deviation = (1.341, 0.016) if LETTERS[kinds[row + 1]] == "P" else (1.329, 0.014)
            length = ((positions[row, 2] - positions[row + 1, 0]).square().sum() + 1e-6).sqrt()
            error = ((length - mean).square() + 1e-6).sqrt()
            excess = excess + (error - violation_tolerance_factor * deviation).clamp(min=0)
            n_bonds += 1
    clashes = torch.zeros(n, 14, dtype=torch.float64)
    atoms = [(row, place) for row in range(n) for place in range(14) if exists[row, place]]
    names = {atom: ATOMS[batch["residx_atom14_to_atom37"][atom]] for atom in atoms}
    for one in atoms:
        for other in atoms:
            bonded = numbers[other[0]] - numbers[one[0]] == 1 and (one[1], other[1]) == (2, 0)
            if numbers[one[0]] >= numbers[other[0]] or bonded or one[1] == other[1] == 5:
                continue
            distance = ((positions[one] - positions[other]).square().sum() + 1e-10).sqrt()
            nearest = RADII[names[one][0]] + RADII[names[other][0]] - clash_overlap_tolerance
            overlap = (nearest - distance).clamp(min=0)
            for atom in (one, other):
                clashes = clashes.index_put(tuple(torch.tensor(i) for i in atom), overlap, accumulate=True)
    nothing = torch.zeros((), dtype=torch.float64)
    return {
        "between_residues": {
            "bonds_c_n_loss_mean": excess / n_bonds,
            "angles_ca_c_n_loss_mean": nothing,
            "angles_c_n_ca_loss_mean": nothing,
            "clashes_per_atom_loss_sum": clashes,
        },
        "within_residues": {"per_atom_loss_sum": torch.zeros(n, 14, dtype=torch.float64)},
    }


def violation_loss(violations, atom14_atom_exists, average_clashes=False, eps=1e-6, **kwargs):
    """Means over peptide bonds, and the sum over atoms by their number."""
    assert not kwargs
    assert not average_clashes
    between = violations["between_residues"]
    per_atom = between["clashes_per_atom_loss_sum"] + violations["within_residues"]["per_atom_loss_sum"]
    bonds = sum(value for key, value in between.items() if key.endswith("_loss_mean"))
    return bonds + per_atom.sum() / (eps + atom14_atom_exists.sum())


def modules() -> dict[str, ModuleType]:
    """The stand-in under the names by which OpenFold is imported."""
    found = {name: ModuleType(name) for name in ("openfold", "openfold.utils")}
    loss, rigid = ModuleType("openfold.utils.loss"), ModuleType("openfold.utils.rigid_utils")
    for function in (compute_fape, supervised_chi_loss, find_structural_violations, violation_loss):
        setattr(loss, function.__name__, function)
    rigid.Rigid, rigid.Rotation = Rigid, Rotation
    return {**found, loss.__name__: loss, rigid.__name__: rigid}
