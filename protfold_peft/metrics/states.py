"""Pairs of structures made ready for a search, and the sets of their residues that it superposes.

Superposing sets and looking at all residues are two matrix products. With the features f_i = (y x^T, x, y, 1, ...) of
residue i (x mobile, y target), the sums that superposing a set needs are (the set's indicator) . f, and the squared
distance of residue i after the motion (R, t) is linear in f_i too:

    |R x + t - y|^2 = |x|^2 + |y|^2 + |t|^2 + 2 (R^T t) . x - 2 t . y - 2 sum_ab R_ab y_a x_b

Sets are told apart by the sum of a random integer for each of their residues. It is exact in float64, as the integers
have 53 bits less those of the number of residues, 43 at most; two different sets of a pair have the same sum once in
10^13 (chains below 1,000 residues; 10^12 at 8,000).

Axis letters: `b` pairs, `n` residues, `s` states (a pair and a set of its residues), `k` = 17 features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from protfold_peft.metrics.rotation import best_rotation
from protfold_peft.metrics.side_by_side import n_workers

SHORTEST_SEED = 4
SEED_HALVINGS = 4
# Residues are looked at by blocks of this many (state, residue) places: on a CPU what stays in a core's cache, on a GPU
# what keeps it busy. 8 bytes each, about four such arrays live at a time.
BLOCK_CPU = 1 << 18
BLOCK_GPU = 1 << 25
# Pairs are searched together while their seeds are no more than this (for each core of a CPU); about 1 kB each.
SEEDS_CPU = 1 << 15
SEEDS_GPU = 1 << 20
# Squared distance given to padding, in square angstrom: beyond every cutoff, and nothing to any score.
_FAR = 1e30
_MOST_BITS = 43


def by_size(n_matched: Tensor) -> list[Tensor]:
    """Indices of pairs, alike in size, by groups to search together: of bounded memory, and one for each core at least.

    Pairs without a matched residue are in none.
    """
    on_cpu = n_matched.device.type == "cpu"
    order = n_matched.argsort(descending=True, stable=True)
    sizes = [size for size in n_matched[order].tolist() if size]
    # About four seeds per residue.
    limit = min(SEEDS_CPU if on_cpu else SEEDS_GPU, -(-4 * sum(sizes) // n_workers(n_matched.device)))
    groups = []
    first = 0
    while first < len(sizes):
        last = min(len(sizes), first + max(1, limit // (4 * sizes[first])))
        groups.append(order[first:last])
        first = last
    return groups


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs made ready: matched residues first, coordinates centred, features laid out.

    Attributes:
        sums: `(b, n, k)` features for the sums over sets: the random integer, y x^T (9), x (3), y (3), 1.
        distances: `(b, k, n)` features for squared distances: y x^T (9), x (3), y (3), 1, |x|^2 + |y|^2.
        n_matched: `(b,)` int.
        d0: `(b,)`.
        search_d0: `(b,)` d0 between 4.5 and 8 A.
        mobile_mean, target_mean: `(b, 3)` what centring took away.
    """

    sums: Tensor
    distances: Tensor
    n_matched: Tensor
    d0: Tensor
    search_d0: Tensor
    mobile_mean: Tensor
    target_mean: Tensor

    @classmethod
    def of(cls, mobile: Tensor, target: Tensor, matched: Tensor, d0: Tensor) -> Pairs:
        """Make pairs ready.

        Args:
            mobile, target: `(b, n, 3)` points, float64.
            matched: `(b, n)` true where both are known.
            d0: `(b,)` in angstrom.
        """
        n_matched = matched.sum(dim=1)
        longest = int(n_matched.max())
        order = (~matched).byte().argsort(dim=1, stable=True)[:, :longest]
        present = matched.gather(1, order)[..., None]
        x, x_mean = _centred(mobile, order, present)
        y, y_mean = _centred(target, order, present)
        products = (y[..., :, None] * x[..., None, :]).flatten(-2)
        squares = torch.where(present, (x.square() + y.square()).sum(-1, keepdim=True), _FAR)
        one = present.to(x.dtype)
        bits = min(_MOST_BITS, 53 - longest.bit_length())
        label = torch.randint(1 << bits, (longest,), generator=torch.Generator().manual_seed(0)).to(x)
        return cls(
            sums=torch.cat([label[:, None] * one, products, x, y, one], dim=-1),
            distances=torch.cat([products, x, y, one, squares], dim=-1).mT.contiguous(),
            n_matched=n_matched,
            d0=d0,
            search_d0=d0.clamp(4.5, 8.0),
            mobile_mean=x_mean,
            target_mean=y_mean,
        )


def _centred(points: Tensor, order: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    points = torch.where(present, points.gather(1, order[..., None].expand(-1, -1, 3)), 0.0)
    mean = points.sum(dim=1) / present.sum(dim=1).clamp_min(1)
    return torch.where(present, points - mean[:, None], 0.0), mean


@dataclass(frozen=True, eq=False)
class States:
    """Sets of residues to superpose: `pair` `(s,)` in ascending order, `sums` `(s, k)` of their features."""

    pair: Tensor
    sums: Tensor


def seeds(pairs: Pairs, starts: int | None = None) -> States:
    """The fragments that a search starts from: at every start, or at up to `starts` of them, evenly spread."""
    n = pairs.n_matched
    lengths = [n]
    shortest = n.clamp_max(SHORTEST_SEED)
    for halving in range(1, SEED_HALVINGS + 1):
        # The first length that does not exceed the shortest is the last; those after it are marked by 0.
        length = torch.maximum(n // 2**halving, shortest)
        lengths.append(torch.where(lengths[-1] <= shortest, 0, length))
    lengths.append(torch.where(lengths[-1] <= shortest, 0, shortest))
    # Sums over fragments are differences of running sums.
    running = torch.nn.functional.pad(pairs.sums.cumsum(dim=1), (0, 0, 1, 0))
    pair, first, last = [], [], []
    for length in lengths:
        ends = n - length
        count = torch.where(length > 0, ends + 1, 0)
        if starts is not None:
            count = count.clamp_max(starts)
        place = torch.arange(int(count.max()), device=n.device)
        which, step = (place < count[:, None]).nonzero(as_tuple=True)
        start = step if starts is None else step * ends[which] // (count[which] - 1).clamp_min(1)
        pair.append(which)
        first.append(start)
        last.append(start + length[which])
    which, order = torch.cat(pair).sort(stable=True)
    start, end = torch.cat(first)[order], torch.cat(last)[order]
    return States(which, running[which, end] - running[which, start])


def motions(sums: Tensor) -> tuple[Tensor, Tensor]:
    """`(9, s)` rotations, row by row, and `(3, s)` translations that superpose sets with these `(s, k)` sums."""
    columns = sums.T.contiguous()
    products, x, y = columns[1:10], columns[10:13], columns[13:16]
    per_point = columns[16].clamp_min(1e-300).reciprocal()
    x, y = x * per_point, y * per_point
    b = [torch.addcmul(products[i] * per_point, y[i // 3], x[i % 3], value=-1) for i in range(9)]
    rotation = best_rotation(b)
    translation = []
    for row in range(3):
        value = torch.addcmul(y[row], rotation[3 * row], x[0], value=-1)
        value = torch.addcmul(value, rotation[3 * row + 1], x[1], value=-1)
        translation.append(torch.addcmul(value, rotation[3 * row + 2], x[2], value=-1))
    return torch.stack(rotation), torch.stack(translation)


def distance_weights(rotation: Tensor, translation: Tensor, d0: Tensor) -> Tensor:
    """`(s, k)` weights w with w . (distance features of a residue) = 1 + d^2 / d0^2."""
    scale = d0.square().reciprocal()
    r, t = rotation, translation
    back = [(r[i] * t[0] + r[3 + i] * t[1] + r[6 + i] * t[2]) * (2 * scale) for i in range(3)]
    constant = torch.addcmul(torch.ones_like(scale), t.square().sum(dim=0), scale)
    return torch.stack([*(r * (-2 * scale)), *back, *(t * (-2 * scale)), constant, scale], dim=-1)


@dataclass(frozen=True, eq=False)
class Block:
    """States looked at together: `pair` `(p,)`, `state` `(p, q)` places, those beyond a pair's own repeat its first."""

    pair: Tensor
    state: Tensor


def blocks(pair: Tensor, n: int) -> Iterator[Block]:
    """States (`pair` ascending) by blocks of bounded size: pieces of one pair's states, alike in number together."""
    budget = BLOCK_CPU if pair.device.type == "cpu" else BLOCK_GPU
    most = max(1, budget // n)
    owners, counts = pair.unique_consecutive(return_counts=True)
    first = counts.cumsum(0) - counts
    pieces = (counts + most - 1) // most
    owner = owners.repeat_interleave(pieces)
    part = torch.arange(len(owner), device=pair.device) - (pieces.cumsum(0) - pieces).repeat_interleave(pieces)
    begin = first.repeat_interleave(pieces) + part * most
    size = torch.minimum(counts.repeat_interleave(pieces) - part * most, counts.new_tensor(most))
    size, order = size.sort(descending=True, stable=True)
    owner, begin = owner[order], begin[order]
    sizes = size.tolist()
    at = 0
    while at < len(sizes):
        rows = max(1, most // sizes[at])
        step = torch.arange(sizes[at], device=pair.device)
        own = slice(at, at + rows)
        yield Block(owner[own], begin[own, None] + torch.where(step < size[own, None], step, 0))
        at += rows
