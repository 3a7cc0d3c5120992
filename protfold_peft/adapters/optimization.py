"""Training an adapter: learning rates of its own for each kind of factor, and a watch over dead adapters."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from protfold_peft.adapters.checks import DeadAdapterError, GradientCheck
from protfold_peft.adapters.model import TensorAdapterModel
from protfold_peft.errors import ConfigError

# A first batch may give an adapter no gradient by chance: a crop without two resolved residues, say.
DEAD_AFTER_STEPS = 3


def adapter_param_groups(
    model: nn.Module,
    lr: float,
    *,
    core_lr: float | None = None,
    factor_lr: float | None = None,
    vector_lr: float | None = None,
    other_lr: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: one for each kind of trainable parameter that the model has.

    Args:
        model: A model with tensor adapters.
        lr: Learning rate of every kind that is given none of its own.
        core_lr: Of what joins sites: the cores of LoTR, TensLoRA and Tensor-Train.
        factor_lr: Of what spans an axis: the factors of LoRTA and the others.
        vector_lr: Of the vectors of TeRA.
        other_lr: Of parameters outside the tensor networks, such as a classification head.
        weight_decay: Of every group.

    Returns:
        Groups with the keys `name` (core, factor, vector or other), `params`, `lr` and `weight_decay`.

    Raises:
        ConfigError: Nothing is trainable, or a learning rate is given for a kind that the model does not have.
    """
    given = {"core": core_lr, "factor": factor_lr, "vector": vector_lr, "other": other_lr}
    roles = {
        id(parameter): network.role(name)
        for tuner in model.modules()
        if isinstance(tuner, TensorAdapterModel)
        for adapter in tuner.tensor_factors
        for network in tuner.networks(adapter).values()
        for name, parameter in network.named_parameters()
    }
    members: dict[str, list[nn.Parameter]] = {role: [] for role in given}
    for parameter in model.parameters():
        if parameter.requires_grad:
            members[roles.get(id(parameter), "other")].append(parameter)
    if not any(members.values()):
        raise ConfigError("no parameter of the model is trainable; add an adapter, or load it with is_trainable=True")
    for role, rate in given.items():
        if rate is not None and not members[role]:
            present = ", ".join(role for role, own in members.items() if own)
            raise ConfigError(f"{role}_lr={rate} is given, but the model has no such parameters; it has {present}")
    return [
        {"name": role, "params": own, "lr": lr if given[role] is None else given[role], "weight_decay": weight_decay}
        for role, own in members.items()
        if own
    ]


class DeadAdapterCallback(TrainerCallback):
    """Stops a Trainer's run in its first steps if the loss does not reach every site of the adapter.

    A site is judged by the gradient at its own output (see `checks`), which is there from the first backward pass,
    whatever the warm-up, a scaler that skips steps, or factors that start at zero.

    Raises:
        DeadAdapterError: From within `Trainer.train`; names the modules without a gradient.
    """

    def __init__(self, model: nn.Module) -> None:
        self.check: GradientCheck | None = GradientCheck(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the hooks of the check on the model."""
        if self.check is not None:
            self.check.attach()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave once every site got a gradient; raise if some did not by the last step that is watched."""
        if self.check is None:
            return
        backward_passes = state.global_step + 1
        if not self.check.dead_sites():
            self._leave()
        elif backward_passes >= min(DEAD_AFTER_STEPS, state.max_steps):
            check = self.check
            self._leave()
            check.raise_if_dead()

    def _leave(self) -> None:
        assert self.check is not None
        self.check.detach()
        self.check = None


class IdleParameterCallback(TrainerCallback):
    """Stops a run in its first steps if some module of an adapter of PEFT's own gets no gradient at all.

    Within a module some parameters may get none at first, as LoRA's A while B is zero; so modules are judged.

    Raises:
        DeadAdapterError: From within `Trainer.train`; names the modules.
    """

    def __init__(self, model: nn.Module) -> None:
        self.members: dict[str, list[nn.Parameter]] = {}
        for name, module in model.named_modules():
            own = [p for key, p in module.named_parameters() if p.requires_grad]
            # The smallest modules that hold one adapted layer: those with a `base_layer`.
            if own and hasattr(module, "base_layer"):
                self.members[name] = own

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Strike off the modules that got a gradient; raise if some are left by the last step that is watched."""
        if state.global_step >= DEAD_AFTER_STEPS or not self.members:
            return
        alive = {
            name for name, own in self.members.items() if any(p.grad is not None and p.grad.ne(0).any() for p in own)
        }
        self.members = {name: own for name, own in self.members.items() if name not in alive}
        if self.members and state.global_step + 1 >= min(DEAD_AFTER_STEPS, state.max_steps):
            listed = ", ".join(list(self.members)[:4])
            raise DeadAdapterError(
                f"no gradient reaches {len(self.members)} adapted modules ({listed}); leave them out of "
                "target_modules, or use a model whose forward pass does not detach them",
                (),
            )


def dead_adapter_callback(model: nn.Module) -> TrainerCallback:
    """The watch that fits the adapter of this model."""
    ours = any(isinstance(module, TensorAdapterModel) for module in model.modules())
    return DeadAdapterCallback(model) if ours else IdleParameterCallback(model)
