"""A stronger search than TMscore's: superpositions reweighted until they stand still, from many starts.

    weights   w_i = 1 / (1 + d_i^2 / d0^2)^2 at the present superposition
    step      superpose with these weights

No step lowers the score: 1 / (1 + u) is convex in u = d^2 / d0^2, its tangent bounds it from below, and the weighted
superposition maximises the sum of the tangents. Starts are 16 evenly spread fragments of each of TMscore's lengths and
the superposition that TMscore's own search found, so the result is never below that search's.

Source of the scheme: iteratively reweighted least squares, here for the kernel of the TM-score; minorisation by
tangents as in Hunter & Lange, "A tutorial on MM algorithms", Am. Stat. 58 (2004) 30.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protfold_peft.metrics import search as tmscore
from protfold_peft.metrics.search import Found, keep_best, store
from protfold_peft.metrics.side_by_side import side_by_side
from protfold_peft.metrics.states import Pairs, States, blocks, by_size, distance_weights, motions, seeds

STARTS_PER_LENGTH = 16
ITERATIONS = 20


def search(mobile: Tensor, target: Tensor, matched: Tensor, d0: Tensor) -> Found:
    """TMscore's search and the reweighted one behind it; arguments as in `search.search`, no cutoffs."""
    found = tmscore.search(mobile, target, matched, d0)

    def work(places: Tensor) -> tuple[Pairs, Found]:
        pairs = Pairs.of(mobile[places], target[places], matched[places], d0[places])
        moved = (found.rotation[places] @ pairs.mobile_mean[..., None]).squeeze(-1)
        best = Found(
            total=found.total[places],
            rotation=found.rotation[places],
            translation=found.translation[places] - pairs.target_mean + moved,
            within=found.within[places],
        )
        _climb(pairs, best)
        return pairs, best

    groups = by_size(matched.sum(dim=1))
    for places, (pairs, best) in zip(groups, side_by_side(work, groups, mobile.device), strict=True):
        store(found, places, pairs, best)
    return found


def _climb(pairs: Pairs, best: Found) -> None:
    """Improve `best`, in place."""
    states = seeds(pairs, STARTS_PER_LENGTH)
    rotation, translation = motions(states.sums)
    # TMscore's superposition is one start more for every pair.
    pair = torch.cat([states.pair, torch.arange(len(pairs.d0), device=states.pair.device)])
    pair, order = pair.sort(stable=True)
    rotation = torch.cat([rotation, best.rotation.flatten(1).T], dim=1)[:, order]
    translation = torch.cat([translation, best.translation.T], dim=1)[:, order]
    for _ in range(ITERATIONS):
        states = _reweighted(pairs, pair, rotation, translation)
        rotation, translation = motions(states.sums)
    total = _totals(pairs, pair, rotation, translation)
    keep_best(best, pair, total, rotation, translation)


def _reweighted(pairs: Pairs, pair: Tensor, rotation: Tensor, translation: Tensor) -> States:
    weights = distance_weights(rotation, translation, pairs.d0[pair])
    sums = torch.empty_like(weights)
    for block in blocks(pair, pairs.distances.shape[-1]):
        kernel = (weights[block.state] @ pairs.distances[block.pair]).reciprocal_()
        sums[block.state] = kernel.square_() @ pairs.sums[block.pair]
    return States(pair, sums)


def _totals(pairs: Pairs, pair: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    weights = distance_weights(rotation, translation, pairs.d0[pair])
    total = weights.new_empty(len(pair))
    for block in blocks(pair, pairs.distances.shape[-1]):
        total[block.state] = (weights[block.state] @ pairs.distances[block.pair]).reciprocal_().sum(dim=-1)
    return total
