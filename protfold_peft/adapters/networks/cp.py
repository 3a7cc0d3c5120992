"""LoRTA: one CP-decomposed tensor for all heads, layers and matrices of a model.

Hounie et al., "LoRTA: Low Rank Tensor Adaptation of Large Language Models" (2024), section 3: the updates of every
query, key, value and output matrix are slices of one five-mode tensor of CP rank r,

    query, key, value:  dW[(h, j), i] = s * sum_k A[i, k] B[j, k] Ch[h, k] Cl[l, k] Cm[m, k]
    attention output:   dW[i, (h, j)] = the same, since there the heads lie on the input axis.

Sites that attention heads do not divide (feed-forward maps) are outside the paper. They form one such tensor per
weight shape, without a head mode: `dW[o, i] = s * sum_k A[i, k] B[o, k] Cl[l, k] Cm[m, k]`.

Legend: d model width, h heads, j head width, l layers, m matrix kinds, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from protfold_peft.adapters.networks.base import (
    LowRankNetwork,
    Options,
    head_counts,
    merge_heads,
    n_columns,
    n_rows,
    one_width,
    oriented,
    orthonormal_,
    shape_key,
    uniform_,
)
from protfold_peft.adapters.sites import GroupKey, LinearMap, Site


class CPNetwork(LowRankNetwork):
    """The shared factors of a LoRTA adapter.

    `A (d, r)`, `B (j, r)`, `Ch (h, r)`, `Cl (l, r)`, `Cm (m, r)`: `r (d + j + h + l + m)` parameters. With
    grouped-query attention, where keys and values have fewer heads, those sites have a head factor of their own,
    `Ch_<heads>`, and share the rest.

    Args:
        sites: The group. Either every site has a head split or none has.
        rank: r.
        scale: s, the factor in front of the sum: `alpha / r`, or `alpha / sqrt(r)`.
        alpha: The numerator of `scale`; `rank_stable` sets the size of the first update from it.

    Raises:
        ConfigError: The sites differ in model width, head width or, without heads, in shape.
    """

    def __init__(self, sites: Sequence[Site], *, rank: int, scale: float, alpha: float) -> None:
        super().__init__(sites)
        self.rank = rank
        self.scale = scale
        self.alpha = alpha
        width, split_width = one_width(sites, "LoRTA")
        self.A = nn.Parameter(torch.empty(width, rank))
        self.B = nn.Parameter(torch.empty(split_width, rank))
        counts = head_counts(sites)
        self.head_factors = {count: "Ch" if count == counts[0] else f"Ch_{count}" for count in counts}
        for count, name in self.head_factors.items():
            setattr(self, name, nn.Parameter(torch.empty(count, rank)))
        self.Cl = nn.Parameter(torch.empty(n_rows(sites), rank))
        self.Cm = nn.Parameter(torch.empty(n_columns(sites), rank))

    @classmethod
    def group_of(cls, linear: LinearMap, options: Options) -> GroupKey:
        """Maps with heads share one tensor if their widths allow it; the others share by shape."""
        return attention_key(linear) if linear.heads is not None else shape_key(linear)

    def modes(self) -> dict[str, int]:
        """Lengths of the five modes (four without heads), and of the head factors of other numbers of heads."""
        names = ("model", "head_width") if self.head_factors else ("input", "output")
        sizes = dict(zip(names, (len(self.A), len(self.B)), strict=True))
        for count, name in self.head_factors.items():
            sizes["heads" if name == "Ch" else f"heads_{count}"] = count
        return sizes | {"layers": len(self.Cl), "kinds": len(self.Cm)}

    def ranks(self) -> dict[str, int]:
        """The CP rank r."""
        return {"rank": self.rank}

    def pair(self, site: Site) -> tuple[Tensor, Tensor]:
        """`down (q, d_in)` and `up (d_out, q)`, q = r: A and B, their columns scaled by heads, layer and kind."""
        c = self.scale * self.Cl[site.row] * self.Cm[site.column]  # (r)
        if site.heads is None:
            return self.A.T, self.B * c
        c = c * getattr(self, self.head_factors[site.heads.count])  # (h, r)
        return oriented(self.A, merge_heads(c[:, None, :] * self.B, site.heads), site.heads)

    @torch.no_grad()
    def reset_parameters(self, init: str, *, zero_start: bool = True) -> None:
        """Draw the factors.

        With `zero_start`, `B = 0`, so that `dW = 0` and the first gradients reach `B` alone; otherwise `B` is drawn
        from `U(-1/sqrt(r), 1/sqrt(r))`. The other factors:

        - `authors`: as in the authors' code, `A ~ U(-1/sqrt(r), 1/sqrt(r))` and each `C ~ U(-sqrt(6/r), sqrt(6/r))`.
          The first update then shrinks steeply as the rank grows, so the learning rate must grow with it.
        - `orthogonal`: every factor has orthonormal columns (rows, where r exceeds its length).
        - `rank_stable`: `A` has orthogonal columns and each `C` random signs. One Adam step of size t moves every
          entry of `B` by t, so `||dW||^2 = (s t a)^2 r w`, with `a` the norm of a column of `A` and `w` the length of
          the axis that `B` spans (h j, or d_out); `a = alpha / (s sqrt(r))` makes `||dW|| = alpha t sqrt(w)` for
          every rank up to d.
        """
        mode_factors = [self.Cl, self.Cm, *(getattr(self, name) for name in self.head_factors.values())]
        if init == "authors":
            uniform_(self.A, 1 / math.sqrt(self.rank))
            for factor in mode_factors:
                uniform_(factor, math.sqrt(6 / self.rank))
        elif init == "orthogonal":
            for factor in [self.A, *mode_factors]:
                orthonormal_(factor)
        elif init == "rank_stable":
            orthonormal_(self.A)
            column = self.alpha / (self.scale * math.sqrt(self.rank))
            self.A.mul_(column / self.A.norm(dim=0, keepdim=True))
            for factor in mode_factors:
                factor.bernoulli_(0.5).mul_(2).sub_(1)
        else:
            raise self.unknown_init(init)
        if zero_start:
            self.B.zero_()
        else:
            uniform_(self.B, 1 / math.sqrt(self.rank))

    @classmethod
    @torch.no_grad()
    def combine(cls, networks: Sequence[Self], weights: Sequence[float], sites: Sequence[Site]) -> Self:
        """The ranks side by side: `r` of the result is the sum, and its scale is 1."""
        rank = sum(network.rank for network in networks)
        result = cls.for_sum(networks, sites, rank=rank, scale=1.0, alpha=1.0)
        for name, factor in result.named_parameters():
            parts: list[Tensor] = [network.get_parameter(name) for network in networks]
            if name == "B":
                parts = [part * w * network.scale for part, w, network in zip(parts, weights, networks, strict=True)]
            factor.copy_(torch.cat(parts, dim=1))
        return result


def attention_key(linear: LinearMap) -> GroupKey:
    """The group of maps whose model width and head width agree, whatever their number of heads."""
    assert linear.heads is not None
    width = linear.d_in if linear.heads.axis == "output" else linear.d_out
    return GroupKey("attention", (width, linear.heads.width))
