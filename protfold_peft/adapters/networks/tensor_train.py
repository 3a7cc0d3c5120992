"""Tensor-Train: a chain of small matrices between an input and an output factor, one for each layer and kind.

After MetaTT (Lopez-Piqueres et al., "MetaTT: A Global Tensor-Train Adapter for Parameter-Efficient Fine-Tuning",
2025), with the layer's core next to the output:

    without heads:  dW[l, m] = s * G1 Gl[l] Gm[m] G2,             G1 (d_out, r), G2 (r, d_in), Gl[l], Gm[m] (r, r)
    with heads:     dW[(h, j), i] = s * (G1[j] Gh[h] Gl[l] Gm[m] G2)[i],    G1 (j, r), Gh[h] (r, r), G2 (r, d)

where the attention output, whose heads lie on the input axis, swaps the axes.

Legend: d model width, h heads, j head width, l layers, m matrix kinds, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from protfold_peft.adapters.networks.base import (
    LowRankNetwork,
    Options,
    Role,
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
from protfold_peft.adapters.networks.cp import attention_key
from protfold_peft.adapters.sites import GroupKey, LinearMap, Site


class TensorTrainNetwork(LowRankNetwork):
    """The cores of a Tensor-Train adapter.

    `r (d_in + d_out) + r^2 (l + m)` parameters, or `r (d + j) + r^2 (h + l + m)` with heads. With grouped-query
    attention the sites of fewer heads have head cores of their own, `Gh_<heads>`.

    Args:
        sites: The group.
        rank: r.
        scale: `alpha / r`, or `alpha / sqrt(r)`.
        alpha: The numerator of `scale`.
        heads: Whether sites that heads divide have a core for each head.
    """

    roles: ClassVar[Mapping[str, Role]] = {"Gl": "core", "Gm": "core"}

    def __init__(self, sites: Sequence[Site], *, rank: int, scale: float, alpha: float, heads: bool) -> None:
        super().__init__(sites)
        self.rank = rank
        self.scale = scale
        self.alpha = alpha
        counts = head_counts(sites) if heads else []
        self.head_cores = {count: "Gh" if count == counts[0] else f"Gh_{count}" for count in counts}
        if self.head_cores:
            width, split_width = one_width(sites, "Tensor-Train")
        else:
            width, split_width = sites[0].d_in, sites[0].d_out
        self.G1 = nn.Parameter(torch.empty(split_width, rank))
        for count, name in self.head_cores.items():
            setattr(self, name, nn.Parameter(torch.empty(count, rank, rank)))
        self.Gl = nn.Parameter(torch.empty(n_rows(sites), rank, rank))
        self.Gm = nn.Parameter(torch.empty(n_columns(sites), rank, rank))
        self.G2 = nn.Parameter(torch.empty(rank, width))

    @classmethod
    def group_of(cls, linear: LinearMap, options: Options) -> GroupKey:
        """Maps with heads share one chain where heads have cores of their own; all others share by shape."""
        return attention_key(linear) if options["heads"] and linear.heads is not None else shape_key(linear)

    def modes(self) -> dict[str, int]:
        """Lengths of the two ends, of the layers and kinds, and of the heads where these have cores."""
        names = ("head_width", "model") if self.head_cores else ("output", "input")
        sizes = dict(zip(names, (len(self.G1), self.G2.shape[1]), strict=True))
        for count, name in self.head_cores.items():
            sizes["heads" if name == "Gh" else f"heads_{count}"] = count
        return sizes | {"layers": len(self.Gl), "kinds": len(self.Gm)}

    def ranks(self) -> dict[str, int]:
        """The rank r of every joint of the chain."""
        return {"rank": self.rank}

    def role(self, name: str) -> Role:
        """Of the heads' cores, whose names depend on their number, "core"; else as listed."""
        return "core" if name.startswith("Gh") else super().role(name)

    def pair(self, site: Site) -> tuple[Tensor, Tensor]:
        """`down (q, d_in)` and `up (d_out, q)`, q = r; without heads the inner cores join the shorter end."""
        core = self.scale * (self.Gl[site.row] @ self.Gm[site.column])
        if not self.head_cores or site.heads is None:
            if site.d_out <= site.d_in:
                return self.G2, self.G1 @ core
            return core @ self.G2, self.G1
        heads = getattr(self, self.head_cores[site.heads.count])
        by_head = torch.einsum("ja,hab,bc->hjc", self.G1, heads, core)
        return oriented(self.G2.T, merge_heads(by_head, site.heads), site.heads)

    @torch.no_grad()
    def reset_parameters(self, init: str, *, zero_start: bool = True) -> None:
        """Draw the cores. With `zero_start`, `G1 = 0`, else `G1 ~ U(-1/sqrt(r), 1/sqrt(r))`.

        In every init the inner cores are identities and the rows of `G2` orthonormal (columns, where r exceeds its
        width); the paper's own choice is not known to us, and `authors` means this one. `orthogonal` has random
        orthogonal inner cores. `rank_stable` stretches `G2` so that one Adam step of size t, which moves every entry
        of `G1` by t, gives `||dW|| = alpha t sqrt(w)` at every rank up to the width, w the length of the axis that
        `G1` spans (d_out, or h j).
        """
        if init not in self.inits:
            raise self.unknown_init(init)
        orthonormal_(self.G2)
        inner = [self.Gl, self.Gm, *(getattr(self, name) for name in self.head_cores.values())]
        for core in inner:
            for matrix in core:
                if init == "orthogonal":
                    orthonormal_(matrix)
                else:
                    nn.init.eye_(matrix)
        if init == "rank_stable":
            self.G2.mul_(self.alpha / (self.scale * math.sqrt(self.rank)))
        if zero_start:
            self.G1.zero_()
        else:
            uniform_(self.G1, 1 / math.sqrt(self.rank))

    @classmethod
    @torch.no_grad()
    def combine(cls, networks: Sequence[Self], weights: Sequence[float], sites: Sequence[Site]) -> Self:
        """The end factors side by side, the inner cores along diagonals of blocks."""
        rank = sum(network.rank for network in networks)
        result = cls.for_sum(networks, sites, rank=rank, scale=1.0, alpha=1.0, heads=bool(networks[0].head_cores))
        result.G1.copy_(
            torch.cat([w * network.scale * network.G1 for w, network in zip(weights, networks, strict=True)], dim=1)
        )
        result.G2.copy_(torch.cat([network.G2 for network in networks], dim=0))
        for name in ("Gl", "Gm", *result.head_cores.values()):
            parts = [network.get_parameter(name) for network in networks]
            for index, matrix in enumerate(result.get_parameter(name)):
                matrix.copy_(torch.block_diag(*(part[index] for part in parts)))
        return result
