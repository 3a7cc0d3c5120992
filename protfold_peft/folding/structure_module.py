"""The structure module without its largest temporaries and without waiting for the device.

Stock code makes the tables of residues and quaternions anew from Python lists in every call, which stops the host until
the device has caught up, and writes each rotation as dozens of small operations. Here tables stay on the device and
frames are 4 x 4 matrices. In invariant point attention the squared distances of points are one matrix product instead
of an `n x n x heads x points x 3` difference, and so are the attended points.

Axis letters: `b` batch, `n` residues, `h` heads, `d` head width, `p` points, `c` channels, `m` steps (8).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.models.esm.modeling_esmfold import EsmFoldInvariantPointAttention, EsmFoldStructureModule
from transformers.models.esm.openfold_utils import make_atom14_masks, residue_constants

# Quaternion `(w, x, y, z)` times `(0, a, b, c)`: which products make which part, `(4, 3, 4)`.
_TIMES_VECTOR = (
    ((0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
    ((-1, 0, 0, 0), (0, 0, 0, 1), (0, 0, -1, 0)),
    ((0, 0, 0, -1), (-1, 0, 0, 0), (0, 1, 0, 0)),
    ((0, 0, 1, 0), (0, -1, 0, 0), (-1, 0, 0, 0)),
)
# The rotation matrix of a unit quaternion, row by row, from the products of its parts, `(4, 4, 9)`.
_TO_ROTATION = (
    (
        (1, 0, 0, 0, 1, 0, 0, 0, 1), (0, 0, 0, 0, 0, -2, 0, 2, 0),
        (0, 0, 2, 0, 0, 0, -2, 0, 0), (0, -2, 0, 2, 0, 0, 0, 0, 0),
    ),
    ((0,) * 9, (1, 0, 0, 0, -1, 0, 0, 0, -1), (0, 2, 0, 2, 0, 0, 0, 0, 0), (0, 0, 2, 0, 0, 0, 2, 0, 0)),
    ((0,) * 9, (0,) * 9, (-1, 0, 0, 0, 1, 0, 0, 0, -1), (0, 0, 0, 0, 0, 2, 0, 2, 0)),
    ((0,) * 9, (0,) * 9, (0,) * 9, (-1, 0, 0, 0, -1, 0, 0, 0, 1)),
)  # fmt: skip


@dataclass(frozen=True)
class Tables:
    """What is known of residues and quaternions, on one device.

    Attributes:
        times_vector: `(12, 4)`.
        to_rotation: `(16, 9)`.
        frames: `(21, 8, 4, 4)` ideal frames of the rigid groups, each in the one before it.
        groups: `(21, 14, 8)` 1 where an atom belongs to a group.
        atoms: `(21, 14, 4)` ideal positions in the group's frame, angstrom, and a 1.
        exists: `(21, 14, 1)` 1 where there is such an atom.
    """

    times_vector: Tensor
    to_rotation: Tensor
    frames: Tensor
    groups: Tensor
    atoms: Tensor
    exists: Tensor


@functools.lru_cache(maxsize=8)
def tables(device: torch.device, dtype: torch.dtype) -> Tables:
    """The tables, made once for each device."""

    def table(values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=dtype).to(device)

    positions = torch.as_tensor(residue_constants.restype_atom14_rigid_group_positions, dtype=dtype)
    frames = torch.as_tensor(residue_constants.restype_rigid_group_default_frame, dtype=dtype).clone()
    frames[..., 3, 3] = 1  # absent groups too: their frame has no rotation but stands where the one before it stands
    groups = torch.as_tensor(residue_constants.restype_atom14_to_rigid_group).long()
    return Tables(
        times_vector=table(_TIMES_VECTOR).flatten(0, 1),
        to_rotation=table(_TO_ROTATION).flatten(0, 1),
        frames=frames.to(device),
        groups=table(torch.nn.functional.one_hot(groups, 8)),
        atoms=table(torch.cat((positions, torch.ones_like(positions[..., :1])), dim=-1)),
        exists=table(residue_constants.restype_atom14_mask).unsqueeze(-1),
    )


@functools.lru_cache(maxsize=8)
def _atom_masks(device: torch.device) -> dict[str, Tensor]:
    rows = {"aatype": torch.arange(len(residue_constants.restypes) + 1)}
    return {key: value.to(device) for key, value in make_atom14_masks(rows).items() if key != "aatype"}


def atom_masks(aatype: Tensor) -> dict[str, Tensor]:
    """Which atoms residues have and how their two numberings correspond, as stock `make_atom14_masks` gives them.

    Args:
        aatype: `(b, n)` int64, AlphaFold order.

    Returns:
        `atom14_atom_exists` and `residx_atom14_to_atom37` `(b, n, 14)`, `atom37_atom_exists` and
        `residx_atom37_to_atom14` `(b, n, 37)`.
    """
    return {key: table[aatype] for key, table in _atom_masks(aatype.device).items()}


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product of small matrices `(..., i, j)` and `(..., j, k)`, never in a reduced precision."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def _apply(rotation: Tensor, points: Tensor) -> Tensor:
    """`rotation` `(..., 3, 3)` of `points` `(..., 3)`."""
    return (rotation * points.unsqueeze(-2)).sum(-1)


def rotation_of(quaternion: Tensor) -> Tensor:
    """Rotation matrices `(..., 3, 3)` of unit quaternions `(..., 4)`."""
    products = (quaternion.unsqueeze(-1) * quaternion.unsqueeze(-2)).flatten(-2)
    table = tables(quaternion.device, quaternion.dtype).to_rotation
    return (products.unsqueeze(-1) * table).sum(-2).unflatten(-1, (3, 3))


def _turned(quaternion: Tensor, vector: Tensor) -> Tensor:
    """`quaternion` `(..., 4)` after a small rotation by the imaginary part `vector` `(..., 3)`, of unit length."""
    products = (quaternion.unsqueeze(-1) * vector.unsqueeze(-2)).flatten(-2)
    table = tables(quaternion.device, quaternion.dtype).times_vector
    turned = quaternion + (products.unsqueeze(-1) * table).sum(-2)
    return turned / torch.linalg.vector_norm(turned, dim=-1, keepdim=True)


def _homogeneous(rotation: Tensor, translation: Tensor) -> Tensor:
    """4 x 4 matrices of rotations `(..., 3, 3)` and translations `(..., 3)`."""
    upper = torch.cat((rotation, translation.unsqueeze(-1)), dim=-1)
    return torch.nn.functional.pad(upper, (0, 0, 0, 1)) + _corner(upper.device, upper.dtype)


@functools.lru_cache(maxsize=8)
def _corner(device: torch.device, dtype: torch.dtype) -> Tensor:
    corner = torch.zeros(4, 4, dtype=dtype)
    corner[3, 3] = 1
    return corner.to(device)


def group_frames(backbone: Tensor, angles: Tensor, aatype: Tensor) -> Tensor:
    """Frames of the rigid groups of each residue (AlphaFold 2 supplement, Algorithm 24).

    Args:
        backbone: `(b, n, 4, 4)` frames of the backbones.
        angles: `(b, n, 7, 2)` sine and cosine of omega, phi, psi and chi 1 to 4.
        aatype: `(b, n)`.

    Returns:
        `(b, n, 8, 4, 4)`.
    """
    ideal = tables(angles.device, angles.dtype).frames[aatype]
    sine, cosine = (torch.nn.functional.pad(x, (1, 0), value=v)[..., None] for x, v in zip(angles.unbind(-1), (0, 1)))
    x, y, z, t = ideal.unbind(-1)
    turned = torch.stack((x, cosine * y + sine * z, cosine * z - sine * y, t), dim=-1)
    chain = [turned[..., 4, :, :]]
    for chi in (5, 6, 7):
        chain.append(_product(chain[-1], turned[..., chi, :, :]))
    local = torch.cat((turned[..., :4, :, :], torch.stack(chain, dim=-3)), dim=-3)
    return _product(backbone.unsqueeze(-3), local)


def atom14_positions(frames: Tensor, aatype: Tensor) -> Tensor:
    """`(b, n, 14, 3)` ideal atoms in frames `(b, n, 8, 4, 4)`; zeros where a residue `(b, n)` has none."""
    known = tables(frames.device, frames.dtype)
    upper = frames[..., :3, :].flatten(-2)
    own = (known.groups[aatype].unsqueeze(-1) * upper.unsqueeze(-3)).sum(-2).unflatten(-1, (3, 4))
    return _apply(own, known.atoms[aatype]) * known.exists[aatype]


def squared_distances(q: Tensor, k: Tensor) -> Tensor:
    """`(b, h, n, n)` squared distances between the rows of `q` and `k` `(b, h, n, d)`, as one matrix product.

    `|q|^2 + |k|^2 - 2 q k` in float64: in fp32 points tens of angstroms from the origin would cancel.
    """
    if q.device.type == "mps":  # has no float64
        return torch.cdist(q, k, compute_mode="donot_use_mm_for_euclid_dist").square()
    left, right = q.double(), k.double()
    ones = left.new_ones(()).expand(*left.shape[:-1], 1)
    left = torch.cat((-2 * left, left.square().sum(-1, keepdim=True), ones), dim=-1)
    right = torch.cat((right, ones, right.square().sum(-1, keepdim=True)), dim=-1)
    return (left @ right.transpose(-1, -2)).to(q.dtype)


class StructureModule(EsmFoldStructureModule):
    """The structure module (AlphaFold 2 supplement, Algorithm 20); parameter names are those it replaces."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.ipa = InvariantPointAttention(config)

    def forward(  # type: ignore[override, unused-ignore]
        self, representations: dict[str, Tensor], aatype: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """Place every atom.

        Args:
            representations: `single` `(b, n, c_s)` and `pair` `(b, n, n, c_z)`.
            aatype: `(b, n)`.
            mask: `(b, n)` float, 1 at real residues.

        Returns:
            For each step: `frames` `(m, b, n, 7)`, `sidechain_frames` `(m, b, n, 8, 4, 4)`, `angles` and
            `unnormalized_angles` `(m, b, n, 7, 2)`, `positions` `(m, b, n, 14, 3)` in angstrom and `states`
            `(m, b, n, c_s)`; and the last state as `single`.
        """
        s = self.layer_norm_s(representations["single"])
        z = self.layer_norm_z(representations["pair"])
        # The steps share their weights, so what depends on the pair state alone is the same in all.
        bias = self.ipa.pair_bias(z, mask)
        initial = s
        s = self.linear_in(s)
        scale = self.config.trans_scale_factor
        kind = torch.promote_types(s.dtype, torch.float32)
        translation = torch.zeros((*s.shape[:-1], 3), dtype=kind, device=s.device)
        quaternion = torch.nn.functional.pad(translation, (1, 0), value=0) + _identity(s.device, kind)
        rotation = rotation_of(quaternion)
        steps: list[dict[str, Tensor]] = []
        for _ in range(self.config.num_blocks):
            s = s + self.ipa(s, z, (rotation, translation), bias)
            s = self.transition(self.layer_norm_ipa(self.ipa_dropout(s)))
            turn, shift = self.bb_update(s).to(kind).split(3, dim=-1)
            translation = translation + _apply(rotation, shift)
            quaternion = _turned(quaternion, turn)
            rotation = rotation_of(quaternion)
            unnormalized, angles = self.angle_resnet(s, initial)
            frames = group_frames(_homogeneous(rotation, translation * scale), angles, aatype)
            steps.append(
                {
                    "frames": torch.cat((quaternion, translation * scale), dim=-1),
                    "sidechain_frames": frames,
                    "unnormalized_angles": unnormalized,
                    "angles": angles,
                    "positions": atom14_positions(frames, aatype),
                    "states": s,
                }
            )
            # Gradients reach a rotation from its own step only (line 20 of the algorithm).
            quaternion, rotation = quaternion.detach(), rotation.detach()
        outputs = {key: torch.stack([step[key] for step in steps]) for key in steps[0]}
        outputs["single"] = s
        return outputs


@functools.lru_cache(maxsize=8)
def _identity(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor([1, 0, 0, 0], dtype=dtype).to(device)


class InvariantPointAttention(EsmFoldInvariantPointAttention):
    """Invariant point attention (AlphaFold 2 supplement, Algorithm 22); parameter names are those it replaces."""

    def _points(self, projected: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
        """Points `(b, n, h, p, 3)` in the global frame from their projection `(b, n, 3 h p)`, coordinate-major."""
        local = projected.unflatten(-1, (3, -1)).transpose(-1, -2)
        points = _apply(rotation.unsqueeze(-3), local) + translation.unsqueeze(-2)
        return points.unflatten(-2, (self.num_heads, -1))

    def pair_bias(self, z: Tensor, mask: Tensor) -> Tensor:
        """`(b, h, n, n)`: the part of the scores that `z` `(b, n, n, c)` and `mask` `(b, n)` give."""
        bias = math.sqrt(1 / 3) * self.linear_b(z).permute(0, 3, 1, 2)
        return bias + self.config.inf * (mask[:, :, None] * mask[:, None, :] - 1)[:, None]

    def forward(  # type: ignore[override, unused-ignore]
        self, s: Tensor, z: Tensor, frames: tuple[Tensor, Tensor], bias: Tensor
    ) -> Tensor:
        """The update of the single representation.

        Args:
            s: `(b, n, c_s)` single representation.
            z: `(b, n, n, c_z)` pair representation.
            frames: `(b, n, 3, 3)` rotations and `(b, n, 3)` translations.
            bias: `(b, h, n, n)` of `pair_bias`.

        Returns:
            `(b, n, c_s)`.
        """
        rotation, translation = frames
        q = self.linear_q(s).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        kv = self.linear_kv(s).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = kv.split(self.hidden_dim, dim=-1)
        q_points = self._points(self.linear_q_points(s), rotation, translation)
        k_points, v_points = self._points(self.linear_kv_points(s), rotation, translation).split(
            [self.num_qk_points, self.num_v_points], dim=-2
        )

        scores = q @ k.transpose(-1, -2) * math.sqrt(1 / (3 * self.hidden_dim))
        scores = scores + bias
        square = squared_distances(q_points.transpose(1, 2).flatten(-2), k_points.transpose(1, 2).flatten(-2))
        weights = self.softplus(self.head_weights) * math.sqrt(1 / (3 * (self.num_qk_points * 9 / 2)))
        scores = scores - 0.5 * weights[:, None, None] * square
        attention = scores.softmax(-1)

        o = (attention @ v).transpose(1, 2).flatten(-2)
        # (b, h, n, 3 p) -> (b, n, h, p, 3), back in each residue's own frame.
        o_points = attention @ v_points.transpose(1, 2).flatten(-2)
        o_points = o_points.transpose(1, 2).unflatten(-1, (-1, 3))
        o_points = _apply(rotation.mT[:, :, None, None], o_points - translation[:, :, None, None])
        norms = (o_points.square().sum(-1) + self.config.epsilon).sqrt().flatten(-2)
        o_points = o_points.flatten(-3, -2)
        o_pair = (attention.transpose(1, 2) @ z.to(attention.dtype)).flatten(-2)
        return self.linear_out(torch.cat((o, *o_points.unbind(-1), norms, o_pair), dim=-1).to(z.dtype))
