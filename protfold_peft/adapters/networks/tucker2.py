"""LoTR: left and right factors that all sites of a group share, and a small core of each site's own (Tucker-2).

Bershatsky et al., "LoTR: Low Tensor Rank Weight Adaptation" (2024), section 3:

    dW_s = scale * U G_s V,    U (d_out, r), V (r, d_in) shared, G_s (r, r) for each site s.

The authors put the query and value matrices of all layers into one group; here a group is every site of one shape.

Legend: k sites of the group, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from protfold_peft.adapters.networks.base import LowRankNetwork, Options, Role, orthonormal_, shape_key
from protfold_peft.adapters.sites import GroupKey, LinearMap, Site


class Tucker2Network(LowRankNetwork):
    """The shared factors of a LoTR adapter: `r (d_in + d_out) + k r^2` parameters.

    Args:
        sites: The group; all of one shape.
        rank: r.
        scale: `alpha / r`, or `alpha / sqrt(r)`.
        alpha: The numerator of `scale`.
    """

    roles: ClassVar[Mapping[str, Role]] = {"G": "core"}

    def __init__(self, sites: Sequence[Site], *, rank: int, scale: float, alpha: float) -> None:
        super().__init__(sites)
        self.rank = rank
        self.scale = scale
        self.alpha = alpha
        self.place = {site.key: index for index, site in enumerate(sites)}
        self.U = nn.Parameter(torch.empty(sites[0].d_out, rank))
        self.G = nn.Parameter(torch.empty(len(sites), rank, rank))
        self.V = nn.Parameter(torch.empty(rank, sites[0].d_in))

    @classmethod
    def group_of(cls, linear: LinearMap, options: Options) -> GroupKey:
        """Maps of one shape share the left and right factor."""
        return shape_key(linear)

    def modes(self) -> dict[str, int]:
        """Lengths of the output and the input axis, and the number of sites."""
        return {"output": len(self.U), "input": self.V.shape[1], "sites": len(self.G)}

    def ranks(self) -> dict[str, int]:
        """The rank r of both shared factors."""
        return {"rank": self.rank}

    def pair(self, site: Site) -> tuple[Tensor, Tensor]:
        """`down (r, d_in)` and `up (d_out, r)`, with the site's core on the shorter side."""
        core = self.scale * self.G[self.place[site.key]]
        # The core joins the shorter factor.
        if site.d_out <= site.d_in:
            return self.V, self.U @ core
        return core @ self.V, self.U

    @torch.no_grad()
    def reset_parameters(self, init: str, *, zero_start: bool = True) -> None:
        """Draw the factors.

        With `zero_start` every core is zero, and the first gradients reach the cores alone; otherwise cores are drawn
        from `N(0, 1/r)`. The factors:

        - `authors`: `U, V ~ N(0, 1)`. The useful learning rate then depends strongly on the widths.
        - `orthogonal`: `U` has orthonormal columns and `V` orthonormal rows.
        - `rank_stable`: the same, `U` stretched so that one Adam step of size t, which moves every entry of the cores
          by t, gives `||dW|| = alpha t sqrt(d_out)` at every rank up to the widths.
        """
        if init == "authors":
            self.U.normal_()
            self.V.normal_()
        elif init in ("orthogonal", "rank_stable"):
            orthonormal_(self.U)
            orthonormal_(self.V)
            if init == "rank_stable":
                self.U.mul_(self.alpha * math.sqrt(len(self.U)) / (self.scale * self.rank))
        else:
            raise self.unknown_init(init)
        if zero_start:
            self.G.zero_()
        else:
            self.G.normal_(std=1 / math.sqrt(self.rank))

    @classmethod
    @torch.no_grad()
    def combine(cls, networks: Sequence[Self], weights: Sequence[float], sites: Sequence[Site]) -> Self:
        """The factors side by side, the cores along a diagonal of blocks."""
        rank = sum(network.rank for network in networks)
        result = cls.for_sum(networks, sites, rank=rank, scale=1.0, alpha=1.0)
        result.U.copy_(torch.cat([network.U for network in networks], dim=1))
        result.V.copy_(torch.cat([network.V for network in networks], dim=0))
        for index, site in enumerate(sites):
            blocks = [
                w * network.scale * network.G[network.place[site.key]]
                for w, network in zip(weights, networks, strict=True)
            ]
            result.G[index] = torch.block_diag(*blocks)
        return result
