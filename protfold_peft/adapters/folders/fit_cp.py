"""Fitting a CP network: alternating least squares, with every factor's normal equations exact.

The start that finds a tensor of exactly this rank is a generalised eigenvalue problem (Jennrich's algorithm, see Kolda
and Bader, SIAM Review 51, 455 (2009), section 3.3): two random sums of the sites' updates have the columns of `A` as
generalised eigenvectors. Random starts go beside it, as real updates are of no such rank.

Legend: n sites, k width of the side axis in its basis, h heads, j head width, q inner width of the given updates,
r rank, l layers, m kinds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protfold_peft.adapters.folders.fit_targets import Bucket, Target, buckets, leading
from protfold_peft.adapters.networks import CPNetwork

_RIDGE = 1e-13
_SWEEPS = 60
_LAST_SWEEPS = 1000
# A sweep that takes off less than this share of the residual is the last.
_LEAST_GAIN = 1e-5
_EXACT = 1e-15


@dataclass
class _Factors:
    """`A (k, r)`, `B (j, r)`, `heads (h, r)` by number of heads, `layers (l, r)`, `kinds (m, r)`."""

    A: Tensor
    B: Tensor
    heads: dict[int, Tensor]
    layers: Tensor
    kinds: Tensor

    def balance(self) -> None:
        """Give the columns of a component the same root mean square in every factor; its product stays."""
        tensors = [self.A, self.B, next(iter(self.heads.values())), self.layers, self.kinds]
        sizes = [tensor.square().mean(dim=0).sqrt().clamp_min(1e-150) for tensor in tensors]
        common = torch.stack(sizes).log().mean(dim=0).exp()
        self.A, self.B = self.A * (common / sizes[0]), self.B * (common / sizes[1])
        self.heads = {count: factor * (common / sizes[2]) for count, factor in self.heads.items()}
        self.layers, self.kinds = self.layers * (common / sizes[3]), self.kinds * (common / sizes[4])


@torch.no_grad()
def fit_cp(network: CPNetwork, targets: Sequence[Target], restarts: int) -> None:
    """Set the factors of `network`, float64, to the best of the starts.

    Args:
        network: Of the group.
        targets: Of its sites.
        restarts: Starts: one by eigenvectors, the others random.
    """
    found, basis = buckets(targets, heads=bool(network.head_factors))
    whole = sum(target.norm_squared() for target in targets)
    best: tuple[float, _Factors] | None = None
    for start in range(max(restarts, 1)):
        factors = _from_eigenvectors(network, found) if start == 0 else None
        factors = factors or _random(network, found)
        residual = _alternate(factors, found, float(whole), _SWEEPS)
        if best is None or residual < best[0]:
            best = residual, factors
        if residual < _EXACT:
            break
    assert best is not None
    factors = best[1]
    _alternate(factors, found, float(whole), _LAST_SWEEPS)
    factors.balance()
    network.A.copy_(basis @ factors.A)
    network.B.copy_(factors.B / network.scale)
    for count, name in network.head_factors.items():
        network.get_parameter(name).copy_(factors.heads[count])
    network.Cl.copy_(factors.layers if network.head_factors else factors.layers * factors.heads[1])
    network.Cm.copy_(factors.kinds)


def _random(network: CPNetwork, found: Sequence[Bucket]) -> _Factors:
    def normal(rows: int) -> Tensor:
        return torch.randn(rows, network.rank, dtype=torch.float64)

    return _Factors(
        A=normal(found[0].side.shape[1]),
        B=normal(found[0].split.shape[2]),
        heads={bucket.count: normal(bucket.count) for bucket in found},
        layers=normal(len(network.Cl)),
        kinds=normal(len(network.Cm)),
    )


def _from_eigenvectors(network: CPNetwork, found: Sequence[Bucket]) -> _Factors | None:
    """Exact for updates that are a CP tensor of this rank; None where the rank exceeds the widths."""
    largest = max(found, key=lambda bucket: len(bucket.side))
    n, k, _ = largest.side.shape
    split = largest.split.flatten(1, 2)  # (n, w, q)
    rank = network.rank
    if rank > min(k, split.shape[1]) or n < 2:
        return None
    triangles = torch.linalg.qr(split).R, torch.linalg.qr(largest.side).R
    left = leading((largest.side @ triangles[0].mT).permute(1, 0, 2).flatten(1), rank)  # (k, r)
    right = leading((split @ triangles[1].mT).permute(1, 0, 2).flatten(1), rank)  # (w, r)
    if min(left.shape[1], right.shape[1]) < rank:
        return None
    small = (left.T @ largest.side) @ (split.mT @ right)  # (n, r, r)
    first, second = torch.einsum("xn,nab->xab", torch.randn(2, n, dtype=torch.float64), small)
    values, vectors = torch.linalg.eig(first @ torch.linalg.pinv(second))
    # A complex pair spans a plane: its real and imaginary parts.
    columns = torch.where(values.imag >= 0, vectors.real, vectors.imag)
    A = left @ columns
    factors = _random(network, found)
    factors.A = A
    inverse = torch.linalg.pinv(A)
    grid = torch.zeros(len(network.Cl), len(network.Cm), rank, dtype=torch.float64)
    for bucket in [largest, *(other for other in found if other is not largest)]:
        # What is left of a site in each component: c[n] times the outer product of head and width.
        rest = torch.einsum("rk,nkq,nhjq->rnhj", inverse, bucket.side, bucket.split)
        for component in range(rank):
            u, s, vh = _first_singular(rest[component].flatten(1))
            grid[bucket.rows, bucket.columns, component] = u * s
            by_head = vh.view(bucket.split.shape[1:3])
            if bucket is largest:
                head, size, width = _first_singular(by_head)
                factors.B[:, component] = width
                factors.heads[bucket.count][:, component] = head * size
            else:
                factors.heads[bucket.count][:, component] = by_head @ factors.B[:, component]
    for component in range(rank):
        u, s, vh = _first_singular(grid[:, :, component])
        factors.layers[:, component], factors.kinds[:, component] = u * s, vh
    return factors


def _first_singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first singular triple of a matrix of any shape, by its smaller Gram matrix."""
    if matrix.shape[0] > matrix.shape[1]:
        v, s, u = _first_singular(matrix.T)
        return u, s, v
    u = torch.linalg.eigh(matrix @ matrix.T)[1][:, -1]
    v = matrix.T @ u
    s = v.norm().clamp_min(1e-150)
    return u, s, v / s


def _alternate(factors: _Factors, found: Sequence[Bucket], whole: float, sweeps: int) -> float:
    """Improve the factors in place; returns the squared residual as a share of the whole."""
    before = math.inf
    for sweep in range(sweeps):
        residual = _sweep(factors, found, whole) / whole if whole else 0.0
        if residual < _EXACT or (sweep > 10 and before - residual < _LEAST_GAIN * before):
            return residual
        before = residual
    return before


def _sweep(factors: _Factors, found: Sequence[Bucket], whole: float) -> float:
    """Solve for one factor after the other; returns the squared residual."""
    rank = factors.A.shape[1]
    by_site = [factors.layers[b.rows] * factors.kinds[b.columns] for b in found]  # (n, r) each

    def gram(tensor: Tensor) -> Tensor:
        return tensor.T @ tensor

    def inner(bucket: Bucket) -> Tensor:
        """`split` against head and width, `(n, q, r)`."""
        return torch.einsum("nhqr,hr->nqr", _by_width(bucket, factors.B), factors.heads[bucket.count])

    right, matrix = torch.zeros_like(factors.A), factors.A.new_zeros(rank, rank)
    for bucket, c in zip(found, by_site, strict=True):
        right = right + torch.einsum("nkq,nqr->kr", bucket.side, inner(bucket) * c[:, None])
        matrix = matrix + gram(c) * gram(factors.B) * gram(factors.heads[bucket.count])
    factors.A = _solve(right, matrix)
    projected = [torch.einsum("nkq,kr->nqr", bucket.side, factors.A) for bucket in found]

    right, matrix = torch.zeros_like(factors.B), factors.A.new_zeros(rank, rank)
    for bucket, c, side in zip(found, by_site, projected, strict=True):
        weighted = torch.einsum("nqr,hr->nhqr", side * c[:, None], factors.heads[bucket.count])
        right = right + torch.einsum("nhjq,nhqr->jr", bucket.split, weighted)
        matrix = matrix + gram(c) * gram(factors.A) * gram(factors.heads[bucket.count])
    factors.B = _solve(right, matrix)

    sizes, places = [], []
    for bucket, c, side in zip(found, by_site, projected, strict=True):
        right = torch.einsum("nhqr,nqr->hr", _by_width(bucket, factors.B), side * c[:, None])
        head = _solve(right, gram(c) * gram(factors.A) * gram(factors.B))
        factors.heads[bucket.count] = head
        sizes.append((inner(bucket) * side).sum(dim=1))  # (n, r)
        places.append(gram(factors.A) * gram(factors.B) * gram(head))

    for name in ("layers", "kinds"):
        own, other = getattr(factors, name), factors.kinds if name == "layers" else factors.layers
        right, matrix = torch.zeros_like(own), own.new_zeros(len(own), own.shape[1], own.shape[1])
        for bucket, size, place in zip(found, sizes, places, strict=True):
            mine, others = (bucket.rows, bucket.columns) if name == "layers" else (bucket.columns, bucket.rows)
            c = other[others]
            right.index_add_(0, mine, c * size)
            matrix.index_add_(0, mine, c[:, :, None] * c[:, None, :] * place)
        setattr(factors, name, _solve(right[:, None], matrix)[:, 0])

    residual = whole
    for bucket, size, place in zip(found, sizes, places, strict=True):
        c = factors.layers[bucket.rows] * factors.kinds[bucket.columns]
        residual += float(((c @ place) * c).sum() - 2 * (c * size).sum())
    factors.balance()
    return max(residual, 0.0)


def _by_width(bucket: Bucket, B: Tensor) -> Tensor:
    """`split` against the head-width factor, `(n, h, q, r)`."""
    return bucket.split.mT @ B


def _solve(right: Tensor, matrix: Tensor) -> Tensor:
    """`X matrix = right` for symmetric matrices `(.., r, r)`, which may be singular."""
    size = matrix.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None].clamp_min(1e-290)
    ridge = _RIDGE * size * torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    return torch.linalg.solve(matrix + ridge, right.mT).mT
