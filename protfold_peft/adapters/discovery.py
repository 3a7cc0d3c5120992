"""Which linear maps of a model did the user name, and does a model have those that a stored adapter is for?

`select` keeps, of the maps that `linear_maps` lists, those that `target_modules` names; `check_fit` compares a layout
with a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn

from protfold_peft.adapters.architectures import Architecture
from protfold_peft.adapters.linear_maps import OTHER, find_maps, innermost, n_layers
from protfold_peft.adapters.sites import LinearMap, Site
from protfold_peft.errors import CheckpointError, ConfigError, did_you_mean

ALL_LINEAR = "all-linear"
# Heads that transformers puts on a model for a task; "all-linear" leaves them out, as PEFT does.
_TASK_HEADS = ("score", "classifier", "lm_head")


class TargetError(ConfigError, NoMatchingPeftModuleError):
    """Target modules that the model does not have; what PEFT's callers expect, a `ValueError`, too."""


@dataclass(frozen=True)
class Targets:
    """Which maps to adapt.

    Attributes:
        modules: A list of full paths or ends of paths (`query` matches `...attention.self.query`), with the kind in
            brackets for one map of a fused module (`c_attn[query]`); a string is a regular expression for the whole
            path, or `all-linear`; None takes the architecture's default.
        exclude: Maps to leave out, in the same forms.
        layers: Indices of the layers to adapt; None: all.
        layers_pattern: Name (or names) of the module list whose index `layers` means; None: the model's layers.
    """

    modules: Sequence[str] | str | None = None
    exclude: Sequence[str] | str | None = None
    layers: Sequence[int] | int | None = None
    layers_pattern: Sequence[str] | str | None = None


def default_targets(model: nn.Module, architecture: Architecture | None) -> list[str]:
    """The target modules where none are named: those of the architecture, or else those that PEFT takes for LoRA.

    Raises:
        TargetError: Neither knows the model.
    """
    if architecture is not None:
        return list(architecture.default_targets)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    modules = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)
    if modules is None:
        raise TargetError(
            "Please specify `target_modules`: "
            f"the default target modules of {type(model).__name__} are not known; name some, or use '{ALL_LINEAR}'"
        )
    return list(modules)


def select(model: nn.Module, targets: Targets, modules_to_save: Iterable[str] = ()) -> list[LinearMap]:
    """The linear maps of `model` that `targets` names.

    In a known architecture an entry of a list is looked for in its layers first, and elsewhere only if it matches
    nothing there: `output.dense` never reaches a folding trunk.

    Raises:
        ConfigError: An entry matches nothing, or nothing is left of what it matches.
    """
    architecture, maps = find_maps(model)
    modules = targets.modules
    if modules is None:
        modules = default_targets(model, architecture)
    chosen = _matching(modules, maps, model, architecture)
    left_out = {linear.key for linear in maps if _excluded(linear, targets.exclude)}
    left_out |= {linear.key for linear in maps if not _in_layers(linear, targets)}
    saved = {
        linear.key
        for linear in maps
        for name in modules_to_save
        if re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", linear.path)
    }
    if not chosen:
        raise ConfigError("target_modules is empty; name at least one module")
    if not chosen - saved:
        raise ConfigError(
            f"every target module is also trained in full by modules_to_save={sorted(modules_to_save)}; "
            "remove it from one of the two"
        )
    if not chosen - saved - left_out:
        raise ConfigError(
            f"no target module is left: exclude_modules={targets.exclude}, layers_to_transform={targets.layers} and "
            f"layers_pattern={targets.layers_pattern} leave out all {len(chosen)}"
        )
    return [linear for linear in maps if linear.key in chosen - saved - left_out]


def _matching(
    modules: Sequence[str] | str, maps: list[LinearMap], model: nn.Module, architecture: Architecture | None
) -> set[str]:
    """Keys of the maps that `modules` names."""
    known = [linear for linear in maps if linear.stack != OTHER]
    if isinstance(modules, str):
        if modules.lower() == ALL_LINEAR:
            return {linear.key for linear in known if not _is_output(linear.path, model)}
        return _matching_pattern(modules, maps)
    chosen: set[str] = set()
    for target in modules:
        matched = {linear.key for linear in known if _ends_with(linear, target)} or {
            linear.key for linear in maps if _ends_with(linear, target)
        }
        if not matched:
            raise TargetError(_no_match(model, target, maps, architecture))
        chosen |= matched
    return chosen


def _ends_with(linear: LinearMap, target: str) -> bool:
    """Whether a map's path or key is `target` or ends in it, at a dot."""
    return any(name == target or name.endswith(f".{target}") for name in (linear.path, linear.key))


def _is_output(path: str, model: nn.Module) -> bool:
    """Whether a module is the head that a task or the vocabulary has; some models cannot say."""
    if path.split(".")[0] in _TASK_HEADS:
        return True
    find = getattr(model, "get_output_embeddings", None)
    try:
        output = find() if find is not None else None
    except (AttributeError, NotImplementedError):
        output = None
    return output is not None and innermost(model.get_submodule(path)) is innermost(output)


def _matching_pattern(pattern: str, maps: list[LinearMap]) -> set[str]:
    try:
        chosen = {linear.key for linear in maps if re.fullmatch(pattern, linear.path)}
    except re.error as error:
        raise ConfigError(f"target_modules='{pattern}' is not a regular expression ({error})") from error
    if not chosen:
        example = f" such as '{maps[0].path}'" if maps else ""
        raise ConfigError(
            f"the regular expression target_modules='{pattern}' matches no linear module; it must match whole "
            f"paths{example} (for ends of paths, give a list)"
        )
    return chosen


def _excluded(linear: LinearMap, exclude: Sequence[str] | str | None) -> bool:
    if isinstance(exclude, str):
        return re.fullmatch(exclude, linear.path) is not None
    return any(_ends_with(linear, name) for name in exclude or ())


def _in_layers(linear: LinearMap, targets: Targets) -> bool:
    """Whether a map is in one of the chosen layers, by its own number or that of the named module list."""
    if targets.layers is None or targets.layers == []:
        return True
    wanted = [targets.layers] if isinstance(targets.layers, int) else targets.layers
    if not targets.layers_pattern:
        return linear.layer in wanted
    patterns = [targets.layers_pattern] if isinstance(targets.layers_pattern, str) else targets.layers_pattern
    for pattern in patterns:
        match = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", linear.path)
        if match is not None:
            return int(match[1]) in wanted
    return False


def _no_match(model: nn.Module, target: str, maps: list[LinearMap], architecture: Architecture | None) -> str:
    """One line that says why `target` matches nothing and what would."""
    paths = [path for path, _ in model.named_modules()]
    if any(path == target or path.endswith(f".{target}") for path in paths):
        reason = "is in the model, but is no linear layer that a tensor adapter can change"
    else:
        reason = "matches no module"
    first = architecture.stacks[0].projections if architecture is not None else ()
    known = list(dict.fromkeys(projection.path for projection in first)) or [linear.path for linear in maps]
    endings = {".".join(path.split(".")[start:]) for path in known for start in range(path.count(".") + 1)}
    hint = did_you_mean(target, sorted(endings))
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return (
        f"Target modules ['{target}'] not found in the base model: '{target}' {reason}; {hint}valid in "
        f"{_name(model, architecture)}: {listed}"
    )


def _name(model: nn.Module, architecture: Architecture | None) -> str:
    return type(model).__name__ if architecture is None else architecture.name


def check_fit(model: nn.Module, sites: Iterable[Site], layers: int) -> None:
    """Compare a stored layout with the model it is put into.

    Raises:
        CheckpointError: The model has another number of layers, lacks a site, or has it with other sizes or heads.
    """
    architecture, maps = find_maps(model)
    found = n_layers(maps)
    if architecture is not None and found != layers:
        raise CheckpointError(f"the adapter was made for a model of {layers} layers; this one has {found}")
    by_key = {linear.key: linear for linear in maps}
    for site in sites:
        linear = by_key.get(site.key)
        if linear is None:
            raise CheckpointError(f"the adapter was made for another model: this one has no module '{site.key}'")
        # An adapter that divides the axes as its authors do still has the model's number of heads.
        heads = (
            site.heads
            and linear.heads
            and replace(linear.heads, axis=site.heads.axis, interleaved=site.heads.interleaved)
        )
        if (linear.d_out, linear.d_in, linear.rows, heads) != (site.d_out, site.d_in, site.rows, site.heads):
            raise CheckpointError(
                f"the adapter was made for another model: '{site.key}' is {_size(site)} in the adapter "
                f"and {_size(linear)} in this model"
            )


def _size(linear: Site | LinearMap) -> str:
    heads = f", {linear.heads.count} heads" if linear.heads is not None else ""
    return f"{linear.d_out} x {linear.d_in}{heads}"
