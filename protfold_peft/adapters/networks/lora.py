"""LoRA: two matrices for every site, nothing shared. The baseline of the others, in the same tuner.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), section 4.1: `dW = scale * B A`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from protfold_peft.adapters.networks.base import LowRankNetwork, Options, orthonormal_, uniform_
from protfold_peft.adapters.sites import GroupKey, LinearMap, Site


class LoRANetwork(LowRankNetwork):
    """`A (r, d_in)` and `B (d_out, r)` of one site: `r (d_in + d_out)` parameters.

    Args:
        sites: The one site of the group.
        rank: r.
        scale: `alpha / r`, or `alpha / sqrt(r)`.
        alpha: The numerator of `scale`.
    """

    def __init__(self, sites: Sequence[Site], *, rank: int, scale: float, alpha: float) -> None:
        super().__init__(sites)
        self.rank = rank
        self.scale = scale
        self.alpha = alpha
        self.A = nn.Parameter(torch.empty(rank, sites[0].d_in))
        self.B = nn.Parameter(torch.empty(sites[0].d_out, rank))

    @classmethod
    def group_of(cls, linear: LinearMap, options: Options) -> GroupKey:
        """A group for every site: nothing is shared."""
        return GroupKey(f"layer{linear.layer}_{linear.kind}")

    def modes(self) -> dict[str, int]:
        """Lengths of the output and the input axis."""
        return {"output": len(self.B), "input": self.A.shape[1]}

    def ranks(self) -> dict[str, int]:
        """The rank r."""
        return {"rank": self.rank}

    def pair(self, site: Site) -> tuple[Tensor, Tensor]:
        """`down (r, d_in)` and `up (d_out, r)`: A, and B with the scale."""
        return self.A, self.scale * self.B

    @torch.no_grad()
    def reset_parameters(self, init: str, *, zero_start: bool = True) -> None:
        """Draw the factors; `B = 0` with `zero_start`, else `B ~ U(-1/sqrt(r), 1/sqrt(r))`.

        - `authors`: `A ~ U(-1/sqrt(d_in), 1/sqrt(d_in))`, as PEFT's LoRA.
        - `orthogonal`: `A` has orthonormal rows.
        - `rank_stable`: orthogonal rows of norm `alpha / (s sqrt(r))`, so that one Adam step of size t gives
          `||dW|| = alpha t sqrt(d_out)` at every rank up to d_in.
        """
        if init == "authors":
            uniform_(self.A, 1 / math.sqrt(self.A.shape[1]))
        elif init in ("orthogonal", "rank_stable"):
            orthonormal_(self.A)
            if init == "rank_stable":
                self.A.mul_(self.alpha / (self.scale * math.sqrt(self.rank)))
        else:
            raise self.unknown_init(init)
        if zero_start:
            self.B.zero_()
        else:
            uniform_(self.B, 1 / math.sqrt(self.rank))

    @classmethod
    @torch.no_grad()
    def combine(cls, networks: Sequence[Self], weights: Sequence[float], sites: Sequence[Site]) -> Self:
        """The ranks side by side."""
        rank = sum(network.rank for network in networks)
        result = cls.for_sum(networks, sites, rank=rank, scale=1.0, alpha=1.0)
        result.A.copy_(torch.cat([network.A for network in networks], dim=0))
        result.B.copy_(
            torch.cat([w * network.scale * network.B for w, network in zip(weights, networks, strict=True)], dim=1)
        )
        return result
