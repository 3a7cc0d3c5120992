"""What every tensor network offers to the layers that use it. Plain torch: no PEFT here.

A network owns the factors of one group of sites. For each site it gives the change `dW` of that site's weight, as a
factored map in the forward pass and as a dense matrix for merging.

Legend: `...` any leading axes (batch b, tokens n), `d_in`, `d_out` the widths of a site.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from protfold_peft.adapters.sites import LinearMap, Site


class TensorNetwork(nn.Module, ABC):
    """The factors that one group of sites shares.

    A subclass names its factors (parameters of these names appear in the saved file) and the inits it offers.
    """

    inits: ClassVar[tuple[str, ...]]

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__()
        self.sites = tuple(sites)

    @classmethod
    @abstractmethod
    def group_of(cls, linear: LinearMap) -> str:
        """The name of the group that this map joins; no dots, as it is part of the parameters' names."""

    @abstractmethod
    def modes(self) -> dict[str, int]:
        """The size of each axis of the shared tensor, by its name."""

    @abstractmethod
    def reset_parameters(self, init: str, *, zero_start: bool = True) -> None:
        """Draw the factors afresh; with `zero_start`, so that every `dW` is zero."""

    @abstractmethod
    def forward(self, x: Tensor, site: Site) -> Tensor:
        """`x dW^T` for one site, without building `dW`: `(..., d_in)` to `(..., d_out)`."""

    @abstractmethod
    def delta(self, site: Site) -> Tensor:
        """The dense `dW` of one site, `(d_out, d_in)`."""

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the factors."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return next(self.parameters()).device
