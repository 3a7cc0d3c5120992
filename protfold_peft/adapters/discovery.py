"""Which linear maps does a model have, and which of them did the user name?

`find_maps` lists them: those of a known architecture (`architectures.py`) with layer, kind and heads, and every other
linear module by its shape, with the first number in its path as its layer and the rest of the path as its kind.
`select` keeps those that `target_modules` names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from protfold_peft.adapters.architectures import Architecture, Projection, Stack, architecture_of
from protfold_peft.adapters.sites import HeadSplit, LinearMap, RowBlocks, Site
from protfold_peft.errors import CheckpointError, ConfigError

ALL_LINEAR = "all-linear"
_OTHER = "other"
# Heads that transformers puts on a model for a task; "all-linear" leaves them out, as PEFT does.
_TASK_HEADS = ("score", "classifier", "lm_head")
# What PEFT's wrappers keep inside themselves.
_WRAPPED = {"base_layer", "original_module", "modules_to_save"}


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


def innermost(module: nn.Module) -> nn.Module:
    """The module under any adapter layers around it."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def linear_shape(module: nn.Module) -> tuple[int, int, bool] | None:
    """`d_out`, `d_in` and whether the weight is kept transposed; None if the module is not a linear map.

    Quantised layers count: they are recognised by `in_features` and `out_features`.
    """
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return d_out, d_in, True
    # The output projection of nn.MultiheadAttention is used by its weight alone: a layer in its place never runs.
    if isinstance(module, (NonDynamicallyQuantizableLinear, nn.Bilinear)):
        return None
    d_out, d_in = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return (d_out, d_in, False) if type(d_out) is int and type(d_in) is int else None


def find_maps(model: nn.Module) -> tuple[Architecture | None, list[LinearMap]]:
    """List every linear map of `model`, layer by layer: those of its architecture first, then the others.

    Layers that already carry adapters are seen through to the linear map underneath.

    Raises:
        ConfigError: A module of a known architecture is not of the size that the model's config states.
    """
    architecture = architecture_of(model)
    known: list[LinearMap] = []
    others: list[LinearMap] = []
    for path, wrapped in model.named_modules():
        if _WRAPPED & set(path.split(".")):
            continue
        module = innermost(wrapped)
        shape = linear_shape(module)
        if shape is None:
            continue
        maps = _known_maps(architecture, model, path, shape) if architecture is not None else []
        known += maps
        if not maps:
            others.append(_other_map(path, shape, len(others), _OTHER if architecture else ""))
    known.sort(key=lambda linear: (linear.stack, linear.layer, linear.order))
    return architecture, known + others


def _known_maps(
    architecture: Architecture, model: nn.Module, path: str, shape: tuple[int, int, bool]
) -> list[LinearMap]:
    """The maps that the architecture sees in the module at `path`: none, one, or the parts of a fused one."""
    for stack in architecture.stacks:
        match = stack.layer.fullmatch(path)
        if match is None:
            continue
        return [
            _known_map(stack, projection, order, model, path, int(match[1]), shape)
            for order, projection in enumerate(stack.projections)
            if projection.path == match[2]
        ]
    return []


def _known_map(
    stack: Stack,
    projection: Projection,
    order: int,
    model: nn.Module,
    path: str,
    layer: int,
    shape: tuple[int, int, bool],
) -> LinearMap:
    total, d_in, transposed = shape
    d_out = total // projection.parts
    heads, rows = None, None
    if projection.head_axis is not None:
        split = stack.heads(projection, model.config)
        heads = HeadSplit(projection.head_axis, split.count, split.width)
        size = d_out if heads.axis == "output" else d_in
        if heads.count * heads.width != size:
            raise ConfigError(
                f"'{path}' has {size} {heads.axis} features, but the model's config states "
                f"{heads.count} heads of width {heads.width}"
            )
    if projection.parts > 1:
        block = heads.width if projection.part_per_head and heads is not None else d_out
        rows = RowBlocks(projection.part * block, block, projection.parts * block)
    return LinearMap(
        path=path,
        layer=layer,
        kind=projection.kind,
        order=order,
        d_out=d_out,
        d_in=d_in,
        heads=heads,
        stack=stack.name,
        rows=rows,
        transposed=transposed,
        batch_first=projection.batch_first,
    )


def _other_map(path: str, shape: tuple[int, int, bool], order: int, stack: str) -> LinearMap:
    """A linear module that no table entry knows: its layer is the first number in its path, its kind the rest."""
    parts = path.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    layer = 0 if number is None else int(parts.pop(number))
    return LinearMap(
        path=path,
        layer=layer,
        kind="_".join(parts),
        order=order,
        d_out=shape[0],
        d_in=shape[1],
        heads=None,
        stack=stack,
        transposed=shape[2],
        # Experts see the tokens that were routed to them.
        batch_first="experts" not in parts,
    )


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
    known = [linear for linear in maps if linear.stack != _OTHER]
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
    return any(name == target or name.endswith(f".{target}") for name in (linear.path, linear.key))


def _is_output(path: str, model: nn.Module) -> bool:
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
    near = difflib.get_close_matches(target, sorted(endings), n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
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


def n_layers(maps: Iterable[LinearMap]) -> int:
    """How many layers the main stack has."""
    return len({linear.layer for linear in maps if linear.stack == ""})


def _size(linear: Site | LinearMap) -> str:
    heads = f", {linear.heads.count} heads" if linear.heads is not None else ""
    return f"{linear.d_out} x {linear.d_in}{heads}"
