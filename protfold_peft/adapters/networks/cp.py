"""LoRTA: one CP-decomposed tensor for all heads, layers and matrices of a model.

Hounie et al., "LoRTA: Low Rank Tensor Adaptation of Large Language Models" (2024), section 3: the updates of every
query, key, value and output matrix are slices of one five-mode tensor of CP rank r,

    query, key, value:  dW[(h, j), i] = s * sum_k A[i, k] B[j, k] Ch[h, k] Cl[l, k] Cm[m, k]
    attention output:   dW[i, (h, j)] = the same, since there the heads lie on the input axis.

Sites that attention heads do not divide (feed-forward maps) are outside the paper. They form one such tensor per
weight shape, without a head mode: `dW[o, i] = s * sum_k A[i, k] B[o, k] Cl[l, k] Cm[m, k]`.

Legend: d model width, h heads, j head width, l layers, m matrix kinds, r rank; `...` any leading axes (batch b,
tokens n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protfold_peft.adapters.networks.base import TensorNetwork
from protfold_peft.adapters.sites import LinearMap, Site
from protfold_peft.errors import ConfigError


class CPNetwork(TensorNetwork):
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

    inits = ("authors", "orthogonal", "rank_stable")

    def __init__(self, sites: Sequence[Site], *, rank: int, scale: float, alpha: float) -> None:
        super().__init__(sites)
        self.rank = rank
        self.scale = scale
        self.alpha = alpha
        widths = {_widths(site) for site in sites}
        if len(widths) != 1:
            raise ConfigError(
                f"LoRTA shares its factors between all '{sites[0].group}' sites, which needs one (model width, head "
                f"width); found {sorted(widths)}: choose target modules of one size"
            )
        width, split_width = widths.pop()
        self.A = nn.Parameter(torch.empty(width, rank))
        self.B = nn.Parameter(torch.empty(split_width, rank))
        counts = sorted({site.heads.count for site in sites if site.heads is not None}, reverse=True)
        self.head_factors = {count: "Ch" if count == counts[0] else f"Ch_{count}" for count in counts}
        for count, name in self.head_factors.items():
            setattr(self, name, nn.Parameter(torch.empty(count, rank)))
        self.Cl = nn.Parameter(torch.empty(1 + max(site.row for site in sites), rank))
        self.Cm = nn.Parameter(torch.empty(1 + max(site.column for site in sites), rank))

    @classmethod
    def group_of(cls, linear: LinearMap) -> str:
        """All maps with heads share one tensor; the others share by shape."""
        return "attention" if linear.heads is not None else f"linear_{linear.d_out}x{linear.d_in}"

    def modes(self) -> dict[str, int]:
        names = ("model", "head_width") if self.head_factors else ("input", "output")
        sizes = dict(zip(names, (len(self.A), len(self.B)), strict=True))
        for count, name in self.head_factors.items():
            sizes["heads" if name == "Ch" else f"heads_{count}"] = count
        return sizes | {"layers": len(self.Cl), "kinds": len(self.Cm)}

    def pair(self, site: Site) -> tuple[Tensor, Tensor]:
        """The update as a plain low-rank pair: `down (r, d_in)` and `up (d_out, r)` with `dW = up @ down`.

        It is exact, and it is what the forward pass uses: the pair has `r (d_in + d_out)` numbers, so making it
        costs nothing beside the activations, and only `(..., r)` is kept for the backward pass.
        """
        c = self.scale * self.Cl[site.row] * self.Cm[site.column]  # (r)
        if site.heads is None:
            return self.A.T, self.B * c
        c = c * getattr(self, self.head_factors[site.heads.count])  # (h, r)
        split = (c[:, None, :] * self.B).flatten(0, 1)  # (h j, r), head-major
        if site.heads.axis == "output":
            return self.A.T, split
        return split.T, self.A

    def forward(self, x: Tensor, site: Site) -> Tensor:
        """`x dW^T`: `(..., d_in)` to `(..., d_out)`."""
        down, up = self.pair(site)
        # A model spread over several devices has one copy of the factors; elsewhere these are no copies.
        return F.linear(F.linear(x, down.to(x.device)), up.to(x.device))

    def delta(self, site: Site) -> Tensor:
        """The dense `dW`, `(d_out, d_in)`."""
        down, up = self.pair(site)
        return up @ down

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
            self.A.uniform_(-1 / math.sqrt(self.rank), 1 / math.sqrt(self.rank))
            for factor in mode_factors:
                factor.uniform_(-math.sqrt(6 / self.rank), math.sqrt(6 / self.rank))
        elif init == "orthogonal":
            for factor in [self.A, *mode_factors]:
                nn.init.orthogonal_(factor)
        elif init == "rank_stable":
            nn.init.orthogonal_(self.A)
            column = self.alpha / (self.scale * math.sqrt(self.rank))
            self.A.mul_(column / self.A.norm(dim=0, keepdim=True))
            for factor in mode_factors:
                factor.bernoulli_(0.5).mul_(2).sub_(1)
        else:
            raise ConfigError(f"init='{init}' is not known to LoRTA; use one of {', '.join(self.inits)}")
        if zero_start:
            self.B.zero_()
        else:
            self.B.uniform_(-1 / math.sqrt(self.rank), 1 / math.sqrt(self.rank))


def _widths(site: Site) -> tuple[int, int]:
    """The lengths of `A` and `B` that a site asks for."""
    if site.heads is None:
        return site.d_in, site.d_out
    return (site.d_in if site.heads.axis == "output" else site.d_out), site.heads.width
