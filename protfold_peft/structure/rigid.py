"""Rigid motions (a rotation and a translation) as differentiable, batched tensors.

Axis letters: `...` batch axes of the motions; the last axes are (3, 3) for rotations and (3,) for points, in angstrom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Below this length (angstrom) a direction is not defined in single precision: the points count as coincident.
DEGENERATE_LENGTH = 1e-4


def _is_short(vector: Tensor) -> Tensor:
    """`(...)` bool: the vector is too short to have a direction."""
    return (vector * vector).sum(-1) < DEGENERATE_LENGTH**2


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm(dim=-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Rigid:
    """`x -> rotation @ x + translation`, one for each place of the batch axes.

    Attributes:
        rotation: `(..., 3, 3)`, orthogonal with determinant 1.
        translation: `(..., 3)`.
    """

    rotation: Tensor
    translation: Tensor

    @classmethod
    def identity(
        cls, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Rigid:
        """The motion that leaves everything in place, for batch axes `shape`."""
        eye = torch.eye(3, dtype=dtype, device=device)
        return cls(eye.expand(*shape, 3, 3), torch.zeros(*shape, 3, dtype=dtype, device=device))

    @classmethod
    def from_three_points(cls, x1: Tensor, x2: Tensor, x3: Tensor) -> Rigid:
        """The frame with origin `x2`, its x axis towards `x3`, and `x1` in its xy plane at positive y.

        Gram-Schmidt of Jumper et al. 2021, supplement, algorithm 21; N, CA, C give the backbone frame. Where the points
        coincide or lie on a line there is no such frame: the rotation is then the identity and has zero gradient, so
        that places masked later on cannot spoil a loss with NaN.

        Args:
            x1, x2, x3: `(..., 3)` points.
        """
        v1, v2 = torch.broadcast_tensors(x3 - x2, x1 - x2)
        # Everything is computed from replaced inputs where it would be 0/0: masking only the result leaves NaN in the
        # gradient.
        short = _is_short(v1)[..., None]
        e1 = _unit(torch.where(short, v1.new_tensor([1.0, 0.0, 0.0]), v1))
        u2 = v2 - e1 * (e1 * v2).sum(-1, keepdim=True)
        flat = short | _is_short(u2)[..., None]
        e2 = _unit(torch.where(flat, u2.new_tensor([0.0, 1.0, 0.0]), u2))
        rotation = torch.stack([e1, e2, torch.linalg.cross(e1, e2)], dim=-1)
        eye = torch.eye(3, dtype=rotation.dtype, device=rotation.device)
        return cls(torch.where(flat[..., None], eye, rotation), x2.expand_as(v1))

    @classmethod
    def from_quaternion(cls, quaternion: Tensor, translation: Tensor) -> Rigid:
        """The rotation of a quaternion `(..., 4)` (w, x, y, z; scaled to length 1 here) and a translation `(..., 3)`.

        Raises no error for a zero quaternion: it gives the identity.
        """
        real = quaternion.new_tensor([1.0, 0.0, 0.0, 0.0])
        w, x, y, z = _unit(torch.where(_is_short(quaternion)[..., None], real, quaternion)).unbind(-1)
        rows = [
            torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
            torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
            torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
        ]
        return cls(torch.stack(rows, dim=-2), translation)

    @property
    def shape(self) -> torch.Size:
        """The batch axes."""
        return self.translation.shape[:-1]

    def __getitem__(self, index: Any) -> Rigid:
        """Index the batch axes; `frames[..., None]` adds one at their end."""
        index = index if isinstance(index, tuple) else (index,)
        if not any(item is Ellipsis for item in index):
            index = (*index, Ellipsis)
            # An ellipsis at the end covers the remaining batch axes and the last axes alike.
            return Rigid(self.rotation[index], self.translation[index])
        whole = slice(None)
        return Rigid(self.rotation[(*index, whole, whole)], self.translation[(*index, whole)])

    def compose(self, other: Rigid) -> Rigid:
        """`self` after `other`: `x -> self(other(x))`."""
        return Rigid(self.rotation @ other.rotation, self.apply(other.translation))

    def invert(self) -> Rigid:
        """The motion back."""
        rotation = self.rotation.transpose(-1, -2)
        return Rigid(rotation, -(rotation @ self.translation[..., None])[..., 0])

    def apply(self, points: Tensor) -> Tensor:
        """Points of the local frame, `(..., 3)`, in the global one; batch axes broadcast."""
        return (self.rotation @ points[..., None])[..., 0] + self.translation

    def invert_apply(self, points: Tensor) -> Tensor:
        """Points of the global frame, `(..., 3)`, in the local one; batch axes broadcast."""
        return (self.rotation.transpose(-1, -2) @ (points - self.translation)[..., None])[..., 0]

    def to(self, *args: Any, **kwargs: Any) -> Rigid:
        """Like `torch.Tensor.to`, for both tensors."""
        return Rigid(self.rotation.to(*args, **kwargs), self.translation.to(*args, **kwargs))

    def detach(self) -> Rigid:
        """The same motion cut off from the gradient."""
        return Rigid(self.rotation.detach(), self.translation.detach())
