"""TMscore's search over superpositions, for many pairs, seeds and fragments at once.

    seeds       fragments of length L, L/2, L/4, L/8, L/16 and 4 of the matched residues, at every start
    superpose   the fragment, and look at all residues: those within clamp(d0, 4.5, 8) - 1 angstrom form a set
    iterate     up to 20 times: superpose the set; those within clamp(d0, 4.5, 8) + 1 form the next
                (a set of fewer than 3 of more than 3 residues is taken again with a cutoff 0.5 wider, until it has 3)
    best        the highest score of any superposition on the way

Source: Zhang & Skolnick, "Scoring function for automated assessment of protein structure template quality", Proteins 57
(2004) 702, and the behaviour of their program.

How it is made quick: all sets are superposed and looked at together, by matrix products (`states.py`), and a set that
some seed of the pair has met before is not followed again. The path from a set on depends on the set alone, and whoever
met it first has at least as many iterations left: this drops converged seeds, whose set repeats, and those that run
together, and changes no result.

Axis letters: `b` pairs, `n` residues, `s` states (a pair and a set of its residues), `c` cutoffs of GDT, `k` = 17.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protfold_peft.metrics.side_by_side import side_by_side
from protfold_peft.metrics.states import Pairs, States, blocks, by_size, distance_weights, motions, seeds

ITERATIONS = 20
WIDENING = 0.5
WANTED_IN_SET = 3


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
    found = _nothing(len(mobile), len(cutoffs), mobile)

    def work(places: Tensor) -> tuple[Pairs, Found]:
        pairs = Pairs.of(mobile[places], target[places], matched[places], d0[places])
        return pairs, _search(pairs, cutoffs)

    groups = by_size(matched.sum(dim=1))
    for places, (pairs, best) in zip(groups, side_by_side(work, groups, mobile.device), strict=True):
        store(found, places, pairs, best)
    return found


def _search(pairs: Pairs, cutoffs: tuple[float, ...]) -> Found:
    """The states of all seeds improved until they repeat, and the best that was met."""
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
