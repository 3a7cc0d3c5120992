"""What every tensor network offers to the layers that use it. Plain torch: no PEFT here.

A network owns the factors of one group of sites. For each site it gives the change `dW` of that site's weight, as a
factored map in the forward pass and as a dense matrix for merging.

Legend: `...` any leading axes (batch b, tokens n), `d_in`, `d_out` the widths of a site, `r` ranks; where attention
heads divide an axis, `d` is the other axis, `h` heads and `j` the width of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from protfold_peft.adapters.sites import GroupKey, HeadSplit, LinearMap, Site
from protfold_peft.errors import ConfigError

# How a factor takes part, for learning rates of their own: what joins sites, what spans an axis of a weight or of the
# model, and what scales.
Role = Literal["core", "factor", "vector"]

Options = Mapping[str, Any]


class TensorNetwork(nn.Module, ABC):
    """The factors that one group of sites shares.

    A subclass names its factors (parameters of these names appear in the saved file), their roles and the inits it
    offers. It is made without values: `reset_parameters` draws them.
    """

    inits: ClassVar[tuple[str, ...]] = ("authors", "orthogonal", "rank_stable")
    # Roles of the parameters by name; factors that are not listed are of role "factor".
    roles: ClassVar[Mapping[str, Role]] = {}

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__()
        self.sites = tuple(sites)

    @classmethod
    @abstractmethod
    def group_of(cls, linear: LinearMap, options: Options) -> GroupKey:
        """Maps with equal keys share one network. The label has no dots, as it is part of the parameters' names."""

    @classmethod
    def plan(cls, groups: Mapping[str, Sequence[Site]], options: Options) -> dict[str, dict[str, Any]]:
        """What the constructor is to be told about each group beside the common options, in plain JSON types.

        It is made once, from all groups together, and kept in the saved layout.
        """
        return {}

    @abstractmethod
    def modes(self) -> dict[str, int]:
        """The size of each axis of the shared tensor, by its name."""

    @abstractmethod
    def ranks(self) -> dict[str, int]:
        """The rank of each axis, or one rank under the name `rank`."""

    @abstractmethod
    def reset_parameters(self, init: str, *, zero_start: bool = True) -> None:
        """Draw the factors afresh; with `zero_start`, so that every `dW` is zero.

        Raises:
            ConfigError: The network does not know this init.
        """

    @abstractmethod
    def forward(self, x: Tensor, site: Site) -> Tensor:
        """`x dW^T` for one site, without building `dW`: `(..., d_in)` to `(..., d_out)`."""

    @abstractmethod
    def delta(self, site: Site) -> Tensor:
        """The dense `dW` of one site, `(d_out, d_in)`."""

    def draw_frozen(self) -> None:
        """Fill the buffers that are drawn from a seed and never trained; most networks have none."""

    def frozen_checksum(self) -> str | None:
        """SHA-256 of what `draw_frozen` makes; None where there is nothing."""
        return None

    @classmethod
    def combine(cls, networks: Sequence[Self], weights: Sequence[float], sites: Sequence[Site]) -> Self:
        """One network whose `dW` is the weighted sum of the networks' `dW`, at every site, exactly.

        Raises:
            ConfigError: The sum is not a network of this kind.
        """
        raise ConfigError(f"adapters of {cls.__name__} cannot be combined into one")

    @classmethod
    def for_sum(cls, networks: Sequence[Self], sites: Sequence[Site], **options: Any) -> Self:
        """An empty network for the sum of others, where and as precise as they are."""
        result = cls(sites, **options)
        dtypes = [network.dtype for network in networks]
        return result.to(device=networks[0].device, dtype=max(dtypes, key=lambda dtype: torch.finfo(dtype).bits))

    def factor(self, name: str) -> Tensor:
        """A factor by its name. FSDP puts plain tensors in the place of parameters; `get_parameter` refuses those."""
        return cast(Tensor, getattr(self, name))

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the factors."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return next(self.parameters()).device

    def role(self, name: str) -> Role:
        """Which learning rate a factor has, by its name."""
        return self.roles.get(name, "factor")

    def unknown_init(self, init: str) -> ConfigError:
        """The error for a start that this network does not know."""
        return ConfigError(f"init='{init}' is not known to {type(self).__name__}; use one of {', '.join(self.inits)}")


class LowRankNetwork(TensorNetwork):
    """A network whose every `dW` is a product of two thin matrices that come straight from the factors.

    The pair has `q (d_in + d_out)` numbers, so making it costs nothing beside the activations, and only `(..., q)` is
    kept for the backward pass. It is also what exporting to LoRA writes.
    """

    @abstractmethod
    def pair(self, site: Site) -> tuple[Tensor, Tensor]:
        """`down (q, d_in)` and `up (d_out, q)` with `dW = up @ down`."""

    def forward(self, x: Tensor, site: Site) -> Tensor:
        """`x dW^T` through the pair of the site: `(..., d_in)` to `(..., d_out)`."""
        return apply_thin(x, thin(self.pair(site)))

    def delta(self, site: Site) -> Tensor:
        """The product of the site's pair, `(d_out, d_in)`."""
        down, up = self.pair(site)
        return up @ down


def thin(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """`down (q, d_in)` and `up (d_out, q)` as two matrices `(q, d_in)` and `(q, d_out)` for `apply_thin`.

    They lie in memory of their own: matmul chooses its way by where a factor lies, and the same adapter would give
    other last bits once it is loaded.
    """
    down, up = pair
    return down.clone(memory_format=torch.contiguous_format), up.T.clone(memory_format=torch.contiguous_format)


def apply_thin(x: Tensor, matrices: tuple[Tensor, Tensor]) -> Tensor:
    """`(..., d_in)` to `(..., d_out)` through the two matrices of `thin`."""
    down, up = matrices
    # A model spread over several devices has one copy of the factors; elsewhere `to` makes no copies. In two
    # dimensions: with more, matmul chooses its way by whether a factor is trainable. With the tokens as columns: a
    # product with many rows and few columns is several times slower on a CPU.
    inner = down.to(x.device) @ x.reshape(-1, x.shape[-1]).T
    return (inner.T @ up.to(x.device)).view(*x.shape[:-1], up.shape[1])


def axis_widths(site: Site) -> tuple[int, int]:
    """Lengths of the axis without heads and of a head: `(d, j)`; of input and output where no heads divide the site."""
    if site.heads is None:
        return site.d_in, site.d_out
    return (site.d_in if site.heads.axis == "output" else site.d_out), site.heads.width


def head_counts(sites: Sequence[Site]) -> list[int]:
    """The numbers of heads in a group, largest first: grouped-query attention has two."""
    return sorted({site.heads.count for site in sites if site.heads is not None}, reverse=True)


def merge_heads(by_head: Tensor, heads: HeadSplit) -> Tensor:
    """`(h, j, q)` to `(h j, q)`, in the order of the axis that heads divide."""
    return (by_head.transpose(0, 1) if heads.interleaved else by_head).flatten(0, 1)


def oriented(side: Tensor, split: Tensor, heads: HeadSplit) -> tuple[Tensor, Tensor]:
    """The pair `(down, up)` from `side (d, q)` and `split (h j, q)`, whichever axis the heads divide."""
    return (side.T, split) if heads.axis == "output" else (split.T, side)


def shape_key(linear: LinearMap) -> GroupKey:
    """The group of maps of one shape."""
    return GroupKey(f"linear_{linear.d_out}x{linear.d_in}")


def one_width(sites: Sequence[Site], method: str) -> tuple[int, int]:
    """The widths that all sites of a group have in common.

    Raises:
        ConfigError: They differ, or only some sites have heads.
    """
    widths = {(*axis_widths(site), site.heads is None) for site in sites}
    if len(widths) != 1:
        raise ConfigError(
            f"{method} shares its factors between all '{sites[0].group}' sites, which needs one (model width, head "
            f"width); found {sorted(width[:2] for width in widths)}: choose target modules of one size"
        )
    return next(iter(widths))[:2]


@torch.no_grad()
def orthonormal_(factor: Tensor) -> Tensor:
    """Fill `(n, r)` with orthonormal columns, or rows where r exceeds n."""
    return nn.init.orthogonal_(factor)


@torch.no_grad()
def uniform_(factor: Tensor, bound: float) -> Tensor:
    """Fill with numbers between `-bound` and `bound`."""
    return factor.uniform_(-bound, bound)


def n_rows(sites: Sequence[Site]) -> int:
    """Length of the layer axis that these sites share."""
    return 1 + max(site.row for site in sites)


def n_columns(sites: Sequence[Site]) -> int:
    """Length of their kind axis."""
    return 1 + max(site.column for site in sites)
