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

# Directions whose share of the updates is below this, as a norm, are rounding.
_ROUNDING = 1e-13


@dataclass(frozen=True)
class Target:
    """The update that a site should get: `up @ down`, `down (q, d_in)`, `up (d_out, q)`, float64."""

    site: Site
    down: Tensor
    up: Tensor

    def norm_squared(self) -> Tensor:
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
    """An orthonormal basis `(d, k)` of the columns of `(d, n)`."""
    u, s, _ = torch.linalg.svd(_shortened(matrix), full_matrices=False)
    return u[:, : max(1, int((s > _ROUNDING * s[0]).sum()))]


def _shortened(matrix: Tensor) -> Tensor:
    """`(d, <= d)` with the same left singular vectors and values."""
    return torch.linalg.qr(matrix.T).R.T if matrix.shape[1] > matrix.shape[0] else matrix


def leading(matrix: Tensor, rank: int) -> Tensor:
    """The first left singular vectors of `(d, n)`, `(d, <= r)`."""
    return torch.linalg.svd(_shortened(matrix), full_matrices=False)[0][:, :rank]


def residuals(pairs: Sequence[tuple[Tensor, Tensor]], targets: Sequence[Target]) -> Tensor:
    """`||up @ down - target||^2` of every site, `(n)`."""
    found = []
    for (down, up), target in zip(pairs, targets, strict=True):
        own = ((up.T @ up) * (down @ down.T)).sum()
        common = ((up.T @ target.up) * (down @ target.down.T)).sum()
        found.append(own - 2 * common + target.norm_squared())
    return torch.stack(found).clamp_min(0)
