"""The PEFT tuner: plans an adapter's sites, owns its factors, and puts layers that use them into the model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper, get_quantization_kwargs
from peft.utils.integrations import init_empty_weights
from torch import Tensor, nn

from protfold_peft.adapters.architectures import ARCHITECTURES
from protfold_peft.adapters.checkpoint import check_factors
from protfold_peft.adapters.config import TensorAdapterConfig
from protfold_peft.adapters.layer import PREFIX, TensorLinear
from protfold_peft.adapters.layout import FROZEN, settle_layout
from protfold_peft.adapters.linear_maps import innermost
from protfold_peft.adapters.mixed_batch import BASE, MixedBatchError
from protfold_peft.adapters.networks import TensorNetwork
from protfold_peft.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from protfold_peft.adapters.describe import AdapterDescription


class TensorAdapterModel(BaseTuner):
    """One adapter is one entry of `tensor_factors`: a module that holds a network for each group of sites.

    A factor's name in the model is `base_model.tensor_factors.<adapter>.<group>.<factor>`, and the same without the
    adapter in a saved file.
    """

    uses_shared_state = True
    prefix = PREFIX
    tuner_layer_cls = TensorLinear
    target_module_mapping: ClassVar[dict[str, list[str]]] = {
        model_type: list(entry.default_targets) for entry in ARCHITECTURES for model_type in entry.model_types
    }

    def _pre_injection_hook(self, model: nn.Module, config: TensorAdapterConfig, adapter_name: str) -> None:
        self.tensor_factors = nn.ModuleDict()

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Add one adapter. See `BaseTuner.inject_adapter`; the sites never come from `state_dict`."""
        config = self._settle_config(model, adapter_name)
        # PEFT sees to it that a new adapter leaves the trainability of the others alone, but looks for their
        # parameters inside the base model, where the factors are not.
        trainability = [(parameter, parameter.requires_grad) for parameter in self.tensor_factors.parameters()]
        self._pending = (adapter_name, low_cpu_mem_usage)
        try:
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
        except Exception:
            if adapter_name in self.tensor_factors:
                del self.tensor_factors[adapter_name]
            raise
        finally:
            del self._pending
        # PEFT shortens long lists of targets.
        config.target_modules = (config.layout or {})["target_modules"]
        for parameter, requires_grad in trainability:
            parameter.requires_grad_(requires_grad)

    def _settle_config(self, model: nn.Module, adapter_name: str) -> TensorAdapterConfig:
        """Give the adapter's config its layout.

        One config object may serve several models or adapters. As long as they have the same layout they share it;
        one with another layout gets a copy, or saving the first would write the second's.
        """
        config: TensorAdapterConfig = self.peft_config[adapter_name]
        layout = settle_layout(config, model)
        if config.layout is not None and {**config.layout, FROZEN: None} != {**layout, FROZEN: None}:
            config = copy.copy(config)
            self.peft_config[adapter_name] = config
        elif config.layout is not None:
            layout = config.layout
        config.layout = layout
        config.target_modules = layout["target_modules"]
        return config

    def _prepare_model(self, peft_config: TensorAdapterConfig, model: nn.Module) -> None:
        """Make the factors, before the first module is replaced."""
        adapter_name, low_cpu_mem_usage = self._pending
        with init_empty_weights() if low_cpu_mem_usage else nullcontext():
            factors = peft_config.build()
        self._check_names(adapter_name, factors)
        for name, group in factors.items():
            self._settle(name, cast(TensorNetwork, group), peft_config, model)
        self.tensor_factors[adapter_name] = factors

    def _check_names(self, adapter_name: str, factors: nn.ModuleDict) -> None:
        """Refuse names that PEFT could not tell apart: it drops what belongs to another adapter by looking for
        `.<adapter>.` or a last `.<adapter>` in each parameter's name."""
        adapters = {adapter_name, *self.tensor_factors}
        networks = {adapter_name: factors, **self.tensor_factors}
        parts = {PREFIX} | {
            part for module in networks.values() for key in module.state_dict() for part in key.split(".")
        }
        if "." in adapter_name or adapter_name == BASE:
            raise ConfigError(
                f"'{adapter_name}' cannot be the name of an adapter: it has a dot, or means none; choose another"
            )
        if clash := sorted(adapters & parts):
            raise ConfigError(f"'{clash[0]}' cannot be the name of an adapter: it names a part of one; choose another")

    @staticmethod
    def _settle(name: str, group: TensorNetwork, config: TensorAdapterConfig, model: nn.Module) -> None:
        """Draw the factors of a group and give them the number format of its first site's weight; PEFT raises half
        precision to fp32 afterwards, unless it was told not to.

        Buffers stay as they were drawn, whatever the format: an adapter means the same on every base.
        """
        group.draw_frozen()
        checksum = group.frozen_checksum()
        if checksum is not None and config.layout is not None:
            stored = config.layout.setdefault(FROZEN, {}).setdefault(name, checksum)
            if stored != checksum and not getattr(config, "save_frozen", False):
                raise CheckpointError(
                    f"the frozen tensors of group '{name}', drawn from the adapter's seed, are not those that it was "
                    "trained with; save it with save_frozen=True where it was made"
                )
        if not any(parameter.is_meta for parameter in group.parameters()):
            group.reset_parameters(config.init, zero_start=config.init_weights)
        weight = cast(Tensor, innermost(model.get_submodule(group.sites[0].path)).weight)
        if weight.is_floating_point():
            for parameter in group.parameters():
                parameter.data = parameter.data.to(weight.dtype)

    @staticmethod
    def _check_target_module_exists(peft_config: TensorAdapterConfig, key: str) -> bool:
        return key in peft_config.site_paths

    def _create_and_replace(
        self,
        peft_config: TensorAdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        """PEFT's hook for a module that has sites: give its `TensorLinear`, made here if need be, the adapter."""
        networks = self.networks(adapter_name)
        sites = [site for group in networks.values() for site in group.sites if site.path == current_key]
        layer = target
        if not isinstance(layer, TensorLinear):
            layer = TensorLinear(target, **get_quantization_kwargs(self.model))
        layer.update_layer(adapter_name, networks, sites, peft_config.dropout)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def networks(self, adapter_name: str) -> dict[str, TensorNetwork]:
        """The factors of one adapter, by group."""
        factors = cast(nn.ModuleDict, self.tensor_factors[adapter_name])
        return {name: cast(TensorNetwork, group) for name, group in factors.items()}

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper):
            # PEFT's version then copies a `weight`, which a head of several layers does not have.
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters, each with a weight of 1 (see `set_adapter_weights`)."""
        for layer in self.model.modules():
            if isinstance(layer, TensorLinear):
                layer.tensor_weights = {}
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter and free its factors."""
        super().delete_adapter(adapter_name)
        del self.tensor_factors[adapter_name]

    def describe_adapters(self) -> tuple[AdapterDescription, ...]:
        """What every adapter consists of; see `adapters.describe_adapters`."""
        from protfold_peft.adapters.describe import describe_adapters

        return describe_adapters(self)

    def add_weighted_adapter(self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
        """Add an adapter whose update is the weighted sum of others'; see `adapters.combine`."""
        from protfold_peft.adapters.combine import add_weighted_adapter

        add_weighted_adapter(self, adapters, weights, adapter_name)

    def set_adapter_weights(self, weights: dict[str, float]) -> None:
        """Activate several adapters, each counted by its weight; see `adapters.combine`."""
        from protfold_peft.adapters.combine import set_adapter_weights

        set_adapter_weights(self, weights)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand `adapter_names`, one name per sample, to every layer for the time of a call."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise MixedBatchError("Cannot pass `adapter_names` when the model is in training mode.")
        unknown = set(names) - {BASE, *self.tensor_factors}
        if unknown:
            raise MixedBatchError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")
        beams = kwargs.get("num_beams")
        repeated = [name for name in names for _ in range(beams)] if isinstance(beams, int) and beams > 1 else names
        # Beam search repeats the samples for the decoder, but the encoder sees each once.
        find_encoder = getattr(self.model, "get_encoder", None)
        two_parts = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        encoder = find_encoder() if two_parts and find_encoder else None
        in_encoder = {id(module) for module in encoder.modules()} if encoder is not None else set()
        handles = []
        for module in self.modules():
            if isinstance(module, (TensorLinear, AuxiliaryTrainingWrapper)):
                own = names if id(module) in in_encoder else repeated
                handles.append(module.register_forward_pre_hook(partial(_add_names, names=own), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f"{PREFIX}.{adapter_name}.", f"{PREFIX}.", 1)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: TensorAdapterConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        check_factors({name: tuple(tensor.shape) for name, tensor in state_dict.items()}, config)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)


def _add_names(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, names: Sequence[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs | {"adapter_names": list(names)}
