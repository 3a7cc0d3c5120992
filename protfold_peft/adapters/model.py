"""The PEFT tuner: plans an adapter's sites, owns its factors, and puts layers that use them into the model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, cast

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import resolve_quantization_backend
from peft.utils.integrations import init_empty_weights
from torch import Tensor, nn

from protfold_peft.adapters.architectures import ARCHITECTURES
from protfold_peft.adapters.checkpoint import check_factors
from protfold_peft.adapters.config import TensorAdapterConfig
from protfold_peft.adapters.layer import PREFIX, TensorLinear
from protfold_peft.adapters.layout import settle_layout
from protfold_peft.adapters.networks import TensorNetwork, build_networks
from protfold_peft.adapters.sites import Site, innermost
from protfold_peft.errors import ConfigError


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
        if config.layout is not None and config.layout != layout:
            config = copy.copy(config)
            self.peft_config[adapter_name] = config
        config.layout = layout
        config.target_modules = layout["target_modules"]
        return config

    def _prepare_model(self, peft_config: TensorAdapterConfig, model: nn.Module) -> None:
        """Make the factors, before the first module is replaced."""
        adapter_name, low_cpu_mem_usage = self._pending
        sites = peft_config.sites
        for site in sites:
            if resolve_quantization_backend(_linear(model, site), get_apply_tensor_subclass=None) is not None:
                raise ConfigError(f"'{site.path}' is quantised; tensor adapters do not support that yet")
        with init_empty_weights() if low_cpu_mem_usage else nullcontext():
            factors = build_networks(peft_config.network, sites, peft_config.network_options())
        self._check_names(adapter_name, factors)
        for group in factors.values():
            self._settle(cast(TensorNetwork, group), peft_config, model)
        self.tensor_factors[adapter_name] = factors

    def _check_names(self, adapter_name: str, factors: nn.ModuleDict) -> None:
        """Refuse names that PEFT could not tell apart: it drops what belongs to another adapter by looking for
        `.<adapter>.` or a last `.<adapter>` in each parameter's name."""
        adapters = {adapter_name, *self.tensor_factors}
        networks = {adapter_name: factors, **self.tensor_factors}
        parts = {PREFIX} | {
            part for module in networks.values() for key in module.state_dict() for part in key.split(".")
        }
        if "." in adapter_name:
            raise ConfigError(f"'{adapter_name}' cannot be the name of an adapter: it has a dot; choose another")
        if clash := sorted(adapters & parts):
            raise ConfigError(f"'{clash[0]}' cannot be the name of an adapter: it names a part of one; choose another")

    @staticmethod
    def _settle(group: TensorNetwork, config: TensorAdapterConfig, model: nn.Module) -> None:
        """Draw the factors of a group and give them the number format of its first site's weight.

        PEFT raises half precision to fp32 afterwards, unless it was told not to.
        """
        base = _linear(model, group.sites[0])
        if not any(parameter.is_meta for parameter in group.parameters()):
            group.reset_parameters(config.init, zero_start=config.init_weights)
        if base.weight.is_floating_point():
            group.to(base.weight.dtype)

    @staticmethod
    def _check_target_module_exists(peft_config: TensorAdapterConfig, key: str) -> bool:
        return key in (peft_config.layout or {}).get("sites", {})

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
        sites = (peft_config.layout or {})["sites"]
        factors = self.networks(adapter_name)[sites[current_key]["group"]]
        site = next(site for site in factors.sites if site.path == current_key)
        if isinstance(target, TensorLinear):
            target.update_layer(adapter_name, factors, site, peft_config.dropout)
            return
        layer = TensorLinear(cast(nn.Linear, target))
        layer.update_layer(adapter_name, factors, site, peft_config.dropout)
        self._replace_module(parent, target_name, layer, target)

    def networks(self, adapter_name: str) -> dict[str, TensorNetwork]:
        """The factors of one adapter, by group."""
        return {name: cast(TensorNetwork, group) for name, group in self._factors(adapter_name).items()}

    def _factors(self, adapter_name: str) -> nn.ModuleDict:
        return cast(nn.ModuleDict, self.tensor_factors[adapter_name])

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter and free its factors."""
        super().delete_adapter(adapter_name)
        del self.tensor_factors[adapter_name]

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ConfigError(
                "adapter_names (one adapter per sample) is not supported yet by tensor adapters; "
                "call the model once for each adapter, after set_adapter"
            )
        yield

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f"{PREFIX}.{adapter_name}.", f"{PREFIX}.", 1)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: TensorAdapterConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        check_factors({name: tuple(tensor.shape) for name, tensor in state_dict.items()}, config)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)


def _linear(model: nn.Module, site: Site) -> nn.Linear:
    """The linear layer of a site, under the adapters that it may have."""
    return cast(nn.Linear, innermost(model.get_submodule(site.path)))
