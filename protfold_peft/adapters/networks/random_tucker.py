"""TeRA: a frozen random tensor network, scaled by trained vectors. High rank from few parameters.

Gu et al., "TeRA: Vector-based Random Tensor Network for High-Rank Adaptation of Large Language Models" (2025). Only
its abstract could be read; the shapes, the factorisation, the distributions and the scale below are our reading.

The axes of every `dW` are factored, `d_out = I_1 .. I_p` and `d_in = I_(p+1) .. I_N`, and

    dW_s = scale * mat( G x_1 U_1 diag(v_1s) x_2 .. x_N U_N diag(v_Ns) ),

with one core `G (R_1, .., R_N)` and one factor `U_n (I_n, R_n)` per mode, frozen and shared by all sites of one shape,
and vectors `v_ns (R_n)` for each site s: `sum_n R_n` parameters per site. The rank of `dW` is up to
`min(d_out, d_in, prod_out R_n, prod_in R_n)`.

The frozen tensors come from a seed, so that a saved adapter need not hold them. They are drawn in float64 by NumPy's
`RandomState`, whose stream never changes, as uniform numbers (a division and no library function, so that all machines
agree to the last bit), and rounded to float32.

Legend: t tokens (all leading axes), k sites.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from protfold_peft.adapters.networks.base import Options, Role, TensorNetwork, shape_key
from protfold_peft.adapters.sites import GroupKey, LinearMap, Site


class RandomTuckerNetwork(TensorNetwork):
    """The frozen tensors of one shape, and the trained vectors of its sites.

    Parameters `v1 .. vN`, `v_n (k, R_n)`; buffers `G`, `U1 .. UN`.

    Args:
        sites: The group; all of one shape.
        scale: Multiplies the update.
        seed: Of the frozen tensors; together with the group's name.
        init: Distribution of the frozen tensors, see `draw_frozen`.
        save_frozen: Keep the frozen tensors in saved files.
        output_factors: `I_1 .. I_p`, whose product is d_out.
        input_factors: `I_(p+1) .. I_N`, whose product is d_in.
        ranks: `R_1 .. R_N`.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        *,
        scale: float,
        seed: int,
        init: str,
        save_frozen: bool,
        output_factors: Sequence[int],
        input_factors: Sequence[int],
        ranks: Sequence[int],
    ) -> None:
        super().__init__(sites)
        if init not in self.inits:
            raise self.unknown_init(init)
        self.scale = scale
        self.seed = seed
        self.init = init
        self.factors = (*output_factors, *input_factors)
        self.n_output = len(output_factors)
        self.mode_ranks = tuple(ranks)
        if len(self.mode_ranks) != len(self.factors):
            raise ValueError(f"{len(self.factors)} modes have {len(self.mode_ranks)} ranks")
        self.place = {site.key: index for index, site in enumerate(sites)}
        self.G: Tensor
        self.register_buffer("G", torch.empty(self.mode_ranks), persistent=save_frozen)
        for n, (length, rank) in enumerate(zip(self.factors, self.mode_ranks, strict=True), 1):
            self.register_buffer(f"U{n}", torch.empty(length, rank), persistent=save_frozen)
            setattr(self, f"v{n}", nn.Parameter(torch.empty(len(sites), rank)))

    def role(self, name: str) -> Role:
        """All that is trained are vectors."""
        return "vector"

    @classmethod
    def group_of(cls, linear: LinearMap, options: Options) -> GroupKey:
        """Maps of one shape share the frozen tensors."""
        return shape_key(linear)

    @classmethod
    def plan(cls, groups: Mapping[str, Sequence[Site]], options: Options) -> dict[str, dict[str, Any]]:
        """Factors of each axis as equal as its divisors allow, and the rank in every mode, at most its length."""
        planned = {}
        for group, sites in groups.items():
            output = balanced_factors(sites[0].d_out, options["axis_factors"])
            inputs = balanced_factors(sites[0].d_in, options["axis_factors"])
            ranks = [min(options["r"], length) for length in (*output, *inputs)]
            planned[group] = {"output_factors": output, "input_factors": inputs, "ranks": ranks}
        return planned

    def modes(self) -> dict[str, int]:
        """Lengths of the modes that the output and the input axis are factored into, and the number of sites."""
        names = [f"output_{n}" for n in range(1, self.n_output + 1)]
        names += [f"input_{n}" for n in range(1, len(self.factors) - self.n_output + 1)]
        return dict(zip(names, self.factors, strict=True)) | {"sites": len(self.sites)}

    def ranks(self) -> dict[str, int]:
        """The rank of every mode but the sites, which has none."""
        return dict(zip(self.modes(), self.mode_ranks, strict=False))

    def _scaled(self, site: Site) -> list[Tensor]:
        """`U_n diag(v_n)`, `(I_n, R_n)`, of one site."""
        index = self.place[site.key]
        scaled = []
        for n in range(1, len(self.factors) + 1):
            vector = self.factor(f"v{n}")[index]
            scaled.append(self.get_buffer(f"U{n}").to(vector) * vector)
        return scaled

    def _core(self, like: Tensor) -> Tensor:
        """`(prod R_out, prod R_in)`."""
        return self.scale * self.G.to(like).reshape(math.prod(self.mode_ranks[: self.n_output]), -1)

    def forward(self, x: Tensor, site: Site) -> Tensor:
        """`x dW^T`, mode by mode: nothing of the size of `dW` is made, and the core is applied as it is."""
        scaled = [matrix.to(x.device) for matrix in self._scaled(site)]
        t = x.reshape(-1, *self.factors[self.n_output :])  # (t, I_in ..)
        for matrix in scaled[self.n_output :]:
            # The first remaining mode becomes the last, so after all of them the order is that of the ranks.
            t = torch.tensordot(t, matrix.to(t.dtype), dims=([1], [0]))  # autocast lowers the products, not the factors
        t = t.flatten(1) @ self._core(t).T  # (t, prod R_out)
        t = t.unflatten(1, self.mode_ranks[: self.n_output])
        for matrix in scaled[: self.n_output]:
            t = torch.tensordot(t, matrix.to(t.dtype), dims=([1], [1]))
        return t.reshape(*x.shape[:-1], site.d_out)

    def delta(self, site: Site) -> Tensor:
        """The dense `dW`, `(d_out, d_in)`, as Kronecker products of the modes' matrices around the core."""
        scaled = self._scaled(site)
        left, right = kronecker(scaled[: self.n_output]), kronecker(scaled[self.n_output :])
        return left @ self._core(left) @ right.T

    @torch.no_grad()
    def reset_parameters(self, init: str, *, zero_start: bool = True) -> None:
        """Set every vector to ones, and, with `zero_start`, that of the first mode to zeros.

        Exactly one may be zero: with two, no gradient would reach any. Without `zero_start` the first is drawn from
        `U(-1, 1)`. `init` concerns the frozen tensors alone, which have it from the constructor.
        """
        for n in range(1, len(self.factors) + 1):
            self.factor(f"v{n}").fill_(1)
        first = self.factor("v1")
        if zero_start:
            first.zero_()
        else:
            first.uniform_(-1, 1)

    @torch.no_grad()
    def draw_frozen(self) -> None:
        """Draw core and factors from the seed.

        - `authors`: uniform, `U_n` of variance `1 / R_n` and `G` of variance `1 / d_in`, so that with vectors of ones
          `dW` has entries of variance `scale^2 / d_in`.
        - `orthogonal`: `U_n` with orthonormal columns and `G` of variance `d_out / prod(R)`: the same expected norm.
        - `rank_stable`: the same with `G` brought to the norm `sqrt(d_out)`. One Adam step of size t moves every entry
          of `v_1` by t, so `||dW|| = scale t sqrt(d_out)` at every rank.
        """
        if self.G.is_meta:
            return  # only the shapes are wanted
        stream = np.random.RandomState([self.seed, zlib.crc32(self.sites[0].group.encode())])

        def uniform(*shape: int) -> np.ndarray:
            return (stream.random_sample(shape) * 2 - 1) * math.sqrt(3)

        d_out = math.prod(self.factors[: self.n_output])
        d_in = math.prod(self.factors[self.n_output :])
        core = uniform(*self.mode_ranks)
        if self.init == "authors":
            core /= math.sqrt(d_in)
        elif self.init == "orthogonal":
            core *= math.sqrt(d_out / core.size)
        else:
            # A sum that is rounded once, so that it does not depend on the machine's order of summation.
            core *= math.sqrt(d_out / math.fsum((core**2).ravel().tolist()))
        self.G.copy_(torch.from_numpy(core))
        for n, (length, rank) in enumerate(zip(self.factors, self.mode_ranks, strict=True), 1):
            factor = uniform(length, rank)
            if self.init == "authors":
                factor /= math.sqrt(rank)
            else:
                orthonormal, triangle = np.linalg.qr(factor)
                factor = orthonormal * np.sign(np.diag(triangle))
            self.get_buffer(f"U{n}").copy_(torch.from_numpy(factor))

    def frozen_checksum(self) -> str | None:
        """SHA-256 over the float32 bytes, little-endian, of `G` and `U1 .. UN` as drawn; None where they have none."""
        if self.G.is_meta:
            return None
        digest = hashlib.sha256()
        for name in ("G", *(f"U{n}" for n in range(1, len(self.factors) + 1))):
            digest.update(self.get_buffer(name).detach().cpu().numpy().astype("<f4").tobytes())
        return digest.hexdigest()


def balanced_factors(number: int, count: int) -> list[int]:
    """`count` factors of `number`, as equal as its divisors allow, largest first; 1 where there are too few."""
    factors = []
    for left in range(count, 0, -1):
        goal = number ** (1 / left)
        divisors = [d for d in range(1, number + 1) if number % d == 0] if left > 1 else [number]
        best = min(divisors, key=lambda divisor: abs(math.log(divisor / goal)))
        factors.append(best)
        number //= best
    return sorted(factors, reverse=True)


def kronecker(matrices: Sequence[Tensor]) -> Tensor:
    """The Kronecker product, `(prod I, prod R)`, the first index slowest."""
    product = matrices[0]
    for matrix in matrices[1:]:
        product = torch.kron(product, matrix)
    return product
