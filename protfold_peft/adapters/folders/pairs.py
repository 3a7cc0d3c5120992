"""The update of every module of a saved adapter as a pair of thin matrices, exactly or cut to a rank.

`dW = B A` comes straight from the factors: of every network but TeRA the two matrices are there already. A fused module
has one pair for each of its maps, side by side, with the rows of `B` where the map's outputs lie. TeRA's updates have a
high rank, and are cut to the best approximation of a chosen one.

Legend: q inner width of a pair, `d_in`, `d_out` widths of a module, a, b widths of orthonormal bases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protfold_peft.adapters.cards import method_name
from protfold_peft.adapters.folders.saved import SavedAdapter
from protfold_peft.adapters.networks import LowRankNetwork, RandomTuckerNetwork, TensorNetwork
from protfold_peft.adapters.networks.random_tucker import kronecker
from protfold_peft.adapters.sites import Site
from protfold_peft.errors import ConfigError, NonFiniteError

Pair = tuple[Tensor, Tensor]

# Above this the leading singular vectors are found by a randomised method (Halko et al., 2011, algorithm 4.4), whose
# loss is in the residual that is reported.
_LARGEST_EXACT_SVD = 512
_SUBSPACE_STEPS = 8


@dataclass(frozen=True)
class ModulePair:
    """The update of one module: `up @ down`, `up (d_out, q)`, `down (q, d_in)`.

    Attributes:
        path: Of the module.
        down, up: The matrices, float64.
        transposed: The module keeps its weight as `(d_in, d_out)`.
        norm: Frobenius norm of the whole update.
        lost: Frobenius norm of what was cut off.
    """

    path: str
    down: Tensor
    up: Tensor
    transposed: bool
    norm: float
    lost: float

    @property
    def rank(self) -> int:
        """`q`, the columns that are left."""
        return len(self.down)


@torch.no_grad()
def module_pairs(adapter: SavedAdapter, rank: int | None = None) -> Iterator[ModulePair]:
    """The pair of every adapted module, in the model's order.

    Raises:
        ConfigError: The update of a module has a high rank, and none was chosen.
        NonFiniteError: A factor holds NaN or infinity.
    """
    networks = {name: network.double() for name, network in adapter.networks.items()}
    by_path: dict[str, list[Site]] = {}
    for site in adapter.config.sites:
        by_path.setdefault(site.path, []).append(site)
    for path, sites in by_path.items():
        members = [networks[site.group] for site in sites]
        _check_rank(path, sites, members, rank, adapter)
        alone = members[0] if len(sites) == 1 and sites[0].rows is None else None
        if isinstance(alone, RandomTuckerNetwork):
            left, core, right = _orthogonal_form(alone, sites[0])
        else:
            down, up = _module_pair(members, sites)
            if rank is None or len(down) <= rank:
                yield _module(path, sites, down, up, math.nan, 0.0)
                continue
            left, core, right = _orthogonalised(down, up)
        assert rank is not None
        down, up, norm, lost = _cut(left, core, right, rank)
        yield _module(path, sites, down, up, norm, lost)


def _module(path: str, sites: Sequence[Site], down: Tensor, up: Tensor, norm: float, lost: float) -> ModulePair:
    """The pair of a module with its norm, which is measured here where it is NaN.

    Raises:
        NonFiniteError: The pair holds NaN or infinity.
    """
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise NonFiniteError(f"the update of '{path}' holds NaN or infinity: the adapter's training has failed")
    if math.isnan(norm):
        norm = math.sqrt(max(((up.T @ up) * (down @ down.T)).sum().item(), 0.0))
    return ModulePair(path, down, up, sites[0].transposed, norm, lost)


def _check_rank(
    path: str, sites: Sequence[Site], networks: Sequence[TensorNetwork], rank: int | None, adapter: SavedAdapter
) -> None:
    """Refuse a high-rank update for which no rank was chosen."""
    if rank is not None or all(isinstance(network, LowRankNetwork) for network in networks):
        return
    exact = sum(_rank_bound(network, site) for network, site in zip(networks, sites, strict=True))
    raise ConfigError(
        f"the updates of {method_name(adapter.config.network)} have a high rank ('{path}': up to {exact}); choose the "
        f"rank of the LoRA adapter with --rank ({exact} loses nothing there)"
    )


def _rank_bound(network: TensorNetwork, site: Site) -> int:
    """What the rank of a site's update cannot exceed."""
    bound = min(site.d_in, site.d_out)
    if isinstance(network, RandomTuckerNetwork):
        kept = network.mode_ranks
        bound = min(bound, math.prod(kept[: network.n_output]), math.prod(kept[network.n_output :]))
    return bound


def _site_pair(network: TensorNetwork, site: Site) -> Pair:
    """`down (q, d_in)` and `up (d_out, q)` of one site, exactly."""
    if isinstance(network, LowRankNetwork):
        return network.pair(site)
    if isinstance(network, RandomTuckerNetwork):
        left, core, right = _orthogonal_form(network, site)
        return (core @ right.T, left) if core.shape[0] <= core.shape[1] else (right.T, left @ core)
    delta = network.delta(site)
    return torch.eye(site.d_in, dtype=delta.dtype), delta


def _module_pair(networks: Sequence[TensorNetwork], sites: Sequence[Site]) -> Pair:
    """The pairs of a module's sites, side by side; maps that share their `down` share its place too."""
    downs: list[Tensor] = []
    ups: list[Tensor] = []
    for network, site in zip(networks, sites, strict=True):
        down, up = _site_pair(network, site)
        if site.rows is not None:
            up = site.rows.place(up.T, site.d_out // site.rows.block * site.rows.stride).T
        same = next((index for index, other in enumerate(downs) if torch.equal(other, down)), None)
        if same is None:
            downs.append(down)
            ups.append(up)
        else:
            ups[same] = ups[same] + up
    return torch.cat(downs), torch.cat(ups, dim=1)


def _orthogonalised(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`up @ down = left (d_out, a) core (a, b) right^T (b, d_in)` with orthonormal columns left and right."""
    left, left_triangle = torch.linalg.qr(up)
    right, right_triangle = torch.linalg.qr(down.T)
    return left, left_triangle @ right_triangle.T, right


def _orthogonal_form(network: RandomTuckerNetwork, site: Site) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a TeRA update, mode by mode: a Kronecker product of orthonormal matrices is orthonormal."""
    index, bases = network.place[site.key], []
    core = network.scale * network.get_buffer("G")
    for mode in range(len(network.factors)):
        factor = network.get_buffer(f"U{mode + 1}") * network.get_parameter(f"v{mode + 1}")[index]
        basis, triangle = torch.linalg.qr(factor)
        bases.append(basis)
        core = torch.movedim(torch.tensordot(triangle, core, dims=([1], [mode])), 0, mode)
    left, right = (kronecker(part) for part in (bases[: network.n_output], bases[network.n_output :]))
    return left, core.reshape(left.shape[1], right.shape[1]), right


def _cut(left: Tensor, core: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """The best pair of at most this rank, the norm of the whole, and that of what is lost."""
    norm = torch.linalg.norm(core).item()
    smallest = min(core.shape)
    if smallest <= rank:
        pair = (core @ right.T, left) if core.shape[0] <= core.shape[1] else (right.T, left @ core)
        return *pair, norm, 0.0
    if smallest <= _LARGEST_EXACT_SVD or 2 * rank > smallest:
        u, s, vh = torch.linalg.svd(core, full_matrices=False)
        lost = torch.linalg.norm(s[rank:]).item()
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(core, q=rank + max(8, rank // 2), niter=_SUBSPACE_STEPS)
        vh = v.T
        lost = math.sqrt(max(norm**2 - s[:rank].square().sum().item(), 0.0))
    root = s[:rank].sqrt()
    return (root[:, None] * vh[:rank]) @ right.T, left @ (u[:, :rank] * root), norm, lost
