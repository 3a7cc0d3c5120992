"""Given updates of a group of sites, turned so that heads lie on one side, for fitting networks to them.

Legend: n sites, d width of the axis without heads (the input, where there are none), k of the part of it that the
updates span, h heads, j head width, w = h j, q inner width of the given updates, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protfold_peft.adapters.sites import Site

# Directions whose share of the updates, as a squared norm, is below this are left out.
_ROUNDING = 1e-15


@dataclass(frozen=True)
class Target:
    """The update that a site should get: `up @ down`, `down (q, d_in)`, `up (d_out, q)`, float64."""

    site: Site
    down: Tensor
    up: Tensor

    def norm_squared(self) -> Tensor:
        """Squared Frobenius norm of the update, from the two matrices: the product is not made."""
        return ((self.up.T @ self.up) * (self.down @ self.down.T)).sum()


@dataclass(frozen=True)
class Bucket:
    """The updates of the sites of one number of heads: `X_n = side_n split_n^T`.

    Attributes:
        count: Heads; 1 where they do not count.
        side: `(n, k, q)`, in the common basis.
        split: `(n, h, j, q)`.
        rows, columns: Of the sites, `(n)`.
    """

    count: int
    side: Tensor
    split: Tensor
    rows: Tensor
    columns: Tensor


def buckets(targets: Sequence[Target], *, heads: bool) -> tuple[list[Bucket], Tensor]:
    """The targets by their number of heads, most heads first, and the basis `(d, k)` that all their sides share.

    The factor of that axis in a best fit lies in its span, so nothing is lost by leaving the rest out.

    Args:
        targets: Of a group.
        heads: Whether heads divide an axis.
    """
    turned: dict[int, list[tuple[Target, Tensor, Tensor]]] = {}
    widest = max(len(target.down) for target in targets)
    for target in targets:
        side, split = _turn(target, heads)
        missing = widest - side.shape[-1]
        side, split = torch.nn.functional.pad(side, (0, missing)), torch.nn.functional.pad(split, (0, missing))
        turned.setdefault(len(split), []).append((target, side, split))
    weighted = [_weighted(side, split) for members in turned.values() for _, side, split in members]
    basis = span(torch.cat(weighted, dim=1))
    found = [
        Bucket(
            count=count,
            side=torch.stack([basis.T @ side for _, side, _ in members]),
            split=torch.stack([split for _, _, split in members]),
            rows=torch.tensor([target.site.row for target, _, _ in members]),
            columns=torch.tensor([target.site.column for target, _, _ in members]),
        )
        for count, members in sorted(turned.items(), reverse=True)
    ]
    return found, basis


def _turn(target: Target, heads: bool) -> tuple[Tensor, Tensor]:
    """`side (d, q)` and `split (h, j, q)` of one update."""
    split_of = target.site.heads if heads else None
    if split_of is None:
        return target.down.T, target.up[None]
    side, split = (target.down.T, target.up) if split_of.axis == "output" else (target.up, target.down.T)
    if split_of.interleaved:
        return side, split.unflatten(0, (split_of.width, split_of.count)).transpose(0, 1)
    return side, split.unflatten(0, (split_of.count, split_of.width))


def _weighted(side: Tensor, split: Tensor) -> Tensor:
    """`(d, q)` with the same left singular vectors and values as the update."""
    return side @ torch.linalg.qr(split.flatten(0, 1)).R.T


def span(matrix: Tensor) -> Tensor:
    """An orthonormal basis `(d, k)` of the columns of `(d, n)`, but for what is too small to matter."""
    values, vectors = _left_singular(matrix)
    return vectors[:, : max(1, int((values > _ROUNDING * values[0]).sum()))]


def leading(matrix: Tensor, rank: int) -> Tensor:
    """The first left singular vectors of `(d, n)`, `(d, <= r)`."""
    return _left_singular(matrix, rank)[1][:, :rank]


def _left_singular(matrix: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Squared singular values, largest first, and left singular vectors, by the smaller Gram matrix.

    That is several times faster than a singular value decomposition, and half as many digits of small directions do.
    """
    if matrix.shape[0] <= matrix.shape[1]:
        values, vectors = torch.linalg.eigh(matrix @ matrix.T)
        return values.flip(0), vectors.flip(1)
    values, right = torch.linalg.eigh(matrix.T @ matrix)
    values, right = values.flip(0), right.flip(1)
    kept = min(rank or len(values), max(1, int((values > _ROUNDING * values[0]).sum())))
    return values[:kept], torch.linalg.qr(matrix @ right[:, :kept]).Q


def residuals(pairs: Sequence[tuple[Tensor, Tensor]], targets: Sequence[Target]) -> Tensor:
    """`||up @ down - target||^2` of every site, `(n)`.

    Sites whose matrices are of one size are worked on together.
    """
    sizes: dict[tuple[torch.Size, ...], list[int]] = {}
    for place, ((down, up), target) in enumerate(zip(pairs, targets, strict=True)):
        sizes.setdefault((down.shape, up.shape, target.down.shape), []).append(place)
    found: list[Tensor] = [torch.empty(0)] * len(pairs)
    for places in sizes.values():
        down, up = (torch.stack([pairs[place][side] for place in places]) for side in (0, 1))
        goal_down = torch.stack([targets[place].down for place in places])
        goal_up = torch.stack([targets[place].up for place in places])
        own = ((up.mT @ up) * (down @ down.mT)).sum(dim=(1, 2))
        common = ((up.mT @ goal_up) * (down @ goal_down.mT)).sum(dim=(1, 2))
        goal = ((goal_up.mT @ goal_up) * (goal_down @ goal_down.mT)).sum(dim=(1, 2))
        for place, square in zip(places, own - 2 * common + goal, strict=True):
            found[place] = square
    return torch.stack(found).clamp_min(0)
