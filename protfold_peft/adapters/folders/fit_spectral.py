"""Starting points of Tucker-2, Tucker, Tensor-Train and LoRA by singular vectors, one mode after the other.

Where the given updates are a tensor of the network's ranks, and every layer has every kind of site, they are exact;
otherwise close to the best (De Lathauwer et al., SIAM J. Matrix Anal. Appl. 21, 1253 (2000); Vannieuwenhoven et al.,
SIAM J. Sci. Comput. 34, A1027 (2012); Oseledets, SIAM J. Sci. Comput. 33, 2295 (2011)).

Legend: n sites, d side axis, w other axis, h heads, j head width, q inner
width of the given updates, r ranks, l layers, m kinds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from protfold_peft.adapters.folders.fit_targets import Bucket, Target, buckets, leading
from protfold_peft.adapters.networks import LoRANetwork, TensorTrainNetwork, Tucker2Network, TuckerNetwork

_ROUNDS = 200
# Tensors of more numbers are not made.
_LARGEST = 2**27


@torch.no_grad()
def fit_lora(network: LoRANetwork, targets: Sequence[Target]) -> None:
    """The best pair of this rank; rows beyond the update's own rank start like a new adapter's."""
    (target,) = targets
    left, left_triangle = torch.linalg.qr(target.up)
    right, right_triangle = torch.linalg.qr(target.down.T)
    u, s, vh = torch.linalg.svd(left_triangle @ right_triangle.T, full_matrices=False)
    kept = min(network.rank, len(s))
    root = s[:kept].sqrt()
    network.A.copy_(_padded((root[:, None] * vh[:kept] @ right.T).T, network.rank).T)
    network.B.zero_()
    network.B[:, :kept] = left @ (u[:, :kept] * root) / network.scale


@torch.no_grad()
def fit_tucker2(network: Tucker2Network, targets: Sequence[Target]) -> None:
    """Left and right spaces by alternating singular vectors, the cores by projection."""
    found, basis = buckets(targets, heads=False)
    side, split = found[0].side, found[0].split[:, 0]
    left, right = _spaces(side, split, network.rank)
    network.U.copy_(_padded(left, network.rank))
    network.V.copy_(_padded(basis @ right, network.rank).T)
    network.G.zero_()
    # Buckets keep the order of the targets, which is that of the network's sites.
    network.G[:, : left.shape[1], : right.shape[1]] = (left.T @ split) @ (side.mT @ right) / network.scale


def _spaces(side: Tensor, split: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`left (w, r)`, `right (k, r)` that keep the most of `split side^T`.

    Each turns towards the leading space that the other leaves it, by a step of orthogonal iteration at a time.
    """
    right = leading(_beside(side @ torch.linalg.qr(split).R.mT), rank)
    left = leading(_beside(split @ (side.mT @ right)), rank)
    kept = 0.0
    for _ in range(_ROUNDS):
        to_left = _beside(split @ (side.mT @ right))
        left = torch.linalg.qr(to_left @ (to_left.T @ left)).Q
        to_right = _beside(side @ (split.mT @ left))
        right = torch.linalg.qr(to_right @ (to_right.T @ right)).Q
        before, kept = kept, (left.T @ split @ (side.mT @ right)).square().sum().item()
        if kept - before <= 1e-7 * kept:
            break
    return left, right


def _beside(matrices: Tensor) -> Tensor:
    """`(n, a, b)` to `(a, n b)`."""
    return matrices.permute(1, 0, 2).flatten(1)


def _tensor(found: Sequence[Bucket], right: Tensor, layers: int, kinds: int) -> Tensor | None:
    """The updates on a grid, the side axis in the space `right`: `(r, j, h, m, l)`, zero where there is no site.

    Where there are several numbers of heads, the fewer are repeated to the most: in grouped-query attention, one for
    each head that it serves. None where the tensor would be too large.
    """
    heads, width = found[0].count, found[0].split.shape[2]
    if right.shape[1] * width * heads * layers * kinds > _LARGEST:
        return None
    tensor = torch.zeros(right.shape[1], width, heads, kinds, layers, dtype=torch.float64)
    for bucket in found:
        values = torch.einsum("nkq,kr,nhjq->nrjh", bucket.side, right, bucket.split)[..., _served(heads, bucket.count)]
        for value, row, column in zip(values, bucket.rows, bucket.columns, strict=True):
            tensor[..., column, row] = value
    return tensor


def _served(heads: int, count: int) -> Tensor:
    """For each of `heads` heads, its place among `count`."""
    return torch.arange(heads) * count // heads


@torch.no_grad()
def start_tucker(network: TuckerNetwork, targets: Sequence[Target]) -> bool:
    """Set core and factors; False where the tensor would be too large."""
    ranks = network.mode_ranks
    found, basis = buckets(targets, heads="heads" in ranks)
    side, other = ("model", "head_width") if "heads" in ranks else ("input", "output")
    right = leading(torch.cat([_beside(_weighted(bucket)) for bucket in found], dim=1), ranks[side])
    layers = len(network.get_parameter("U_layers")) if "layers" in ranks else 1
    kinds = len(network.get_parameter("U_kinds")) if "kinds" in ranks else 1
    found = [_on_grid(bucket, "layers" in ranks, "kinds" in ranks) for bucket in found]
    tensor = _tensor(found, right, layers, kinds)
    if tensor is None:
        return False
    names = [side, other, "heads", "kinds", "layers"]
    factors = {side: basis @ right}
    for axis, name in enumerate(names):
        if name in ranks and name != side:
            matrix = leading(torch.movedim(tensor, axis, 0).flatten(1), ranks[name])
            tensor = torch.movedim(torch.tensordot(matrix.T, tensor, dims=([1], [axis])), 0, axis)
            factors[name] = matrix
    tensor = tensor.squeeze([axis for axis, name in enumerate(names) if name not in ranks])
    present = [name for name in names if name in ranks]
    tensor = tensor.permute([present.index(name) for name in ranks])
    network.core.zero_()
    network.core[tuple(slice(size) for size in tensor.shape)] = tensor / network.scale
    for name, matrix in factors.items():
        padded = _padded(matrix, ranks[name])
        if name != "heads":
            network.get_parameter(f"U_{name}").copy_(padded)
            continue
        for count, of_count in network.head_factors.items():
            network.get_parameter(of_count).copy_(_gathered(padded, count))
    return True


def _on_grid(bucket: Bucket, layers: bool, kinds: bool) -> Bucket:
    """With all sites in the first row, or column, of an axis that the network does not have."""
    return Bucket(
        bucket.count,
        bucket.side,
        bucket.split,
        bucket.rows if layers else torch.zeros_like(bucket.rows),
        bucket.columns if kinds else torch.zeros_like(bucket.columns),
    )


def _weighted(bucket: Bucket) -> Tensor:
    """`(n, k, q)` with the left singular vectors and values of every update."""
    return bucket.side @ torch.linalg.qr(bucket.split.flatten(1, 2)).R.mT


@torch.no_grad()
def start_tensor_train(network: TensorTrainNetwork, targets: Sequence[Target]) -> bool:
    """Set the cores by singular values, from the output to the input; False where the tensor would be too large."""
    rank, with_heads = network.rank, bool(network.head_cores)
    found, basis = buckets(targets, heads=with_heads)
    if with_heads:
        right = leading(torch.cat([_beside(_weighted(bucket)) for bucket in found], dim=1), rank)
        left: Tensor | None = None
    else:
        left, right = _spaces(found[0].side, found[0].split[:, 0], rank)
        found = [Bucket(1, b.side, (left.T @ b.split), b.rows, b.columns) for b in found]
    tensor = _tensor(found, right, len(network.Gl), len(network.Gm))
    if tensor is None:
        return False
    chain = tensor.permute(1, 2, 4, 3, 0)  # (j, h, l, m, r)
    cores = []
    carried, inner = chain.flatten(1), 1
    for length in chain.shape[:3]:
        unfolded = carried.reshape(inner * length, -1)
        u, s, vh = torch.linalg.svd(unfolded, full_matrices=False)
        kept = min(rank, len(s))
        cores.append(u[:, :kept].reshape(inner, length, kept))
        carried, inner = s[:kept, None] * vh[:kept], kept
    cores.append(carried.reshape(inner, chain.shape[3], -1))
    first, by_head, by_layer, by_kind = cores
    G1 = first[0] if left is None else left @ first[0]
    if not with_heads:
        # One "head": its matrix joins the layers'.
        by_layer = torch.einsum("ab,blc->alc", by_head[:, 0], by_layer)
    size = (by_kind.square().sum() / (rank * by_kind.shape[1])).sqrt().clamp_min(1e-150)
    network.G1.copy_(_padded(G1, rank) * size.sqrt() / network.scale)
    network.G2.copy_(_padded(basis @ right, rank).T * size.sqrt())
    network.Gl.copy_(_padded_cores(by_layer, rank))
    network.Gm.copy_(_padded_cores(by_kind / size, rank))
    cores_by_head = _padded_cores(by_head, rank)
    for count, name in network.head_cores.items():
        network.get_parameter(name).copy_(_gathered(cores_by_head, count))
    return True


def _gathered(by_head: Tensor, count: int) -> Tensor:
    """The inverse of `_served`: the mean over the heads that each of `count` serves."""
    served = _served(len(by_head), count)
    return torch.stack([by_head[served == head].mean(dim=0) for head in range(count)])


def _padded(matrix: Tensor, rank: int) -> Tensor:
    """`(n, <= r)` with further columns, drawn, to `(n, r)`: what they multiply is zero, so that they can be trained."""
    missing = rank - matrix.shape[1]
    extra = torch.randn(len(matrix), missing, dtype=matrix.dtype) / math.sqrt(max(len(matrix), 1))
    return torch.cat([matrix, extra], dim=1)


def _padded_cores(cores: Tensor, rank: int) -> Tensor:
    """`(<= r, l, <= r)` to `(l, r, r)`: new columns are drawn, new rows are zero."""
    before, length, after = cores.shape
    padded = torch.zeros(length, rank, rank, dtype=cores.dtype)
    padded[:, :before] = torch.randn(length, before, rank, dtype=cores.dtype) / math.sqrt(rank)
    padded[:, :before, :after] = cores.transpose(0, 1)
    return padded
