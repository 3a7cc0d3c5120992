"""TMscore's search over superpositions, for many pairs, seeds and fragments at once.

    seeds       fragments of length L, L/2, L/4, L/8, L/16 and 4 of the matched residues, at every start
    superpose   the fragment, and look at all residues: those within clamp(d0, 4.5, 8) - 1 angstrom form a set
    iterate     up to 20 times: superpose the set; those within clamp(d0, 4.5, 8) + 1 form the next
                (a set of fewer than 3 of more than 3 residues is taken again with a cutoff 0.5 wider, until it has 3)
    best        the highest score of any superposition on the way

Source: Zhang & Skolnick, "Scoring function for automated assessment of protein structure template quality", Proteins 57
(2004) 702, and the behaviour of their program.

How it is made quick. Superposing and looking at all residues are two matrix products: with the features
f_i = (y x^T, x, y, 1, ...) of residue i, the sums that superposing a set needs are (set's indicator) . f, and the
squared distance of residue i after the motion (R, t) is linear in f_i too:

    |R x + t - y|^2 = |x|^2 + |y|^2 + |t|^2 + 2 (R^T t) . x - 2 t . y - 2 sum_ab R_ab y_a x_b

The path from a set on depends on the set alone. So a set that some seed of the pair has met before need not be followed
again: whoever met it first has at least as many iterations left. This drops converged seeds (their set repeats) and
those that run together, and changes no result. Sets are told apart by a sum of random integers of 43 bits, exact in
float64; two sets of a pair with the same sum are one in 10^13.

Axis letters: `b` pairs, `n` residues, `s` states (a pair and a set of its residues), `c` cutoffs of GDT, `k` = 17.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from protfold_peft.metrics.rotation import closed_form_rotation

ITERATIONS = 20
SHORTEST_SEED = 4
SEED_HALVINGS = 4
WIDENING = 0.5
WANTED_IN_SET = 3
# Residues are looked at by blocks of this many (state, residue) places: on a CPU what stays in a core's cache, on a GPU
# what keeps it busy. 8 bytes each, about four such arrays live at a time.
BLOCK_CPU = 1 << 18
BLOCK_GPU = 1 << 25
# Pairs are searched together while their seeds are no more than this; about 1 kB each.
SEEDS_CPU = 1 << 16
SEEDS_GPU = 1 << 20
# Squared distance given to padding, in square angstrom: beyond every cutoff, and nothing to any score.
_FAR = 1e30
_HASH_BITS = 43


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found, for float64 pairs.

    Attributes:
        total: `(b,)` the highest sum over matched residues of 1 / (1 + d^2 / d0^2).
        rotation: `(b, 3, 3)` of the superposition that has it.
        translation: `(b, 3)` in angstrom.
        within: `(b, c)` for each cutoff the most residues any superposition had within it.
    """

    total: Tensor
    rotation: Tensor
    translation: Tensor
    within: Tensor


def search(mobile: Tensor, target: Tensor, matched: Tensor, d0: Tensor, cutoffs: tuple[float, ...] = ()) -> Found:
    """TMscore's search for every pair.

    Args:
        mobile: `(b, n, 3)` float64, finite wherever `matched`.
        target: `(b, n, 3)` float64.
        matched: `(b, n)` bool, the residues compared.
        d0: `(b,)` float64 scale of the score in angstrom.
        cutoffs: Distances for which residues within them are counted.
    """
    n_matched = matched.sum(dim=1)
    found = _nothing(len(mobile), len(cutoffs), mobile)
    limit = SEEDS_CPU if mobile.device.type == "cpu" else SEEDS_GPU
    for places in by_size(n_matched, limit):
        pairs = Pairs.of(mobile[places], target[places], matched[places], d0[places])
        store(found, places, pairs, _search(pairs, cutoffs))
    return found


def by_size(n_matched: Tensor, limit: int) -> Iterator[Tensor]:
    """Indices of pairs, alike in size, by groups whose seeds (about four per residue) stay within `limit`.

    Pairs without a matched residue are in none.
    """
    order = n_matched.argsort(descending=True, stable=True)
    sizes = [size for size in n_matched[order].tolist() if size]
    first = 0
    while first < len(sizes):
        count = max(1, limit // (4 * sizes[first]))
        yield order[first : min(first + count, len(sizes))]
        first += count


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs made ready: matched residues first, coordinates centred, features laid out.

    Attributes:
        sums: `(b, n, k)` features for the sums over sets: random integer, y x^T (9), x (3), y (3), 1.
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
        n_matched = matched.sum(dim=1)
        longest = int(n_matched.max())
        order = (~matched).byte().argsort(dim=1, stable=True)[:, :longest]
        present = matched.gather(1, order)[..., None]
        x, x_mean = _centred(mobile, order, present)
        y, y_mean = _centred(target, order, present)
        products = (y[..., :, None] * x[..., None, :]).flatten(-2)
        squares = torch.where(present, (x.square() + y.square()).sum(-1, keepdim=True), _FAR)
        one = present.to(x.dtype)
        generator = torch.Generator().manual_seed(0)
        label = torch.randint(1 << _HASH_BITS, (longest,), generator=generator).to(x)
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


def _search(pairs: Pairs, cutoffs: tuple[float, ...]) -> Found:
    best = _nothing(len(pairs.d0), len(cutoffs), pairs.d0)
    met = torch.empty(0, dtype=torch.int64, device=pairs.d0.device)
    states, cutoff = seeds(pairs), pairs.search_d0 - 1
    for _ in range(ITERATIONS + 1):
        if not len(states.pair):
            break
        rotation, translation = motions(states.sums)
        total, within, sums = _look(pairs, states.pair, rotation, translation, cutoff, cutoffs)
        keep_best(best, states.pair, total, rotation, translation)
        if cutoffs:
            best.within.scatter_reduce_(0, states.pair[:, None].expand(-1, len(cutoffs)), within, "amax")
        states, met = _unmet(States(states.pair, sums), met)
        cutoff = pairs.search_d0 + 1
    return best


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
    rotation = closed_form_rotation(b)
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


def _look(
    pairs: Pairs, pair: Tensor, rotation: Tensor, translation: Tensor, cutoff: Tensor, cutoffs: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Score, residues within `cutoffs`, and the sums of the next set, of every state: `(s,)`, `(s, c)`, `(s, k)`."""
    weights = distance_weights(rotation, translation, pairs.d0[pair])
    total = weights.new_empty(len(pair))
    within = weights.new_empty(len(pair), len(cutoffs))
    sums = torch.empty_like(weights)
    inverse_square = pairs.d0.square().reciprocal()
    bound = 1 + cutoff.square() * inverse_square
    for block in blocks(pair, pairs.distances.shape[-1]):
        own = block.pair
        # 1 + d^2 / d0^2 of every residue.
        distance = weights[block.state] @ pairs.distances[own]
        chosen = torch.empty_like(distance)
        torch.lt(distance, bound[own, None, None], out=chosen)
        set_sums = chosen @ pairs.sums[own]
        _widen(pairs, own, distance, cutoff, set_sums)
        sums[block.state] = set_sums
        for place, radius in enumerate(cutoffs):
            limit = (1 + radius**2 * inverse_square[own])[:, None, None]
            within[block.state, place] = (distance <= limit).sum(dim=-1).to(within.dtype)
        total[block.state] = distance.reciprocal_().sum(dim=-1)
    return total, within, sums


def _widen(pairs: Pairs, own: Tensor, distance: Tensor, cutoff: Tensor, set_sums: Tensor) -> None:
    """Where a set has fewer than 3 of more than 3 residues, put the sums of the wider one in place."""
    few = (set_sums[..., -1] < WANTED_IN_SET - 0.5) & (pairs.n_matched[own] > WANTED_IN_SET)[:, None]
    row, column = few.nonzero(as_tuple=True)
    if not len(row):
        return
    pair = own[row]
    scaled, d0, start = distance[row, column], pairs.d0[pair], cutoff[pair]
    third = scaled.topk(WANTED_IN_SET, dim=-1, largest=False).values[:, -1]
    third = (third - 1).clamp_min(0).sqrt() * d0
    # The first cutoff of start, start + 0.5, ... that is above the third smallest distance.
    radius = start + WIDENING * (((third - start) / WIDENING).floor() + 1).clamp_min(0)
    chosen = scaled < (1 + (radius / d0).square())[:, None]
    set_sums[row, column] = (chosen.to(scaled.dtype)[:, None] @ pairs.sums[pair]).squeeze(1)


def keep_best(best: Found, pair: Tensor, total: Tensor, rotation: Tensor, translation: Tensor) -> None:
    """Write into `best`, in place, the states that beat it."""
    highest = best.total.scatter_reduce(0, pair, total, "amax")
    places = ((total == highest[pair]) & (total > best.total[pair])).nonzero().squeeze(-1)
    # One state per pair, the first of several equal ones: rotation and translation must come from the same.
    first = torch.full_like(best.total, len(pair), dtype=torch.int64)
    first = first.scatter_reduce(0, pair[places], places, "amin")
    improved = (first < len(pair)).nonzero().squeeze(-1)
    winner = first[improved]
    best.rotation[improved] = rotation[:, winner].T.unflatten(-1, (3, 3))
    best.translation[improved] = translation[:, winner].T
    best.total.copy_(highest)


def _unmet(states: States, met: Tensor) -> tuple[States, Tensor]:
    """The states whose set no seed of their pair has met, once each, and all met now."""
    key = (states.pair << 44) | (states.sums[:, 0].to(torch.int64) & ((1 << 44) - 1))
    key, order = key.sort(stable=True)
    new = torch.ones_like(key, dtype=torch.bool)
    new[1:] = key[1:] != key[:-1]
    if len(met):
        place = torch.searchsorted(met, key).clamp_max(len(met) - 1)
        new &= met[place] != key
    # Chains of up to three residues may have an empty set.
    new &= states.sums[order, -1] > 0.5
    kept = order[new]
    return States(states.pair[kept], states.sums[kept]), torch.cat([met, key[new]]).sort().values


def _nothing(n_pairs: int, n_cutoffs: int, like: Tensor) -> Found:
    return Found(
        total=like.new_zeros(n_pairs),
        rotation=torch.eye(3, dtype=like.dtype, device=like.device).repeat(n_pairs, 1, 1),
        translation=like.new_zeros(n_pairs, 3),
        within=like.new_zeros(n_pairs, n_cutoffs),
    )


def store(found: Found, places: Tensor, pairs: Pairs, best: Found) -> None:
    """Put a group's results where they belong, with translations between uncentred coordinates."""
    moved = (best.rotation @ pairs.mobile_mean[..., None]).squeeze(-1)
    found.total[places] = best.total
    found.rotation[places] = best.rotation
    found.translation[places] = best.translation + pairs.target_mean - moved
    found.within[places] = best.within
