"""Does every adapted site learn? Finds adapters that a loss cannot reach.

A model that detaches its language model's output (stock ESMFold does) trains no adapter there, and nothing fails:
`backward` succeeds through other parameters. The parameters cannot tell either, since a factor is shared: with one
layer cut off it still gets gradients from the others. So each site is judged by the gradient at its own output,
which the update is added to. That gradient does not depend on the factors, and so is right before the first step too,
when the zero-initialised factor makes the gradients of all others vanish.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from protfold_peft.adapters.layer import TensorLinear
from protfold_peft.adapters.sites import Site
from protfold_peft.errors import ConfigError, ProtfoldError


class DeadAdapterError(ProtfoldError):
    """Adapted sites that the loss does not reach; `sites` lists them."""

    def __init__(self, message: str, sites: tuple[DeadSite, ...]) -> None:
        super().__init__(message)
        self.sites = sites


@dataclass(frozen=True)
class DeadSite:
    """An adapted module whose output got no gradient; `ran` tells whether the forward pass used it at all.

    For one part of a fused module the path ends in its kind, as in `attn.c_attn[query]`.
    """

    path: str
    ran: bool


class GradientCheck:
    """Watches the outputs of all adapted layers while it is attached, over one or more backward passes.

    Use it as a context around forward and backward, or call `attach` before the forward pass and `detach` when the
    answer is known. It works under gradient checkpointing and autocast, adds no parameter, and waits for the device
    only when asked for the result.

    Args:
        model: A model with tensor adapters.

    Raises:
        ConfigError: The model has no trainable tensor adapter that is active.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sites: dict[str, Site] = {}
        self._layers: list[TensorLinear] = []
        for layer in model.modules():
            if isinstance(layer, TensorLinear) and not layer.disable_adapters and not layer.merged:
                watched = {
                    site.key: site
                    for name in layer.active_adapters
                    for site in layer.tensor_sites.get(name, ())
                    if any(factor.requires_grad for factor in layer.network(name, site).parameters())
                }
                if watched:
                    self._sites |= watched
                    self._layers.append(layer)
        if not self._sites:
            raise ConfigError(
                "no active tensor adapter of this model is trainable; add one with get_peft_model, "
                "or load it with is_trainable=True"
            )
        self._ran: set[str] = set()
        self._alive: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Start watching; a second call changes nothing."""
        if not self._handles:
            for layer in self._layers:
                sites = {site for sites in layer.tensor_sites.values() for site in sites if site.key in self._sites}
                self._handles.append(layer.register_forward_hook(partial(self._forward_hook, sites), prepend=True))

    def detach(self) -> None:
        """Stop watching. What was seen is kept."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _forward_hook(self, sites: Iterable[Site], layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self._ran |= {site.key for site in sites}
        if output.requires_grad:
            output.register_hook(partial(self._backward_hook, sites))

    def _backward_hook(self, sites: Iterable[Site], gradient: Tensor) -> None:
        for site in sites:
            own = gradient.detach() if site.rows is None else site.rows.take(gradient.detach())
            alive = own.ne(0).any()
            self._alive[site.key] = alive | self._alive[site.key] if site.key in self._alive else alive

    def dead_sites(self) -> tuple[DeadSite, ...]:
        """The sites whose output has had no gradient but zero since the check was made, in the model's order.

        Before the first backward pass these are all sites.
        """
        reached = {key for key, alive in self._alive.items() if bool(alive)}
        return tuple(DeadSite(key, key in self._ran) for key in self._sites if key not in reached)

    def raise_if_dead(self) -> None:
        """Call after a backward pass.

        Raises:
            DeadAdapterError: The loss does not reach some site.
        """
        dead = self.dead_sites()
        if not dead:
            return
        listed = ", ".join(site.path for site in dead[:4]) + (f" and {len(dead) - 4} more" if len(dead) > 4 else "")
        if any(site.ran for site in dead):
            remedy = "use a model whose forward pass does not detach them"
        else:
            remedy = "the forward pass did not use them: leave them out of target_modules"
        raise DeadAdapterError(
            f"no gradient reaches {len(dead)} of {len(self._sites)} adapted modules ({listed}); {remedy}", dead
        )


@contextmanager
def check_gradients(model: nn.Module) -> Iterator[GradientCheck]:
    """Run a forward and a backward pass in this context; at its end a dead adapter raises.

    Raises:
        ConfigError: The model has no trainable tensor adapter that is active.
        DeadAdapterError: The loss does not reach some site.
    """
    with GradientCheck(model) as check:
        yield check
    check.raise_if_dead()
