"""Clusters of chains that resemble each other, and a split that cuts none of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

TRAIN, VALIDATION = "train", "validation"


def clusters(n: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """`(n,)` cluster of every chain: two chains are in one where a path of pairs joins them (single linkage).

    So no chain resembles a chain of another cluster, which a cluster around a representative does not promise.
    Clusters are numbered in the order of their first chains.
    """
    parents = np.arange(n)

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = int(parents[i])
        return i

    for one, other in pairs:
        a, b = root(one), root(other)
        parents[max(a, b)] = min(a, b)
    roots = np.array([root(i) for i in range(n)], dtype=np.int64)
    return np.unique(roots, return_inverse=True)[1].reshape(-1)


def split(cluster: np.ndarray, sequences: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """`(n,)` bool, true for validation: whole clusters, `fraction` of the chains or as near below as they allow.

    Clusters are taken in a random order, and one that is too large for what is left is passed over. If none fits, the
    smallest is taken, as long as another is left for training. The choice hangs on the sequences and the seed, not on
    names or order.

    Args:
        cluster: `(n,)` from `clusters`.
        sequences: `n` sequences, no two alike.
        fraction: 0..1.
        seed: Of the order.
    """
    n = len(cluster)
    sizes = np.bincount(cluster, minlength=0)
    if fraction <= 0 or len(sizes) < 2:
        return np.zeros(n, dtype=bool)
    first: dict[int, str] = {}
    for number, sequence in zip(cluster.tolist(), sequences, strict=True):
        first[number] = min(first.get(number, sequence), sequence)
    order = sorted(first, key=lambda number: first[number])
    left = round(fraction * n)
    chosen = []
    for place in np.random.default_rng(seed).permutation(len(order)):
        size = int(sizes[order[place]])
        if size <= left:
            chosen.append(order[place])
            left -= size
    if not chosen:
        chosen = [min(order, key=lambda number: (sizes[number], first[number]))]
    return np.isin(cluster, chosen)
