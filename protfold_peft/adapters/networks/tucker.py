"""TensLoRA: a Tucker decomposition of the stacked updates, in seven ways of stacking.

Marmoret et al., "TensLoRA: Tensor Alternatives for Low-Rank Adaptation" (2025), section 3. A trained core, zero at
first, and one factor `(dim_n, r_n)` for each mode n:

    att            d, d/H, H          a tensor for each matrix of each layer
    qkv            d, d, kinds        a tensor for each layer
    depth          d, d, layers       a tensor for each kind of matrix
    att_qkv        d, d/H, H, kinds           a tensor for each layer
    att_depth      d, d/H, H, layers          a tensor for each kind
    qkv_depth      d, d, kinds, layers        one tensor
    att_qkv_depth  d, d/H, H, kinds, layers   one tensor

The output projection, whose heads lie on its input axis, takes part with its axes swapped. Maps without heads
(feed-forward) have the modes `output, input` in place of those of the heads, one set of tensors for each shape. The
paper names both as future work.

Legend: d model width, h heads, j head width, l layers, m matrix kinds; a, b, c ranks of the model, head-width and head
modes, o, i of the output and input modes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

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
)
from protfold_peft.adapters.networks.cp import attention_key
from protfold_peft.adapters.sites import GroupKey, LinearMap, Site
from protfold_peft.errors import ConfigError

VARIANTS = ("att", "qkv", "depth", "att_qkv", "att_depth", "qkv_depth", "att_qkv_depth")
MODES = ("model", "head_width", "heads", "output", "input", "kinds", "layers")
# A core beyond this is a slip, not a wish: the product of the ranks explodes.
_LARGEST_CORE = 2**28


@dataclass(frozen=True)
class _Stacking:
    """Which modes a variant has."""

    heads: bool
    kinds: bool
    layers: bool

    @classmethod
    def of(cls, variant: str) -> _Stacking:
        """The modes of a variant, by the parts of its name."""
        parts = variant.split("_")
        return cls("att" in parts, "qkv" in parts, "depth" in parts)


@dataclass(frozen=True)
class _Mode:
    """One axis of a group's tensor: its length, and the rows of all its factors (more, with grouped-query heads)."""

    length: int
    rows: int


def _modes(sites: Sequence[Site], stacking: _Stacking) -> dict[str, _Mode]:
    """The modes of a group's tensor, in the order of the core's axes."""
    if stacking.heads and sites[0].heads is not None:
        width, split_width = one_width(sites, "TensLoRA")
        counts = head_counts(sites)
        modes = {
            "model": _Mode(width, width),
            "head_width": _Mode(split_width, split_width),
            "heads": _Mode(counts[0], sum(counts)),
        }
    else:
        modes = {"output": _Mode(sites[0].d_out, sites[0].d_out), "input": _Mode(sites[0].d_in, sites[0].d_in)}
    if stacking.kinds:
        modes["kinds"] = _Mode(n_columns(sites), n_columns(sites))
    if stacking.layers:
        modes["layers"] = _Mode(n_rows(sites), n_rows(sites))
    return modes


class TuckerNetwork(LowRankNetwork):
    """Core and factors of one tensor: `sum_n dim_n r_n + prod_n r_n` parameters.

    Args:
        sites: The group.
        variant: Which modes there are, one of `VARIANTS`.
        scale: Multiplies the update.
        ranks: Of every mode that the group has.
    """

    roles: ClassVar[Mapping[str, Role]] = {"core": "core"}

    def __init__(self, sites: Sequence[Site], *, variant: str, scale: float, ranks: Mapping[str, int]) -> None:
        super().__init__(sites)
        self.variant = variant
        self.scale = scale
        modes = _modes(sites, _Stacking.of(variant))
        self.mode_ranks = {mode: ranks[mode] for mode in modes}
        if math.prod(self.mode_ranks.values()) > _LARGEST_CORE:
            raise ConfigError(
                f"the mode ranks {self.mode_ranks} make a core of {math.prod(self.mode_ranks.values()):,} parameters "
                "in each tensor; give smaller ranks, or choose them by budget or match_lora_rank"
            )
        self.core = nn.Parameter(torch.empty(*self.mode_ranks.values()))
        self.head_factors: dict[int, str] = {}
        for mode, rank in self.mode_ranks.items():
            if mode == "heads":
                counts = head_counts(sites)
                self.head_factors = {n: "U_heads" if n == counts[0] else f"U_heads_{n}" for n in counts}
                for count, name in self.head_factors.items():
                    setattr(self, name, nn.Parameter(torch.empty(count, rank)))
            else:
                setattr(self, f"U_{mode}", nn.Parameter(torch.empty(modes[mode].length, rank)))

    @classmethod
    def group_of(cls, linear: LinearMap, options: Options) -> GroupKey:
        """A tensor for each layer or kind that the variant does not stack; by widths with heads, else by shape."""
        stacking = _Stacking.of(options["variant"])
        key = attention_key(linear) if stacking.heads and linear.heads is not None else shape_key(linear)
        own = [] if stacking.layers else [f"layer{linear.layer}"]
        own += [] if stacking.kinds else [linear.kind]
        return GroupKey("_".join([key.label, *own]), key.sizes)

    @classmethod
    def plan(cls, groups: Mapping[str, Sequence[Site]], options: Options) -> dict[str, dict[str, Any]]:
        """Mode ranks of every group: one rank for all modes (isorank), ranks by mode, or what a budget allows."""
        stacking = _Stacking.of(options["variant"])
        modes = {group: _modes(sites, stacking) for group, sites in groups.items()}
        budget = options["budget"]
        if options["match_lora_rank"] is not None:
            budget = options["match_lora_rank"] * sum(s.d_in + s.d_out for sites in groups.values() for s in sites)
        if budget is not None:
            chosen = fit_ranks(list(modes.values()), budget)
            return {
                group: {"ranks": {mode: min(chosen[mode], size.length) for mode, size in sizes.items()}}
                for group, sizes in modes.items()
            }
        given = options["ranks"] or {}
        used = {mode for sizes in modes.values() for mode in sizes}
        if unused := sorted(set(given) - used):
            raise ConfigError(f"ranks names the mode '{unused[0]}', which no tensor has; they have {', '.join(used)}")
        return {
            group: {"ranks": {mode: given.get(mode, options["r"]) for mode in sizes}} for group, sizes in modes.items()
        }

    def modes(self) -> dict[str, int]:
        """The length of every mode, and of the head factors of other numbers of heads."""
        sizes: dict[str, int] = {}
        for mode in self.mode_ranks:
            if mode == "heads":
                sizes |= {"heads" if name == "U_heads" else name[2:]: n for n, name in self.head_factors.items()}
            else:
                sizes[mode] = len(self.factor(f"U_{mode}"))
        return sizes

    def ranks(self) -> dict[str, int]:
        """The rank of every mode."""
        return dict(self.mode_ranks)

    def _length(self, mode: str) -> int:
        """Length of a mode; with several numbers of heads the largest."""
        return max(self.head_factors) if mode == "heads" else len(self.factor(f"U_{mode}"))

    def pair(self, site: Site) -> tuple[Tensor, Tensor]:
        """`down (q, d_in)` and `up (d_out, q)`: the core of a layer and kind, on the side that leaves q smaller."""
        core = self.scale * self.core
        if "layers" in self.mode_ranks:
            core = _contract(core, self.factor("U_layers")[site.row])
        if "kinds" in self.mode_ranks:
            core = _contract(core, self.factor("U_kinds")[site.column])
        if "heads" not in self.mode_ranks or site.heads is None:
            output, inputs = self.factor("U_output"), self.factor("U_input")
            if core.shape[0] <= core.shape[1]:
                return core @ inputs.T, output
            return inputs.T, output @ core
        model, width = self.factor("U_model"), self.factor("U_head_width")
        heads = self.factor(self.head_factors[site.heads.count])
        a, b, c = core.shape
        if a <= b * c:
            by_head = (heads @ core.permute(2, 1, 0).reshape(c, b * a)).view(-1, b, a)  # (h, b, a)
            return oriented(model, merge_heads(torch.einsum("jb,hba->hja", width, by_head), site.heads), site.heads)
        by_head = (width[None, :, :, None] * heads[:, None, None, :]).flatten(2)  # (h, j, b c)
        return oriented(model @ core.reshape(a, b * c), merge_heads(by_head, site.heads), site.heads)

    @torch.no_grad()
    def reset_parameters(self, init: str, *, zero_start: bool = True) -> None:
        """Draw the factors; with `zero_start` the core is zero, otherwise `N(0, 1 / prod(r))`.

        - `authors` and `orthogonal`: factors with orthonormal columns (rows, where the rank exceeds the length).
        - `rank_stable`: the same, stretched by `sqrt(length / r)`, and by `sqrt(1 / r)` on the axis without heads (the
          input axis). One Adam step of size t moves every entry of the core by t, so over all sites
          `||dW|| = s t sqrt(sum of d_out)`, exactly as long as no rank exceeds its mode's length. Beyond, the factors
          see only the part of the step that lies in the space of the core's gradient: of the signs of normal numbers
          the share `2 / pi`, and of the rest the share that the space has of all dimensions. The factors make up for
          that; the norm is then right within a fifth.
        """
        if init not in self.inits:
            raise self.unknown_init(init)
        seen = math.prod(min(1.0, self._length(mode) / rank) for mode, rank in self.mode_ranks.items())
        for name, factor in self.named_parameters():
            if name == "core":
                continue
            orthonormal_(factor)
            if init == "rank_stable":
                one_sided = name in ("U_model", "U_input")
                factor.mul_(math.sqrt((1 if one_sided else len(factor)) / factor.shape[1]))
                if one_sided:
                    factor.div_(math.sqrt(2 / math.pi + (1 - 2 / math.pi) * seen))
        if zero_start:
            self.core.zero_()
        else:
            self.core.normal_(std=1 / math.sqrt(self.core.numel()))

    @classmethod
    @torch.no_grad()
    def combine(cls, networks: Sequence[Self], weights: Sequence[float], sites: Sequence[Site]) -> Self:
        """The factors side by side, the cores along the main diagonal of blocks."""
        ranks = {mode: sum(network.mode_ranks[mode] for network in networks) for mode in networks[0].mode_ranks}
        result = cls.for_sum(networks, sites, variant=networks[0].variant, scale=1.0, ranks=ranks)
        for name, factor in result.named_parameters():
            if name != "core":
                factor.copy_(torch.cat([network.get_parameter(name) for network in networks], dim=1))
        result.core.zero_()
        start = [0] * result.core.dim()
        for w, network in zip(weights, networks, strict=True):
            place = tuple(slice(s, s + size) for s, size in zip(start, network.core.shape, strict=True))
            result.core[place] = w * network.scale * network.core
            start = [s + size for s, size in zip(start, network.core.shape, strict=True)]
        return result


def _contract(core: Tensor, vector: Tensor) -> Tensor:
    """The last axis of `core` against `vector`."""
    return torch.mv(core.flatten(end_dim=-2), vector).view(core.shape[:-1])


def fit_ranks(groups: Sequence[Mapping[str, _Mode]], budget: int) -> dict[str, int]:
    """Mode ranks whose parameters, over all groups, come as near to `budget` as balanced ranks can without passing it.

    Ranks never exceed the length of their mode. First the largest rank that all modes can have alike; then, one step
    at a time, the mode with the smallest rank that can still grow (of equal ones the longest), until none can.

    Args:
        groups: The modes of every tensor.
        budget: Parameters.

    Raises:
        ConfigError: Not even ranks of 1 fit.
    """
    lengths: dict[str, int] = {}
    for modes in groups:
        for mode, size in modes.items():
            lengths[mode] = max(lengths.get(mode, 0), size.length)

    def count(ranks: Mapping[str, int]) -> int:
        total = 0
        for modes in groups:
            capped = {mode: min(ranks[mode], size.length) for mode, size in modes.items()}
            total += sum(size.rows * capped[mode] for mode, size in modes.items()) + math.prod(capped.values())
        return total

    def alike(rank: int) -> dict[str, int]:
        return {mode: min(rank, length) for mode, length in lengths.items()}

    if count(alike(1)) > budget:
        raise ConfigError(
            f"a budget of {budget:,} parameters is too small: rank 1 in every mode takes {count(alike(1)):,}"
        )
    low, high = 1, max(lengths.values())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(alike(middle)) <= budget else (low, middle - 1)
    ranks = alike(low)
    while True:
        for mode in sorted(ranks, key=lambda mode: (ranks[mode], -lengths[mode])):
            grown = ranks | {mode: ranks[mode] + 1}
            if ranks[mode] < lengths[mode] and count(grown) <= budget:
                ranks = grown
                break
        else:
            return ranks
