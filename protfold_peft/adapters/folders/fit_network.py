"""Factors of one group whose updates come near to given ones: `min sum_s ||dW_s - target_s||^2`.

Only thin matrices and their Gram matrices are made. CP is solved by alternating least squares; LoRA and Tucker-2 by
singular vectors; Tucker and Tensor-Train the same way and then by L-BFGS; any other low-rank network by L-BFGS from
random starts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from protfold_peft.adapters.folders.fit_cp import fit_cp
from protfold_peft.adapters.folders.fit_spectral import fit_lora, fit_tucker2, start_tensor_train, start_tucker
from protfold_peft.adapters.folders.fit_targets import Target, residuals
from protfold_peft.adapters.networks import (
    CPNetwork,
    LoRANetwork,
    LowRankNetwork,
    TensorTrainNetwork,
    Tucker2Network,
    TuckerNetwork,
)

# Squared residuals below this share are rounding.
_EXACT = 1e-14
# Steps of a round, and the share of the squared residual that a round must take off to be followed by another.
_ROUND = 20
_LEAST_GAIN = 1e-3
_ROUNDS = 15
_HISTORY = 30


def fit_network(network: LowRankNetwork, targets: Sequence[Target], *, restarts: int) -> None:
    """Set the factors of a network so that its updates come as near to the targets as was found.

    Args:
        network: Of the group, float64.
        targets: One for each of its sites, in their order.
        restarts: Starts, where they are random.
    """
    if not any(target.norm_squared() > 0 for target in targets):
        network.reset_parameters("orthogonal", zero_start=True)
    elif isinstance(network, CPNetwork):
        fit_cp(network, targets, restarts)
    elif isinstance(network, LoRANetwork):
        fit_lora(network, targets)
    elif isinstance(network, Tucker2Network):
        fit_tucker2(network, targets)
    else:
        start = {TuckerNetwork: start_tucker, TensorTrainNetwork: start_tensor_train}.get(type(network))
        if start is not None and start(network, targets):  # type: ignore[operator]
            descend(network, targets)
        else:
            _descend_from_random(network, targets, restarts)


def _descend_from_random(network: LowRankNetwork, targets: Sequence[Target], restarts: int) -> None:
    best, found = math.inf, None
    for _ in range(max(restarts, 1)):
        network.reset_parameters("orthogonal", zero_start=False)
        residual = descend(network, targets)
        if residual < best:
            best, found = residual, copy.deepcopy(network.state_dict())
    assert found is not None
    network.load_state_dict(found)


def descend(network: LowRankNetwork, targets: Sequence[Target]) -> float:
    """L-BFGS over all factors from where they are; returns the squared residual as a share of the targets'."""
    factors = [factor.requires_grad_() for factor in network.parameters()]
    whole = sum(float(target.norm_squared()) for target in targets)

    def residual() -> Tensor:
        return residuals([network.pair(target.site) for target in targets], targets).sum() / whole

    optimizer = torch.optim.LBFGS(
        factors,
        max_iter=_ROUND,
        history_size=_HISTORY,
        tolerance_grad=1e-14,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Any:
        optimizer.zero_grad()
        loss = residual()
        loss.backward()
        return loss

    with torch.no_grad():
        before = residual().item()
    for _ in range(_ROUNDS):
        if before < _EXACT:
            break
        optimizer.step(closure)
        with torch.no_grad():
            after = residual().item()
        if not before - after > _LEAST_GAIN * before:
            break
        before = after
    optimizer.zero_grad()
    return before
